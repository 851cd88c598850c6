"""Dynamic pipelines: the function's sandbox, and the isolated steps that it asks for."""
