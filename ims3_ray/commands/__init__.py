"""What each job does: parse, connect, one call, print."""
