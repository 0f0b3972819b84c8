"""Sweeps: many runs of one recipe with fields changed, by Ray Tune; each is scored on validation images."""
