"""Models: specifications, loading, the bundled models, and the LM module that training runs."""
