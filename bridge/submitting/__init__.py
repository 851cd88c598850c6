"""From calling a pipeline to a flow run that somebody carries out: at once, on a worker, or by a schedule."""
