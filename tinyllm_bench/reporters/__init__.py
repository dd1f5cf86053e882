"""Reporters that come with the program: one file each, found by its name as a reporter of a plugin is."""
