"""Read a compose file or a Dockerfile as its tool does and print it as JSON. Runs in `.venv-deployments`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import expandvars
import yaml
from dockerfile_parse import DockerfileParser
from dotenv import dotenv_values


def compose(path: Path, *environments: str) -> object:
    """The compose file, its variables taken from env files; a required one that is missing is an error."""
    variables: dict[str, str] = {}
    for environment in environments:
        variables |= {key: value or "" for key, value in dotenv_values(environment).items()}
    text = "\n".join(line for line in path.read_text().splitlines() if not line.lstrip().startswith("#"))
    # `$$` is Compose's own way to write a dollar sign.
    pieces = [expandvars.expand(piece, environ=variables, nounset=True) for piece in text.split("$$")]
    return yaml.safe_load("$".join(pieces))


def environment(path: Path) -> object:
    """An env file."""
    return dict(dotenv_values(path, interpolate=False))


def dockerfile(path: Path) -> object:
    """The instructions of the final image, by name, and the variables that it sets."""
    parser = DockerfileParser(path=str(path), cache_content=True)
    instructions = [(line["instruction"], line["value"]) for line in parser.structure]
    last = max(index for index, (name, _) in enumerate(instructions) if name == "FROM")
    final = [[name, value] for name, value in instructions[last:] if name != "COMMENT"]
    arguments = {
        name: value.strip('"')
        for kind, text in instructions
        if kind == "ARG" and "=" in text
        for name, value in [text.split("=", 1)]
    }
    return {"final": final, "environment": dict(parser.envs), "arguments": arguments}


if __name__ == "__main__":
    what, path, *rest = sys.argv[1:]
    reader = {"compose": compose, "environment": environment, "dockerfile": dockerfile}[what]
    json.dump(reader(Path(path), *rest), sys.stdout)
