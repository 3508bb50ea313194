"""dolmen: a simple, robust object store."""

__version__ = "0.1.0"
