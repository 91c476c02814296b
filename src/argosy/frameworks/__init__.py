"""One package per training framework, each the sole importer of it."""
