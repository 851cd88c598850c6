"""`modal-prefect doctor`."""

from __future__ import annotations

import contextlib
import sys

import click


@click.command()
@click.option("--stack", help="The stack to look at. Default: the active one.")
@click.option(
    "--run", is_flag=True, help="Also make a sandbox, look around in it, and end it; on Modal it costs a cent."
)
@click.option("--image", help="The image for --run. Default: the newest of the stack, or ZenML's own.")
@click.option("--json", "as_data", is_flag=True, help="Print JSON.")
def doctor(stack: str | None, run: bool, image: str | None, as_data: bool) -> None:
    """Look at this environment and say what is wrong with it, and what to do about each finding.

    Changes nothing. The exit code is 1 if something has to be mended or couldn't be asked, else 0.
    """
    if image is not None and not run:
        raise click.UsageError("--image says which image the sandbox of --run has: add --run.")
    out = sys.stdout
    # ZenML's log lines go to stdout: not into JSON, nor between the findings.
    with contextlib.redirect_stdout(sys.stderr):
        from rich.console import Console

        from bridge.doctor.examination import examine
        from bridge.doctor.patient import Patient
        from bridge.doctor.show import as_json, show, summary

        console, findings = Console(file=out, highlight=False), []
        for finding in examine(Patient(stack, image), run=run):
            findings.append(finding)
            if not as_data:
                show(console, finding)
        if as_data:
            out.write(as_json(findings) + "\n")
        else:
            console.print(summary(findings))
    if any(finding.grade.is_bad for finding in findings):
        raise SystemExit(1)
