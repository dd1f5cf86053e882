"""What came out: the run record and the board."""
