"""A finished student as a Hugging Face folder with its model card, and on the hub."""
