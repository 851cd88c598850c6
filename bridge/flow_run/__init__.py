"""Carrying out a flow run: which step starts when, one attempt at it, its end, and what a dead process left."""
