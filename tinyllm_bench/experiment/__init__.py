"""The way from a request to a record: cells, resume, presets."""
