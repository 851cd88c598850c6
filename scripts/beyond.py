"""Tries the newest releases of ZenML, Prefect and Modal, beyond our pins, and lists what breaks.

`python -m scripts.beyond` makes `.venv-beyond`, runs the tests that are about them there, and prints the versions and
what failed. The exit code is 0 whatever breaks: it is a look ahead, not a gate; 2 means that it couldn't be tried.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement

from bridge import names

ROOT = Path(__file__).resolve().parents[1]
UV = Path(sys.executable).parent / "uv"
ENVIRONMENT = ROOT / ".venv-beyond"
PYTHON = ENVIRONMENT / "bin" / "python"
UPSTREAM = ("zenml[local]", "prefect", "modal")
TESTS = ("tests/unit", "tests/contract", "tests/host")
"""Not the integration tests: their ZenML server is of the release that we pin, and the client would be another."""


def install() -> None:
    """Our dependencies first, then the newest of the three, pre-releases included, whatever our pins say."""
    run = [UV, "pip", "install", "--quiet", "--python", PYTHON]
    subprocess.run([UV, "venv", "--quiet", "--allow-existing", "--python", sys.executable, ENVIRONMENT], check=True)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as overrides:
        overrides.write("\n".join(UPSTREAM))
        overrides.flush()
        newest = [argument for name in UPSTREAM for argument in ("--upgrade-package", name.partition("[")[0])]
        wanted = ["--override", overrides.name, "--prerelease", "if-necessary-or-explicit", *newest]
        subprocess.run([*run, *wanted, "-e", f"{ROOT}[local]", "--group", f"{ROOT}/pyproject.toml:dev"], check=True)


def versions() -> dict[str, str]:
    """What was installed."""
    listed = subprocess.run(
        [UV, "pip", "freeze", "--quiet", "--python", PYTHON], check=True, capture_output=True, text=True
    ).stdout
    pairs = (line.split("==") for line in listed.splitlines() if "==" in line)
    return {name: version for name, version in pairs if name in ("zenml", "prefect", "modal")}


def tried(found: Mapping[str, str]) -> str:
    """These releases, and of each that we don't admit, what we do. Where we admit all, nothing is beyond yet."""
    pins = {pin.name: pin.specifier for pin in map(Requirement, requires(names.DISTRIBUTION) or ()) if not pin.marker}
    beyond = {name: pins[name] for name, version in found.items() if not pins[name].contains(version, prereleases=True)}
    told = [
        f"{name} {version}" + (f" (we say {beyond[name]})" if name in beyond else "")
        for name, version in sorted(found.items())
    ]
    return "Tried with " + ", ".join(told) + ("." if beyond else ": all of them within our pins.")


def broken() -> list[tuple[str, str]]:
    """Run the tests; return each failed one with its error's first line. Raises ``RuntimeError`` if they can't run."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        chosen = ["-n", "2", "-q", f"--junitxml={report}"]
        ran = subprocess.run([PYTHON, "-m", "pytest", *TESTS, *chosen], cwd=ROOT, check=False)
        if ran.returncode not in (0, 1) or not report.exists():
            raise RuntimeError(f"pytest ended with {ran.returncode}")
        return failures(report)


def failures(report: Path) -> list[tuple[str, str]]:
    """The failed tests of a JUnit report, each with its error's first line."""
    found = []
    for case in ElementTree.parse(report).iter("testcase"):
        for bad in (*case.iter("failure"), *case.iter("error")):
            first = next(iter((bad.get("message") or bad.text or "").splitlines()), "")
            found.append((f"{case.get('classname')}.{case.get('name')}", first))
    return found


def main() -> int:
    """Install, run, list."""
    try:
        install()
        found = broken()
    except (subprocess.CalledProcessError, RuntimeError) as error:
        print(f"The newest releases can't be tried: {error}", file=sys.stderr)
        return 2
    print(f"\n{tried(versions())}")
    for test, why in found:
        print(f"  {test}\n      {why}")
    print(f"{len(found)} tests break." if found else "Nothing breaks.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
