"""From a ZenML snapshot and settings to a plan, and everything that is refused before anything starts."""
