"""How a student's text is read: the answer parser, programs and their sandbox, and votes."""
