"""Where sandboxes run: ``modal``, ``process``, ``scripted``."""
