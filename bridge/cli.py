"""The command `modal-prefect`: the group of all commands, each a module of :mod:`bridge.commands`."""

from __future__ import annotations

import io
import sys

import click

from bridge import names
from bridge.commands.doctor import doctor
from bridge.commands.plan import plan
from bridge.commands.resume import resume
from bridge.commands.sweep import sweep
from bridge.commands.watchdog import watchdog
from bridge.commands.worker import worker
from bridge.watching.quiet import only_warn_of_requests


@click.group(help="Run ZenML pipelines as Prefect flows whose steps run in Modal sandboxes.")
@click.version_option(package_name=names.DISTRIBUTION)
def main() -> None:
    """The group of all commands."""
    only_warn_of_requests()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # As Python has it for stderr: a sign that a terminal's encoding lacks is no reason to say nothing.
        sys.stdout.reconfigure(errors="backslashreplace")


main.add_command(doctor)
main.add_command(plan)
main.add_command(resume)
main.add_command(sweep)
main.add_command(watchdog)
main.add_command(worker)
