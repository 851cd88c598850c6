"""``python -m tests.chaos --seed S --count N``: random pipelines under random faults. `make chaos` calls it.

Exits with 0 if nothing was found, 1 if something was, with the seed and what it was.
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos import dynamic_model, model
from tests.chaos.case import DYNAMIC_KINDS, KINDS, make_case, make_dynamic_case
from tests.chaos.report import Report
from tests.chaos.yard import yard

CASE_SECONDS = 300.0
DYNAMIC_CASE_SECONDS = 600.0  # an interpreter for each attempt


def main() -> int:
    options = _options()
    # Servers and sandboxes are processes of their own: an end from outside has to end them too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    folder = Path(options.folder or tempfile.mkdtemp(prefix="chaos-")).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    report = Report(DYNAMIC_KINDS if options.dynamic else KINDS)
    violations = dynamic_model.violations if options.dynamic else model.violations
    with yard(folder) as shared:
        import bridge
        from tests.chaos.driver import fill_cache, run_case

        print(f"bridge: {Path(bridge.__file__).parent}; folder: {folder}", flush=True)
        for name in ("httpx", "hpack"):
            logging.getLogger(name).setLevel(logging.WARNING)
        fill_cache(shared, "first_of_all_dynamic" if options.dynamic else "first_of_all")
        for seed in range(options.seed, options.seed + options.count):
            case = make_dynamic_case(seed) if options.dynamic else make_case(seed, small=options.small)
            began = time.monotonic()
            print(case, flush=True)
            seen, log = run_case(case, shared, DYNAMIC_CASE_SECONDS if options.dynamic else CASE_SECONDS)
            found = violations(case, seen)
            report.add(case, seen, found)
            print(f"  {seen.run}, {time.monotonic() - began:.1f} s", flush=True)
            for sentence in found:
                print(f"  WRONG {sentence}", flush=True)
            if options.report:
                Path(options.report).write_text(json.dumps(report.as_json(), indent=1))
            if found:
                (folder / f"case-{seed}" / "seen.txt").write_text(f"{case}\n{found}\n{seen}\n\n{log}")
                if options.stop:
                    break
    print(report)
    return 0 if report.good else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="of the first case; the next one has the next number")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--small", action="store_true", help="few steps, few sandboxes")
    parser.add_argument("--dynamic", action="store_true", help="dynamic pipelines, each step in a sandbox of its own")
    parser.add_argument("--stop", action="store_true", help="end with the first case that shows something wrong")
    parser.add_argument("--folder", help="where everything is written; a new one by default")
    parser.add_argument("--report", help="a file for the counts, as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
