"""Which Argosy this is; the package's metadata is made of it."""

__all__ = ["__version__"]

__version__ = "0.1.0"
