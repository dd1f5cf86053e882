"""Teachers: recorded and live ones, their prompts, cache, filters and quality."""
