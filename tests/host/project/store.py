"""A user's module whose name the bridge has, too."""
