"""What runs inside a sandbox: ``python -m bridge.host <command>``.

``where``
    Prints the path of the ``bridge`` package in use.
``step --snapshot-id S --step NAME [--step-run-id ID]``
    Runs one attempt of a static step on the main thread, without retries. With ``--step-run-id`` that step
    run, which is RUNNING although its process is dead, goes on; no new one is made.
    Exits with 0 where the step succeeded, else with 1 or the code it called ``sys.exit`` with.
``operated --snapshot-id S --step NAME --step-run-id ID``
    Runs a step run that a step operator was asked to carry out, or an isolated one of a dynamic pipeline
    (:mod:`bridge.host.operated`). Exits likewise.
``dynamic --snapshot-id S --run-id R [--max-parallelism N]``
    Runs the function of a dynamic pipeline and its inline steps (:mod:`bridge.host.dynamic`).
``pipeline --snapshot-id S --run-id R [--max-parallelism N] [--cpu C --memory MIB --gpus G]``
    Runs the whole static pipeline in this sandbox (:mod:`bridge.host.pipeline`, which lists the exit codes).
``serve --snapshot-id S --run-id R --socket NAME [--idle-timeout SECONDS] [--each step|operated]``
    Runs steps of that run, one at a time, as it is asked to (:mod:`bridge.host.serve`), each as that command does.

Nothing outside the standard library is imported until the command is known.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Sequence
from typing import get_args
from uuid import UUID

from bridge.host.attempt import StepCommand


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bridge.host", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("where", help="print the path of the bridge package")
    step = commands.add_parser("step", help="run one attempt of a step", allow_abbrev=False)
    step.add_argument("--snapshot-id", required=True)
    step.add_argument("--step", required=True)
    step.add_argument("--step-run-id")
    step.add_argument("--lifeline", type=int, help=argparse.SUPPRESS)
    operated = commands.add_parser("operated", help="run a step for a step operator", allow_abbrev=False)
    operated.add_argument("--snapshot-id", required=True)
    operated.add_argument("--step", required=True)
    operated.add_argument("--step-run-id", required=True)
    operated.add_argument("--lifeline", type=int, help=argparse.SUPPRESS)
    pipeline = commands.add_parser("pipeline", help="run a whole pipeline", allow_abbrev=False)
    pipeline.add_argument("--snapshot-id", required=True)
    pipeline.add_argument("--run-id", required=True)
    pipeline.add_argument("--max-parallelism", type=int)
    pipeline.add_argument("--cpu", type=float, help="cores of this sandbox; unlimited if not given")
    pipeline.add_argument("--memory", type=int, help="MiB of this sandbox; unlimited if not given")
    pipeline.add_argument("--gpus", type=int, help="GPUs of this sandbox; unlimited if not given")
    dynamic = commands.add_parser("dynamic", help="run the function of a dynamic pipeline", allow_abbrev=False)
    dynamic.add_argument("--snapshot-id", required=True)
    dynamic.add_argument("--run-id", required=True)
    dynamic.add_argument("--max-parallelism", type=int)
    serve = commands.add_parser("serve", help="run steps as they are asked for", allow_abbrev=False)
    serve.add_argument("--snapshot-id", required=True)
    serve.add_argument("--run-id", required=True)
    serve.add_argument("--socket", required=True, help="name of the socket's file")
    serve.add_argument("--idle-timeout", type=float, default=600.0, help="seconds without a step after which it ends")
    serve.add_argument("--each", choices=get_args(StepCommand), default="step", help="as which command a step is run")
    return parser


def _joined(argv: Sequence[str]) -> list[str]:
    """Write each option and its value as one: a step's name may begin with a dash, as an option does."""
    joined = list(argv[:1])
    rest = iter(argv[1:])
    for option in rest:
        value = next(rest, None) if option.startswith("--") and "=" not in option else None
        joined.append(option if value is None else f"{option}={value}")
    return joined


def options_of(argv: Sequence[str]) -> argparse.Namespace:
    """Read a command line. Ends the program with exit code 2 where it is none."""
    return _parser().parse_args(_joined(argv))


def main(argv: Sequence[str]) -> int:
    """Run a command and return its exit code."""
    options = options_of(argv)
    # What is loaded stays: looking through it for garbage again and again is a sixth of the time. Enabled again once
    # everything is there.
    gc.disable()
    if options.command == "where":
        import bridge

        sys.stdout.write(f"{bridge.__file__}\n")
        return 0
    if options.command == "step":
        from bridge.host import entrypoint, lifeline, orphan

        if options.lifeline is not None:
            lifeline.hold(options.lifeline)
        else:
            orphan.watch_step(options.step)
        gc.enable()
        arguments = entrypoint.arguments_for(options.snapshot_id, options.step, options.step_run_id)
        return entrypoint.run_attempt(arguments)
    if options.command == "operated":
        from bridge.host import entrypoint, lifeline, orphan
        from bridge.host.operated import OperatedEntrypoint

        if options.lifeline is not None:
            lifeline.hold(options.lifeline)
        gc.enable()
        orphan.watch_step(options.step)  # where a flow began it: of a dynamic pipeline
        orphan.watch_step_run(UUID(options.step_run_id))  # where a step operator did
        arguments = entrypoint.arguments_for(options.snapshot_id, options.step, options.step_run_id)
        return entrypoint.run_attempt(arguments, entrypoint=OperatedEntrypoint)
    if options.command == "dynamic":
        from bridge.host import dynamic

        gc.enable()
        return dynamic.main(dynamic.Options(options.snapshot_id, options.run_id, options.max_parallelism))
    if options.command == "serve":
        from bridge.host import serve

        return serve.main(
            serve.Options(options.snapshot_id, options.run_id, options.socket, options.idle_timeout, options.each)
        )
    from bridge.host import pipeline

    return pipeline.main(
        pipeline.Options(
            snapshot_id=options.snapshot_id,
            run_id=options.run_id,
            max_parallelism=options.max_parallelism,
            cpu=options.cpu,
            memory=options.memory,
            gpus=options.gpus,
        )
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
