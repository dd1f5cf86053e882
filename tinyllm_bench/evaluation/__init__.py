"""How a student is scored: lm-eval through transformers or vLLM, and the reference baselines."""
