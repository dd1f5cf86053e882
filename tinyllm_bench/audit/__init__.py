"""Checks of finished results: `verify` a run, `reproduce` a paper's table."""
