"""What a person sees of a run: in Prefect's UI, in a terminal, in logs and events."""
