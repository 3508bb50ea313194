"""A cluster of blob stores: placement, uploads, downloads, large objects."""
