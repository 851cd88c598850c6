"""Single steps for other orchestrators."""
