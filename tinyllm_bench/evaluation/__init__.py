"""Evaluation of students: lm-eval through transformers or vLLM, sampled answers, scoring, reference baselines."""
