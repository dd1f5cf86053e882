"""A run, from the request to its record: settings, cells and their stages."""
