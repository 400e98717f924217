"""Projects that know nothing of labs: their runs of pytest are as they were without the plugin."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

pytest_plugins = "pytester"

OPTIONS = (
    "-p", "no:cacheprovider", "-p", "no:unraisableexception", "-p", "no:randomly",
    "-p", "no:hypothesispytest",
    # Ours has been imported by the pytest that runs this test.
    "-W", "ignore:Module already imported:pytest.PytestAssertRewriteWarning",
    "-p", "testinfra.plugin",
)  # fmt: skip
OURS = ("-p", "testbed.pytest_plugin")
VARIES = re.compile(r"\d+\.\d+s|0x[0-9a-f]+")  # times, and addresses of objects

INI = """
[pytest]
addopts = --strict-markers --strict-config
filterwarnings = error
markers =
    needs(what): hardware that a test needs
    claim(ticket): the ticket that a test is for
    alone: runs by itself
    lab(name): the room
    node(name): the seat
    testbed(kind): their own bed of tests
"""

CONFTEST = """
import pytest

@pytest.fixture(scope="session")
def lab():
    return "a room with benches"

@pytest.fixture(params=["left", "right"])
def node(request, lab):
    return f"{request.param} of {lab}"

@pytest.fixture
def nodes():
    return 3

@pytest.fixture
def fault():
    raise RuntimeError("their own fault")

@pytest.fixture
def observe():
    return print

@pytest.fixture
def host():
    return "their host"

@pytest.fixture(autouse=True)
def topology(request):
    return request.node.name

def pytest_addoption(parser):
    parser.addoption("--lab", default="none")
    parser.addini("lab", "their own")

def pytest_generate_tests(metafunc):
    if "bench" in metafunc.fixturenames:
        metafunc.parametrize("bench", [1, 2])

def pytest_collection_modifyitems(items):
    for item in items:
        mark = item.get_closest_marker("needs")
        if mark and mark.args == ("gpu",):
            item.add_marker(pytest.mark.skip(reason="no gpu"))
"""

TESTS = """
import unittest, warnings
import pytest

pytestmark = [pytest.mark.lab("cold"), pytest.mark.testbed("iron")]

@pytest.mark.needs("gpu")
def test_left_out(): pass

@pytest.mark.needs("docker", "teapot", 3)
@pytest.mark.claim("ticket-7")
@pytest.mark.alone
def test_marks(lab, nodes): assert (lab, nodes) == ("a room with benches", 3)

@pytest.mark.claim
@pytest.mark.needs
def test_bare_marks(observe): observe("seen")

@pytest.mark.claim(ticket=7)
@pytest.mark.node("n")
def test_parameters(node, bench): assert node.endswith(" of a room with benches")

def test_host(host): assert host == "their host"

def test_fault(fault): pass

@pytest.mark.claim("ticket-8")
def test_fails(): assert [1, 2, 3] == [1, 2, 4]

@pytest.mark.claim("ticket-9")
@pytest.mark.xfail(strict=True)
def test_xfails(): assert 0

def test_skips(): pytest.skip("no lab was named")

def test_warns(): warnings.warn("a warning of theirs")

class Old(unittest.TestCase):
    @pytest.mark.claim("ticket-10")
    def test_old(self): self.assertEqual(1, 2)
"""

TESTINFRA = """
testinfra_hosts = ["local://"]

def test_a_machine(host):
    assert host.backend.get_pytest_id() == "local"
    assert host.run("exit 3").rc == 3
"""

BROKEN = """
import pytest

def pytest_generate_tests(metafunc):
    raise RuntimeError("their own hook")

@pytest.mark.needs("gpu")
def test_it(thing): pass
"""

ALL_SKIPPED = """
import pytest

@pytest.mark.needs("gpu")
def test_it(lab): pytest.skip("no gpu")
"""


@dataclass(frozen=True)
class Ran:
    """A run of pytest that has ended, less what differs each time."""

    status: int
    said: str


Run = Callable[..., Ran]


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs pytest on the project, in this process."""
    for name in ("TESTBED_LAB", "PYTEST_ADDOPTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")

    def ran(*arguments: str) -> Ran:
        done = pytester.runpytest_inprocess(*OPTIONS, *arguments)
        said = VARIES.sub("", done.stdout.str() + done.stderr.str())
        return Ran(int(done.ret), said)

    return ran


@pytest.mark.parametrize(
    ("arguments", "env"),
    [
        (["-rA", "-v", "--lab=x"], {}),
        (["-rA", "--tb=long", "--showlocals", "-k", "fail or host"], {}),
        (["-rA", "--setup-show", "--tb=native"], {"TESTBED_LAB": "not-up"}),
        (["--collect-only", "-m", "claim"], {"TESTBED_LAB": "not-up"}),
    ],
    ids=str,
)
def test_a_project_of_the_same_words_is_as_it_was(
    arguments: list[str],
    env: dict[str, str],
    pytester: pytest.Pytester,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytester.makeini(INI)
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(test_theirs=TESTS)
    without = run(*arguments)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert run(*OURS, *arguments) == without
    assert without.status in {0, 1}, without.said


@pytest.mark.parametrize(
    ("text", "status"),
    [(TESTINFRA, 0), (BROKEN, 2), (ALL_SKIPPED, 0), ("", 5)],
    ids=["testinfra", "broken", "skipped", "empty"],
)
def test_the_end_is_as_it_was(text: str, status: int, pytester: pytest.Pytester, run: Run) -> None:
    pytester.makepyfile(test_theirs=text)
    if "(lab)" in text:
        pytester.makeconftest("import pytest\n\n@pytest.fixture\ndef lab(): return 1\n")
    without = run("-rA", "-v")
    assert run(*OURS, "-rA", "-v") == without
    assert without.status == status, without.said


def test_no_mark_of_a_general_name_is_known(pytester: pytest.Pytester, run: Run) -> None:
    words = ("needs", "claim", "alone")
    pytester.makepyfile(
        "import pytest\n"
        + "".join(
            f"try: pytest.mark.{word}\nexcept BaseException as error: print(error)\n"
            for word in words
        )
    )
    # A process of its own: pytest remembers the marks of all runs of one.
    options = (*OPTIONS, *OURS, "--strict-markers", "-s")
    said = pytester.runpytest_subprocess(*options).stdout.str()
    listed = run(*OURS, "--markers").said
    for word in words:
        assert f"'{word}' not found in `markers`" in said
        assert f"@pytest.mark.{word}" not in listed
        assert f"@pytest.mark.testbed_{word}" in listed


def test_all_options_have_the_prefix(run: Run) -> None:
    def options(*plugins: str) -> set[str]:
        return set(re.findall(r"^ +(-[-\w]+)", run(*plugins, "--help").said, re.MULTILINE))

    ours = options(*OURS) - options()
    assert "--testbed-lab" in ours
    assert all(option.startswith("--testbed-") for option in ours)


def test_a_lab_fixture_that_overrides_and_uses_ours_is_ours(
    pytester: pytest.Pytester, run: Run
) -> None:
    pytester.makeconftest("import pytest\n\n@pytest.fixture\ndef lab(lab): return lab\n")
    pytester.makepyfile("def test_it(lab): pass\n")
    done = run(*OURS, "-rs")
    assert done.status == pytest.ExitCode.NO_TESTS_COLLECTED
    assert "--testbed-lab" in done.said


@pytest.mark.parametrize(
    "text",
    [
        "@pytest.mark.testbed_needs('gpu')\ndef test_it(): pass\n",
        "@pytest.mark.testbed_claim('ticket-7')\ndef test_it(): pass\n",
        "@pytest.mark.testbed_needs('gpu')\nclass TestIt:\n    def test_it(self): pass\n",
    ],
)
def test_an_unknown_word_in_a_mark_of_ours_is_refused(
    text: str, pytester: pytest.Pytester, run: Run
) -> None:
    pytester.makepyfile(f"import pytest\n\n{text}")
    assert run(*OURS).status == pytest.ExitCode.USAGE_ERROR


def test_a_mark_of_ours_beside_a_lab_fixture_of_theirs(pytester: pytest.Pytester, run: Run) -> None:
    """It asks for a lab of containers, and theirs is none."""
    pytester.makeconftest("import pytest\n\n@pytest.fixture\ndef lab(): return 'a room'\n")
    pytester.makepyfile(
        "import pytest\n\n@pytest.mark.testbed_needs('docker')\ndef test_it(lab): pass\n"
        "def test_theirs(lab): assert lab == 'a room'\n"
    )
    done = run(*OURS, "-rA")
    assert done.status == pytest.ExitCode.OK, done.said
    assert "1 passed, 1 skipped" in done.said


@pytest.mark.thorough
@pytest.mark.source
def test_workers_of_xdist_tell_what_they_have_counted(pytester: pytest.Pytester, run: Run) -> None:
    pytest.importorskip("xdist")
    distributed = (*OURS, "-p", "xdist", "-n", "1")
    pytester.makepyfile("def test_it(lab): pass\ndef test_too(lab): pass\n")
    done = run(*distributed)
    assert done.status == pytest.ExitCode.NO_TESTS_COLLECTED, done.said
    assert "nothing was tested" in done.said
    pytester.makeconftest("import pytest\n\n@pytest.fixture\ndef lab(): pytest.skip('closed')\n")
    assert run(*distributed).status == pytest.ExitCode.OK


LOADED = """
import os, sys, pytest
before = set(sys.modules)
status = pytest.main(sys.argv[1:])
print("loaded", *sorted(name for name in sys.modules if name.split(".")[0] == "testbed"))
sys.exit(status)
"""


@pytest.mark.parametrize("testinfra", [True, False])
def test_next_to_nothing_is_loaded(testinfra: bool, pytester: pytest.Pytester) -> None:
    """pytest loads the plugin in every project, also in those that know nothing of labs."""
    pytester.makeconftest(CONFTEST.replace("autouse=True", ""))
    pytester.makepyfile(test_theirs="def test_it(lab, host): assert lab\n")
    pytester.makeini(INI)
    env = {key: value for key, value in os.environ.items() if key != "TESTBED_LAB"}
    options = OPTIONS if testinfra else OPTIONS[:-2]
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *options, *OURS],
        env=env | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    hostspec = ["testbed.hostspec"] if testinfra else []
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("loaded")]
    assert line.split() == ["loaded", "testbed", *hostspec, "testbed.pytest_plugin"]
