"""Sandboxes in which steps take turns."""
