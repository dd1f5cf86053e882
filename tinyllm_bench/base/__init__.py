"""The ground floor: errors, files, configuration, plugins, provenance; imports no other room."""
