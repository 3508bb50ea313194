"""Figures beside nginx: `python -m bench` measures, prints and compares; it asserts nothing."""
