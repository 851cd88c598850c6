"""The doctor's findings where no server is needed: real packages, folders and a registry on loopback."""

from __future__ import annotations

import ast
import base64
import io
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from threading import Barrier

import pytest
import zenml
from packaging.requirements import Requirement
from prefect.settings import PREFECT_API_URL, temporary_settings
from rich.console import Console

import bridge
from bridge.doctor import installation, prefect_side, registry, trip, zenml_side
from bridge.doctor.clocks import compared
from bridge.doctor.examination import CHECKS, Check, examine_by
from bridge.doctor.finding import Finding, Grade, told
from bridge.doctor.patient import Patient, Unmet
from bridge.doctor.show import as_json, show, summary
from bridge.errors import BridgeError, PrefectUnavailable, RunNotPossible
from bridge.flow_run.outcome import End, SandboxEnd
from bridge.prefect_side.prefect_api import prefect_api, prefect_settings
from bridge.settings import ModalPrefectOrchestratorConfig
from tests.servers import ROOT, clean_environment
from tests.serving import serving_at


class TestAMessageBecomesAFinding:
    def test_what_is_wrong_and_what_to_do(self) -> None:
        found = told("stack", Grade.PROBLEM, "registry=`x` is local, v1.2 too. Use a remote one. Or none.", "")
        assert (found.what, found.fix) == ("registry=`x` is local, v1.2 too", "Use a remote one. Or none.")

    def test_one_sentence(self) -> None:
        found = told("stack", Grade.PROBLEM, "It broke.", "Mend it")
        assert (found.what, found.fix) == ("It broke", "Mend it")


def findings_in(source: Path) -> Iterator[tuple[int, set[str], list[ast.expr]]]:
    """Each finding that a module makes: its line, the grades that are named, and the arguments."""
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("Finding", "told"):
            arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
            named = [part.attr for part in ast.walk(arguments[1]) if isinstance(part, ast.Attribute)]
            yield node.lineno, {name for name in named if name in Grade.__members__}, arguments


def test_whatever_could_be_better_comes_with_a_fix() -> None:
    """Read from the source: no environment has all of it."""
    bare, counted = [], 0
    for source in sorted(Path(installation.__file__).parent.glob("*.py")):
        for line, grades, arguments in findings_in(source):
            if grades and grades <= {"OK", "SKIPPED"}:
                continue
            counted += 1
            fix = ast.walk(arguments[3]) if len(arguments) == 4 else iter(())
            said = [part for part in fix if not (isinstance(part, ast.Constant) and part.value in ("", None))]
            if not said:
                bare.append(f"{source.name}:{line}")
    assert bare == []
    assert counted > 25


class TestTheInstallation:
    def test_this_one_is_fine(self) -> None:
        found = [*installation.system(), *installation.versions(), *installation.import_name()]
        assert [finding.grade for finding in found] == [Grade.OK] * 3, found

    def test_windows(self) -> None:
        (found,) = installation.system("win32")
        assert (found.grade, "WSL" in found.fix) == (Grade.PROBLEM, True)

    def test_an_old_python(self) -> None:
        (found,) = installation.system(python="3.9.18")
        assert "Python 3.9.18" in found.what
        assert ">=3.10" in found.fix

    def test_versions_that_do_not_fit(self) -> None:
        wanted = ["click>=1", "click>=99", "nobody-has-this>=1", "nobody-needs-this; extra == 'local'"]
        found = installation.unfit(wanted)
        assert [finding.fix for finding in found] == ["pip install 'click>=99'", "pip install 'nobody-has-this>=1'"]

    def test_a_folder_of_the_users_that_is_called_bridge(self, tmp_path: Path) -> None:
        (tmp_path / "bridge").mkdir()
        (tmp_path / "bridge" / "__init__.py").touch()
        (found,) = installation.import_name(tmp_path)
        assert found.grade is Grade.PROBLEM
        assert str(tmp_path / "bridge") in found.what
        assert found.fix.startswith(f"Rename {tmp_path / 'bridge'}")

    def test_a_module_of_the_users_that_is_called_bridge(self, tmp_path: Path) -> None:
        (tmp_path / "bridge.py").touch()
        (found,) = installation.import_name(tmp_path)
        assert str(tmp_path / "bridge.py") in found.what

    def test_another_distribution_that_ships_bridge(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        info = tmp_path / "span-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: span\nVersion: 1.0\n")
        (info / "top_level.txt").write_text("bridge\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        found = list(installation.import_name())
        assert [finding.grade for finding in found] == [Grade.PROBLEM]
        assert found[0].fix.startswith("pip uninstall span && pip install")

    def test_a_program_elsewhere_gets_ours(self, tmp_path: Path) -> None:
        (found,) = installation.import_name(tmp_path)
        assert (found.grade, found.what) == (Grade.OK, f"`bridge` is {Path(bridge.__file__).parent}")


class TestPrefectsApi:
    def test_a_server_that_says_nothing_is_waited_for_once(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as mute:
            url = f"http://127.0.0.1:{mute.getsockname()[1]}/api"
            with temporary_settings({PREFECT_API_URL: url}), pytest.raises(PrefectUnavailable, match=url):
                list(prefect_side.own_api(Patient()))
            mute.setblocking(False)
            mute.accept()[0].close()
            with pytest.raises(BlockingIOError):
                mute.accept()


class TestTheOrder:
    def test_servers_are_asked_side_by_side_and_told_in_order(self) -> None:
        """Those that don't answer cost one wait, not one each."""
        asked = Barrier(3)

        def asks(name: str) -> Check:
            def check(patient: Patient) -> Iterator[Finding]:
                asked.wait(30)
                yield Finding(name, Grade.UNKNOWN, "no answer")

            return check

        servers = [(name, asks(name)) for name in ("prefect api", "modal", "clocks")]
        work_pool = ("work pool", lambda patient: iter([Finding("work pool", Grade.OK, "never")]))
        found = list(examine_by([servers[0], work_pool, *servers[1:]], Patient()))
        assert [(one.check, one.grade) for one in found] == [
            ("prefect api", Grade.UNKNOWN),
            ("work pool", Grade.SKIPPED),
            ("modal", Grade.UNKNOWN),
            ("clocks", Grade.UNKNOWN),
        ]

    def test_an_error_is_a_finding_and_what_needs_it_is_skipped(self) -> None:
        def broken(patient: Patient) -> Iterator[Finding]:
            raise RunNotPossible("The store is closed. Open it.")
            yield

        def never(patient: Patient) -> Iterator[Finding]:
            raise AssertionError("looked at though its need isn't met")
            yield

        def fine(patient: Patient) -> Iterator[Finding]:
            yield Finding("modal", Grade.OK, "fine")

        found = list(examine_by([("zenml server", broken), ("stack", never), ("other", fine)], Patient()))
        assert found == [
            Finding("zenml server", Grade.PROBLEM, "The store is closed", "Open it."),
            Finding("stack", Grade.SKIPPED, "mend zenml server first"),
            Finding("modal", Grade.OK, "fine"),
        ]

    def test_what_breaks_a_check_off_is_a_finding_and_the_others_go_on(self) -> None:
        """A defect as much as an odd environment: it is told by its name."""

        def broken(patient: Patient) -> Iterator[Finding]:
            yield Finding("zenml server", Grade.OK, "fine so far")
            raise ZeroDivisionError("division by zero\nand more")

        def never(patient: Patient) -> Iterator[Finding]:
            raise AssertionError("looked at though its need isn't met")
            yield

        def fine(patient: Patient) -> Iterator[Finding]:
            yield Finding("modal", Grade.OK, "fine")

        checks = [("zenml server", broken), ("stack", never), ("clocks", broken), ("other", fine)]
        first, told, skipped, *_, other = examine_by(checks, Patient())
        assert (first.what, told.grade) == ("fine so far", Grade.UNKNOWN)
        assert told.what == "the check broke off (ZeroDivisionError: division by zero)"
        assert (skipped.grade, skipped.what, other.what) == (Grade.SKIPPED, "mend zenml server first", "fine")

    def test_not_being_able_to_ask_is_no_problem_found(self) -> None:
        def away(patient: Patient) -> Iterator[Finding]:
            raise PrefectUnavailable("Prefect is away. Wait.")
            yield

        def unmet(patient: Patient) -> Iterator[Finding]:
            raise Unmet("there is no stack")
            yield

        found = list(examine_by([("prefect api", away), ("registry", unmet)], Patient()))
        assert [finding.grade for finding in found] == [Grade.UNKNOWN, Grade.SKIPPED]


def doctor(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Call the command, in an environment in which nothing of ZenML, Prefect and Modal is configured but this."""
    return subprocess.run(
        [sys.executable, "-c", "from bridge.cli import main; main()", "doctor", *arguments],
        env={**clean_environment(), "ZENML_CONFIG_PATH": str(folder), "PREFECT_HOME": str(folder), **environment},
        cwd=ROOT,
        capture_output=True,
        check=False,
    )


class TestHalfConfiguredEnvironments:
    @pytest.mark.parametrize("store", [{"ZENML_STORE_URL": "localhost:8080"}, {"ZENML_STORE_TYPE": "rest"}])
    def test_each_check_that_breaks_off_is_a_finding(self, store: dict[str, str], tmp_path: Path) -> None:
        wrong = {"PREFECT_API_URL": "http://localhost:42o0/api", "SSL_CERT_FILE": str(tmp_path / "gone.pem")}
        said = doctor(tmp_path, "--json", **store, **wrong)
        assert said.returncode == 1, said.stderr.decode()
        found = {one["check"]: one for one in json.loads(said.stdout)["findings"]}
        assert list(found) == [name for name, _ in CHECKS]
        assert "ZenML's server can't be used" in found["zenml server"]["what"]
        assert "http://localhost:42o0/api can't be used" in found["prefect api"]["what"]
        assert all(one["fix"] for one in found.values() if one["grade"] in ("problem", "unknown"))

    def test_a_terminal_that_has_no_tick(self, tmp_path: Path) -> None:
        wrong = {"ZENML_STORE_URL": "localhost:8080", "PREFECT_API_URL": "http://localhost:42o0/api"}
        said = doctor(tmp_path, **wrong, PYTHONIOENCODING="latin-1")
        assert said.returncode == 1, said.stderr.decode()
        assert said.stdout.startswith(b"\\u2713 system"), said.stdout

    @pytest.mark.parametrize("url", ["http://[::1/api", "http://localhost:42o0/api"])
    def test_a_component_with_a_url_that_is_none(self, url: str) -> None:
        config = ModalPrefectOrchestratorConfig(prefect_api_url=url)
        with pytest.raises(BridgeError, match=re.escape(url)), prefect_settings(config), prefect_api() as client:
            client.read_work_pools(limit=1)

    def test_a_url_that_is_none_has_no_clock(self) -> None:
        assert list(compared([("nobody", "http://localhost:42o0/api/health")])) == []

    def test_a_registry_with_an_address_that_is_none(self) -> None:
        (found,) = registry.asked("registry.example.com:port/x", None, "mine")
        assert found.grade is Grade.UNKNOWN
        assert "registry.example.com:port/x can't be asked (InvalidURL" in found.what

    def test_a_registry_behind_somebody_s_login_page(self) -> None:
        class Login(_Registry):
            def do_GET(self) -> None:
                if self.path.startswith("/token"):
                    self._answer(200, b"<html>please log in</html>")
                else:
                    super().do_GET()

        with serving_at(Login) as address:
            (found,) = registry.asked(f"{address}/team", ("ada", "secret"), "mine")
        assert found.grade is Grade.UNKNOWN
        assert f"{address}/team can't be asked (JSONDecodeError" in found.what


FINDINGS = [
    Finding("modal", Grade.OK, "fine"),
    Finding("stack", Grade.PROBLEM, "a long story " * 12, "Tell it again"),
    Finding("clocks", Grade.UNKNOWN, "[bold]no markup", "Ask"),
]


class TestShowing:
    def test_a_program_gets_json(self) -> None:
        said = json.loads(as_json(FINDINGS))
        assert said["ok"] is False
        assert said["findings"][1]["fix"] == "Tell it again"
        assert json.loads(as_json(FINDINGS[:1]))["ok"] is True

    def test_a_file_gets_whole_lines_without_colours(self) -> None:
        out = io.StringIO()
        for finding in FINDINGS:
            show(Console(file=out, width=40), finding)
        lines = out.getvalue().splitlines()
        assert len(lines) == 5
        assert lines[1].endswith("a long story ")
        assert lines[2].strip() == "→ Tell it again"
        assert "[bold]no markup" in lines[3]
        assert "\x1b" not in out.getvalue()

    def test_a_terminal_gets_colours_and_what_fits(self) -> None:
        out = io.StringIO()
        show(Console(file=out, width=60, force_terminal=True, color_system="standard"), FINDINGS[1])
        assert "\x1b[" in out.getvalue()
        assert len(out.getvalue().splitlines()) > 3
        assert out.getvalue().count("story") == 12

    def test_the_summary(self) -> None:
        assert summary(FINDINGS) == "1 to be mended, 1 couldn't be asked."
        assert summary(FINDINGS[:1]) == "Nothing is wrong."


NEEDED = [Requirement("boto3"), Requirement("s3fs>=2022")]
FINE = {"zenml": zenml.__version__, "boto3": "1.40.0", "s3fs": "2025.1.0"}


def judged(*lines: str, end: SandboxEnd | None = None, address: str = "") -> list[Finding]:
    """What is found where a sandbox has written ``lines`` and ended."""
    seen = trip.Seen(end or SandboxEnd(End.EXITED, 0), list(lines), 1.5)
    return list(trip.judge(seen, "ml:1", address, NEEDED))


def answer(versions: Mapping[str, str | None] = FINE, unreachable: str = "") -> str:
    """What the program in the sandbox says of it."""
    said = {"python": "3.11.7", "versions": versions, "unreachable": unreachable}
    return f"modal-prefect doctor: {json.dumps(said)}"


class TestTheRoundTrip:
    URL = "https://zenml.example.com"

    def test_all_is_there(self) -> None:
        (found,) = judged("a line of the image's own", answer(), address=f"{self.URL}/health")
        said = "1.5 s through a sandbox of image ml:1: Python 3.11.7, ZenML's server within reach"
        assert found == Finding("round trip", Grade.OK, said)
        (found,) = judged(answer())
        assert found.what.endswith("Python 3.11.7"), "nobody was asked"

    def test_no_python(self) -> None:
        (found,) = judged("exec: python: not found", end=SandboxEnd(End.EXITED, 127))
        assert found.grade is Grade.PROBLEM
        assert "a sandbox of image ml:1 ended without an answer" in found.what
        assert found.what.endswith("127): exec: python: not found")
        assert "needs a `python`" in found.fix

    def test_only_the_end_of_a_long_output_is_quoted(self) -> None:
        (found,) = judged("x" * 5000 + " the end")
        assert found.what.endswith("the end")
        assert len(found.what) < 500

    def test_the_server_is_out_of_reach(self) -> None:
        why = "URLError: <urlopen error [Errno -2] Name or service not known>"
        (found,) = judged(answer(unreachable=why), address=f"{self.URL}/health")
        assert found.grade is Grade.PROBLEM
        assert found.what == f"a sandbox can't reach ZenML's server at {self.URL} ({why})"
        assert "reachable from the internet" in found.fix

    @pytest.mark.parametrize(
        ("versions", "what", "wanted"),
        [
            ({"boto3": None}, "boto3 is missing, and boto3 is needed", "boto3"),
            ({"s3fs": "2021.4.0"}, "s3fs is 2021.4.0, and s3fs>=2022 is needed", "s3fs>=2022"),
            ({"zenml": "0.1.0"}, "zenml is 0.1.0, and zenml==", "zenml=="),
        ],
    )
    def test_a_package_that_is_missing_or_too_old(
        self, versions: Mapping[str, str | None], what: str, wanted: str
    ) -> None:
        (found,) = judged(answer({**FINE, **versions}))
        assert found.grade is Grade.PROBLEM
        assert f"in a sandbox of image ml:1 {what}" in found.what
        assert f"DockerSettings(requirements=['{wanted}" in found.fix


class _Registry(BaseHTTPRequestHandler):
    """A registry that speaks the scheme its path prefix names; `ada` with the password `secret` may enter."""

    scheme = "bearer"

    def do_GET(self) -> None:
        basic = "Basic " + base64.b64encode(b"ada:secret").decode()
        given = self.headers.get("Authorization", "")
        host = self.headers["Host"]
        if self.path.startswith("/token"):
            assert "service=here" in self.path
            self._answer(200 if given == basic else 401, json.dumps({"token": "good"}).encode())
        elif given == (basic if self.scheme == "basic" else "Bearer good"):
            self._answer(200)
        elif self.scheme == "basic":
            self._answer(401, header='Basic realm="here"')
        else:
            self._answer(401, header=f'Bearer realm="http://{host}/token",service="here"')

    def _answer(self, status: int, body: bytes = b"", header: str = "") -> None:
        self.send_response(status)
        if header:
            self.send_header("WWW-Authenticate", header)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Tests tell by their result."""


@contextmanager
def a_registry(scheme: str) -> Iterator[str]:
    with serving_at(type("Handler", (_Registry,), {"scheme": scheme})) as address:
        yield f"{address}/team"


@pytest.fixture(params=["bearer", "basic"])
def registry_uri(request: pytest.FixtureRequest) -> Iterator[str]:
    with a_registry(request.param) as uri:
        yield uri


class TestTheRegistry:
    def test_good_credentials(self, registry_uri: str) -> None:
        assert registry.log_in(registry_uri, ("ada", "secret")) == 200

    @pytest.mark.parametrize("pair", [("ada", "wrong"), None])
    def test_wrong_ones(self, registry_uri: str, pair: tuple[str, str] | None) -> None:
        assert registry.log_in(registry_uri, pair) == 401

    @pytest.mark.parametrize(
        ("uri", "base"),
        [
            ("docker.io/me", "https://registry-1.docker.io"),
            ("1234.dkr.ecr.eu-west-1.amazonaws.com", "https://1234.dkr.ecr.eu-west-1.amazonaws.com"),
            ("ghcr.io/me/images", "https://ghcr.io"),
            ("localhost:5000", "http://localhost:5000"),
            ("127.0.0.1:5000/x", "http://127.0.0.1:5000"),
        ],
    )
    def test_its_address(self, uri: str, base: str) -> None:
        assert registry.base_url(uri) == base


class TestTheReleasesOfServers:
    @pytest.mark.parametrize(
        ("differ", "there", "here", "package"),
        [
            (zenml_side.of_one_series, "0.97.3", "0.98.0", "zenml"),
            (prefect_side.of_one_major, "2.20.1", "3.8.0", "prefect"),
        ],
    )
    def test_another_one_than_the_client_s(
        self, differ: Callable[[str, str], Finding | None], there: str, here: str, package: str
    ) -> None:
        found = differ(there, here)
        assert found is not None
        assert found.grade is Grade.PROBLEM
        assert f"server is {there}, and the client here is {here}" in found.what
        assert f"pip install '{package}=={there}'" in found.fix
        assert here in found.fix

    def test_those_that_go_together(self) -> None:
        assert zenml_side.of_one_series("0.98.9", "0.98.0") is None
        assert prefect_side.of_one_major("3.7.7", "3.9.0") is None


class _Clock(BaseHTTPRequestHandler):
    """Says that it is ``ahead`` seconds later than it is, if it says anything."""

    ahead: float | None = 0.0

    def do_GET(self) -> None:
        self.send_response_only(200)
        if self.ahead is not None:
            self.send_header("Date", formatdate(time.time() + self.ahead, usegmt=True))
        self.send_header("Content-Length", "0")
        self.end_headers()


def seen_of(*clocks: float | None) -> list[Finding]:
    """What is found of servers with these clocks."""
    with ExitStack() as stack:
        servers = [stack.enter_context(serving_at(type("Handler", (_Clock,), {"ahead": ahead}))) for ahead in clocks]
        return list(compared([(f"server {index}", f"http://{address}/") for index, address in enumerate(servers)]))


class TestTheClocks:
    @pytest.mark.parametrize(
        ("ahead", "grade", "says"),
        [
            (120.0, Grade.PROBLEM, "behind server 0"),
            (-120.0, Grade.PROBLEM, "ahead of server 0"),
            (10.0, Grade.NOTE, "behind server 0"),
            (-10.0, Grade.NOTE, "ahead of server 0"),
        ],
    )
    def test_one_that_is_wrong(self, ahead: float, grade: Grade, says: str) -> None:
        (found,) = seen_of(ahead)
        assert found.grade is grade
        seconds = re.search(r"this machine's clock is (\d+) s", found.what)
        assert seconds is not None, found.what
        assert abs(int(seconds[1]) - abs(ahead)) <= 2
        assert found.what.endswith(says)
        assert "timedatectl set-ntp true" in found.fix

    def test_those_that_agree(self) -> None:
        assert seen_of(0.0, 0.0) == [Finding("clocks", Grade.OK, "agrees with server 0 and server 1")]

    def test_one_that_agrees_beside_one_that_does_not(self) -> None:
        assert [one.grade for one in seen_of(120.0, 0.0)] == [Grade.PROBLEM, Grade.OK]

    def test_who_says_nothing_is_not_judged(self) -> None:
        """Nor who isn't there at all: that is another check's matter."""
        assert seen_of(None) == []
        assert list(compared([("nobody", "http://127.0.0.1:9/")])) == []
