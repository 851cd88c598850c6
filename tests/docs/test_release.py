"""What `make release` and `make test-beyond` do."""

from __future__ import annotations

import re
import subprocess
import tarfile
import zipfile
from importlib.metadata import metadata, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from bridge import names
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
    assert ".pre-commit-config.yaml" in names, "CONTRIBUTING.md tells to install it"
    assert not {name for name in names if name.startswith((".venv", "build/", ".demo"))}


NEEDED = [
    needed.name
    for needed in map(Requirement, requires(names.DISTRIBUTION) or ())
    if needed.marker is None or needed.marker.evaluate({"extra": ""})
]


@pytest.mark.parametrize("name", NEEDED)
def test_what_an_installation_brings_may_be_used_as_freely_as_we_may(name: str) -> None:
    told = metadata(name)
    classifiers = [one for one in told.get_all("Classifier") or [] if one.startswith("License ::")]
    licence = " ".join([told.get("License-Expression") or "", *classifiers, (told.get("License") or "")[:80]])
    assert re.search(r"Apache|MIT|BSD", licence), licence
    assert "GPL" not in licence


def repository(folder: Path, changelog: str, version: str = "1.2.3") -> Path:
    (folder / "pyproject.toml").write_text(f'[project]\nversion = "{version}"\n')
    (folder / "CHANGELOG.md").write_text(changelog)
    who = ("-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false")
    for words in (("init", "--quiet"), ("add", "."), (*who, "commit", "--quiet", "--message", "all")):
        subprocess.run(["git", *words], cwd=folder, check=True)
    return folder


def test_what_is_released_is_its_tag(tmp_path: Path) -> None:
    root = repository(tmp_path, "# Changes\n\n## 1.2.3 (2026-11-29)\n")
    with pytest.raises(LookupError, match=r"no tag v1\.2\.3.*git tag v1\.2\.3"):
        release.tag_of(root)
    subprocess.run(["git", "tag", "v1.2.3"], cwd=root, check=True)
    assert release.tag_of(root) == "v1.2.3"
    (root / "pyproject.toml").write_text('[project]\nversion = "1.2.4"\n')
    subprocess.run(["git", "tag", "v1.2.4"], cwd=root, check=True)
    with pytest.raises(LookupError, match=r"v1\.2\.4 is on a commit.*another version"):
        release.tag_of(root)


@pytest.mark.parametrize("changelog", ["# Changes\n\n## Unreleased\n", "## 1.2.30\n", "1.2.3\n"])
def test_nothing_is_released_without_its_section_of_the_changelog(tmp_path: Path, changelog: str) -> None:
    root = repository(tmp_path, changelog)
    subprocess.run(["git", "tag", "v1.2.3"], cwd=root, check=True)
    with pytest.raises(LookupError, match=r"no section `## 1\.2\.3`"):
        release.tag_of(root)


def test_the_build_is_pinned_and_the_changelog_has_the_form_that_a_release_asks_for() -> None:
    assert re.search(
        r'^requires = \["hatchling==[\d.]+"\]$', (release.ROOT / "pyproject.toml").read_text(), re.MULTILINE
    )
    assert re.search(r"^## \[?(Unreleased|\d)", (release.ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_what_breaks_beyond_our_pins_is_listed(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite><testcase classname="tests.unit.a" name="fine"/>'
        '<testcase classname="tests.unit.a" name="bad"><failure message="no attribute x&#10;more"/></testcase>'
        '<testcase classname="tests.unit.b" name="worse"><error>ImportError: y</error></testcase>'
        "</testsuite></testsuites>"
    )
    assert beyond.failures(report) == [("tests.unit.a.bad", "no attribute x"), ("tests.unit.b.worse", "ImportError: y")]


def test_which_releases_are_beyond_our_pins_is_said() -> None:
    inside = {"prefect": version("prefect"), "zenml": version("zenml"), "modal": version("modal")}
    assert beyond.tried(inside).endswith(": all of them within our pins.")
    said = beyond.tried({**inside, "prefect": "99.0.0rc1"})
    assert re.search(r"prefect 99\.0\.0rc1 \(we say [^)]*<\d", said)
    assert "within" not in said
    assert said.count("we say") == 1
