"""What a request needs and whether it will work, before anything is spent: `plan` and `doctor`."""
