"""Answers in free text: the parser, programs and the sandbox that runs them, answer keys and voting."""
