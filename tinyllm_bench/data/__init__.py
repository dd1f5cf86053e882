"""Questions: records, prompts, sources and their checks."""
