"""Speed and quality, measured on inputs that are made here; run by jobs/bench.py, never by a test."""
