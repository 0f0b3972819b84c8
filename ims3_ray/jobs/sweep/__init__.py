"""Sweeps by Ray Tune: searches over recipe fields, and comparisons of named rows with paired statistics."""
