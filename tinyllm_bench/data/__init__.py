"""What is asked: records, prompts, sources and their checks."""
