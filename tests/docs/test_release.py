"""What `make release` and `make test-beyond` do."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

import pytest

from scripts import beyond, release


@pytest.mark.slow
def test_two_builds_are_the_same_and_hold_what_they_should(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert release.main("HEAD", tmp_path) == 0
    (wheel,), (sdist,) = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    told = capsys.readouterr().out
    assert wheel.name in told
    assert sdist.name in told
    with zipfile.ZipFile(wheel) as archive:
        metadata = next(name for name in archive.namelist() if name.endswith("/METADATA"))
        text = archive.read(metadata).decode()
        assert any(name.endswith("/licenses/LICENSE") for name in archive.namelist())
    assert "License-Expression: Apache-2.0" in text
    with tarfile.open(sdist) as archive:
        names = {Path(name).relative_to(Path(name).parts[0]).as_posix() for name in archive.getnames()}
    assert {"LICENSE", "CHANGELOG.md", "mkdocs.yml", "docs/tutorial.md", "scripts/release.py", "bridge/cli.py"} <= names
    assert not {name for name in names if name.startswith((".venv", "build/", ".demo"))}


def test_what_breaks_beyond_our_pins_is_listed(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite><testcase classname="tests.unit.a" name="fine"/>'
        '<testcase classname="tests.unit.a" name="bad"><failure message="no attribute x&#10;more"/></testcase>'
        '<testcase classname="tests.unit.b" name="worse"><error>ImportError: y</error></testcase>'
        "</testsuite></testsuites>"
    )
    assert beyond.failures(report) == [("tests.unit.a.bad", "no attribute x"), ("tests.unit.b.worse", "ImportError: y")]
