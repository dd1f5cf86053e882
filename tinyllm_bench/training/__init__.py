"""How a student is trained: the Method interface, losses, batches, the trainer."""
