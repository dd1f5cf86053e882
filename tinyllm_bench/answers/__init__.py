"""How a student's text is read: the only answer parser."""
