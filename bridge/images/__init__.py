"""Images that Modal builds from ZenML's `DockerSettings`."""
