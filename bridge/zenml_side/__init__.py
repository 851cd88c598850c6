"""What ZenML is asked and told."""
