"""The lowest layer: errors, files, configuration, plugins, escaping, provenance; imports no other package."""
