"""A front: the process that accepts requests. It never runs a model."""
