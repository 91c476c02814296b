"""One file per runtime, each the sole importer of it."""
