"""Text and option scores from a model: transformers, vLLM in a process of its own, or an API."""
