"""What Prefect is asked, and what to do while it is away."""
