"""What teachers said: recorded rationales and controls on them."""
