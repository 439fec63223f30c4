"""Datasets for Python programs: as objects, and as a file system for fsspec."""
