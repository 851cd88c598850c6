"""Who is alive, and the end of what nobody owns any more."""
