"""testinfra's hosts of a lab: hostspecs, what they are confined to, and runs of pytest with them.

Labs are fakes here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
import testinfra
import testinfra.backend
import testinfra.plugin

from testbed import hosts, hostspec, pytest_plugin
from testbed.errors import NoSuchLab, NoSuchNode, NothingTested, UsageError
from testbed.labs.state import Record, State
from testbed.nodes.base import NodeSpec
from testbed.nodes.fake import FakeProvider
from testbed.nodes.testinfra_backend import host_of
from testbed.suites import runner
from testbed.suites.model import Selection
from testbed.topology.load import Overrides, load

if TYPE_CHECKING:
    from testbed.labs.live import LiveLab
    from testbed.nodes.base import Node

pytest_plugins = "pytester"
TWO_NODE = load("two-node")
COLLECTS = "no:unraisableexception"  # all garbage, several times
NODES = ["node1", "node2", "outside"]
HOSTS_LEND = hosts.lend


class FakeLab:
    """All that hosts ask of a LiveLab."""

    def __init__(self, name: str = "two-node") -> None:
        self.name = name
        self.topology = TWO_NODE
        self.facts: dict[str, str] = {}
        self.provider = FakeProvider()
        self.nodes = {node: self.provider.create_one(name, NodeSpec(node, "d")) for node in NODES}

    def node(self, name: str) -> Node:
        return self.nodes[name]

    def close(self) -> None:
        return


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    """Every test finds testinfra's table and caches as if it were the first."""
    before = hostspec.confine(None)
    hostspec.register()
    caches = (testinfra.host.Host._host_cache, testinfra.host.Host._hosts_cache)
    kept = [dict(cache) for cache in caches]
    for cache in caches:
        cache.clear()
    yield
    for cache, old in zip(caches, kept, strict=True):
        cache.clear()
        cache.update(old)
    hosts.close()
    hostspec.confine(before)


@pytest.fixture
def two_node() -> FakeLab:
    lab = FakeLab()
    hosts.lend(cast("LiveLab", lab))
    return lab


def test_a_lab_means_all_its_nodes(two_node: FakeLab) -> None:
    found = testinfra.get_hosts(["testbed://two-node"])
    assert [host.backend.get_pytest_id() for host in found] == [
        f"testbed://two-node/{node}" for node in NODES
    ]
    assert [host.backend.get_hostname() for host in found] == NODES


def test_a_node_runs_the_commands(two_node: FakeLab) -> None:
    host = testinfra.get_host("testbed://two-node/node2")
    assert host.run("echo %s", "a b").rc == 0
    (call,) = [call for call in two_node.provider.machine.calls if call.words[:1] == ("/bin/sh",)]
    assert (call.node, call.words) == ("node2", ("/bin/sh", "-c", "echo 'a b'"))


def test_parameters_are_testinfras_own(two_node: FakeLab) -> None:
    host = testinfra.get_host("testbed://two-node/node1?sudo=true&sudo_user=nobody")
    assert host.backend.get_command("id") == "sudo -u nobody /bin/sh -c id"


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        ("testbed://two-node/node9", NoSuchNode),
        ("testbed://no-such-lab", NoSuchLab),
        ("testbed://two-node/node1/web/more", UsageError),
        ("testbed://two-node//web", UsageError),
        ("testbed:///node1", UsageError),
    ],
)
def test_what_is_no_place_of_a_lab(
    spec: str, error: type[Exception], two_node: FakeLab, state: Path
) -> None:
    with pytest.raises(error):
        hosts.resolve(spec)


def test_a_whole_lab_is_not_one_host(two_node: FakeLab) -> None:
    with pytest.raises(UsageError):
        testinfra.get_host("testbed://two-node")


@pytest.mark.parametrize(
    "spec", ["local://", "ssh://node1", "docker://web", "node9", "testbed://other/node1"]
)
def test_a_run_for_a_lab_refuses_every_other_host(spec: str, two_node: FakeLab) -> None:
    hostspec.confine(["two-node"])
    for ask in (testinfra.get_host, hosts.resolve, lambda spec: testinfra.get_hosts([spec])):
        with pytest.raises(UsageError, match=r"not a node of lab two-node"):
            ask(spec)


def test_a_run_for_a_lab_takes_names_of_its_nodes(two_node: FakeLab) -> None:
    hostspec.confine(["two-node"])
    assert testinfra.get_host("node1").backend.get_pytest_id() == "testbed://two-node/node1"
    assert hosts.resolve(None) == [f"testbed://two-node/{node}" for node in NODES]


def test_a_run_without_a_lab_refuses_all() -> None:
    hostspec.confine([])
    for spec in (None, "local://", "testbed://two-node/node1"):
        with pytest.raises(UsageError):
            hosts.resolve(spec)


def test_other_projects_hosts_are_as_they_were() -> None:
    for spec in (None, "web", "ssh://user@web:22?sudo=true", "docker://web", "local://"):
        assert testinfra.backend.parse_hostspec(spec) == hostspec.original(spec)
    assert hosts.resolve("ssh://web") == ["ssh://web"]
    assert testinfra.get_host("local://").run("true").rc == 0


def test_no_host_of_a_lab_runs_commands_on_this_machine(two_node: FakeLab) -> None:
    for host in (testinfra.get_host("testbed://two-node/node1"), host_of(two_node.node("node1"))):
        with pytest.raises(UsageError):
            host.backend.run_local("true")


# -- whole runs of pytest ----------------------------------------------------------

LAB = "def test_it(lab):\n    assert lab.name == 'two-node'\n"
HOST = "def test_it(host):\n    assert host.run('true').rc == 0\n"
OTHER = "def test_other():\n    pass\n"
SKIPPED = "import pytest\n\n@pytest.mark.skip\ndef test_it(host):\n    pass\n"


@dataclass(frozen=True)
class Ran:
    """A run of pytest that has ended."""

    status: int
    said: str


Pytest = Callable[..., Ran]


@pytest.fixture
def run(pytester: pytest.Pytester, state: Path, monkeypatch: pytest.MonkeyPatch) -> Pytest:
    """Runs pytest on one module, while the lab two-node is up; ``env`` are variables."""
    monkeypatch.delenv("TESTBED_LAB", raising=False)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # others' plugins take their time

    def ran(text: str, *arguments: str, plugins: Sequence[object] = (), **env: str) -> Ran:
        hosts.lend(cast("LiveLab", FakeLab()))
        pytester.makepyfile(test_small=text)
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        ours = (testinfra.plugin, pytest_plugin)  # by name, all distributions would be read
        # Not from the root on: on the way are the folders of all other tests.
        options = ["-rA", "-c", os.devnull, "--rootdir", ".", "--confcutdir", "."]
        options += ["-p", "no:cacheprovider", "-p", COLLECTS]
        done = pytester.runpytest_inprocess(
            *options, "test_small.py", *arguments, plugins=[*ours, *plugins]
        )
        return Ran(int(done.ret), done.stdout.str() + done.stderr.str())

    return ran


@pytest.mark.parametrize(
    ("text", "arguments", "env", "status"),
    [
        # A lab that is named and not up ends the run before any test.
        (LAB + OTHER, ["--testbed-lab=typo"], {}, 4),
        (OTHER, ["--testbed-lab=typo"], {}, 4),
        (OTHER, ["--testbed-lab="], {}, 4),
        (LAB + OTHER, [], {"TESTBED_LAB": "typo"}, 4),
        (HOST + OTHER, [], {"TESTBED_LAB": "typo"}, 4),
        (OTHER, ["--hosts=testbed://typo"], {}, 4),
        (HOST, ["--hosts=testbed://two-node/typo"], {}, 4),
        ("testinfra_hosts = ['testbed://typo/node1']\n" + HOST + OTHER, [], {}, 4),
        # No host is outside of the lab that was named.
        (HOST, ["--testbed-lab=two-node", "--hosts=local://"], {}, 4),
        (HOST, ["--testbed-lab=two-node", "--hosts=testbed://other"], {}, 4),
        (HOST, ["--testbed-lab=two-node", "--connection=docker"], {}, 4),
        (HOST, ["--hosts=ssh://web"], {"TESTBED_LAB": "two-node"}, 4),
        ("testinfra_hosts = ['local://']\n" + HOST + OTHER, ["--testbed-lab=two-node"], {}, 4),
        ("import testinfra\ntestinfra.get_host('local://')", ["--testbed-lab=two-node"], {}, 2),
        # Nothing tested is not green, unless the run was not for a lab.
        (LAB, [], {}, 5),
        (LAB + OTHER, [], {}, 0),
        (SKIPPED, ["--testbed-lab=two-node"], {}, 5),
        (SKIPPED, [], {"TESTBED_LAB": "two-node"}, 5),
        (SKIPPED + OTHER, ["--testbed-lab=two-node"], {}, 0),
        (SKIPPED, [], {}, 0),
        (SKIPPED.replace("host", ""), [], {"TESTBED_LAB": "two-node"}, 0),
        (OTHER, [], {"TESTBED_LAB": "typo"}, 0),
        (
            "import pytest\n\n@pytest.mark.xfail\ndef test_it(lab):\n    assert 0\n",
            ["--testbed-lab=two-node"], {}, 0,
        ),
    ],
)  # fmt: skip
def test_the_exit_status(
    text: str, arguments: list[str], env: dict[str, str], status: int, run: Pytest
) -> None:
    done = run(text, *arguments, **env)
    assert done.status == status, done.said
    assert "INTERNALERROR" not in done.said
    if status == pytest.ExitCode.USAGE_ERROR:
        assert "passed" not in done.said
    assert ("nothing was tested" in done.said) == (status == 5)


@pytest.mark.parametrize("status", [0, 1])
def test_a_run_on_a_part_of_a_lab_says_so(
    run: Pytest, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    def lend(_: object) -> None:
        lab = FakeLab()
        lab.nodes.pop("node2")
        HOSTS_LEND(cast("LiveLab", lab))

    monkeypatch.setattr(hosts, "lend", lend)
    wanted = "nodes" if status == 0 else "not nodes"
    text = f"def test_it(nodes):\n    assert {wanted}\n"
    for arguments, env in ((["--testbed-lab=two-node"], {}), ([], {"TESTBED_LAB": "two-node"})):
        done = run(text, "-q", *arguments, **env)
        assert done.status == status
        (line,) = [one for one in done.said.splitlines() if "incomplete" in one]
        assert "node2" in line
        assert "node1" not in line
    assert "incomplete" not in run(OTHER, TESTBED_LAB="two-node").said


ANY = "def test_it(lab):\n    assert lab\n"


@pytest.mark.parametrize(
    ("text", "arguments", "env"),
    [
        (ANY, [], {"TESTBED_LAB": "gone"}),
        (ANY, ["--testbed-lab=gone"], {}),
        (OTHER, ["--testbed-lab=gone"], {}),
        (HOST, [], {"TESTBED_LAB": "gone"}),
        (HOST, ["--hosts=testbed://gone/node1"], {}),
        ("testinfra_hosts = ['testbed://gone/node1']\n" + HOST, [], {}),
        ("def test_it(nodes):\n    assert not nodes\n", [], {"TESTBED_LAB": "gone"}),
        ("import pytest\n\n@pytest.mark.testbed_needs('docker')\n" + OTHER, [],
         {"TESTBED_LAB": "gone"}),
    ],
)  # fmt: skip
def test_a_lab_of_which_the_record_alone_is_left_is_not_up(
    text: str, arguments: list[str], env: dict[str, str], run: Pytest, state: Path
) -> None:
    State(state).write(Record("gone", load("two-node", Overrides(name="gone")).to_dict()))
    done = run(text, *arguments, **env)
    assert (done.status, "passed" in done.said) == (4, False), done.said
    assert "lab gone is not up" in done.said


@pytest.mark.parametrize(
    ("text", "arguments", "env", "nodes"),
    [
        (HOST, ["--testbed-lab=two-node"], {}, NODES),
        (HOST, ["--hosts=testbed://two-node"], {}, NODES),
        (HOST, [], {"TESTBED_LAB": "two-node"}, NODES),
        (HOST, ["--hosts=testbed://two-node/node2"], {}, ["node2"]),
        (HOST, ["--hosts=node2", "--testbed-lab=two-node"], {}, ["node2"]),
        ("testinfra_hosts = ['node1', 'outside']\n" + HOST, ["--testbed-lab=two-node"], {},
         ["node1", "outside"]),
        ("testinfra_hosts = ['testbed://two-node/node1']\n" + HOST, [], {}, ["node1"]),
        ("testinfra_hosts = ['local://']\n" + HOST, ["--hosts=testbed://two-node/node1"], {},
         ["node1"]),
    ],
)  # fmt: skip
def test_host_is_the_labs_nodes(
    text: str, arguments: list[str], env: dict[str, str], nodes: list[str], run: Pytest
) -> None:
    done = run(text, *arguments, **env)
    passed = [f"PASSED test_small.py::test_it[testbed://two-node/{node}]" for node in nodes]
    assert [line for line in done.said.splitlines() if line.startswith("PASSED")] == passed
    assert done.status == 0, done.said


class Worker:
    """Makes a run of pytest look like that of a worker of pytest-xdist."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        config.workerinput = {}  # type: ignore[attr-defined]


@pytest.mark.parametrize("spec", ["local://", "testbed://typo/node1"])
def test_a_worker_of_xdist_fails_each_test_with_the_reason(spec: str, run: Pytest) -> None:
    done = run(
        f"testinfra_hosts = [{spec!r}]\n" + HOST + OTHER,
        "--testbed-lab=two-node",
        plugins=[Worker()],
    )
    assert done.status == pytest.ExitCode.TESTS_FAILED
    assert done.said.count("test_small.py: testinfra_hosts: ") >= 2
    assert "passed" not in done.said


def test_the_lab_of_hosts_is_the_lab_of_the_fixture(run: Pytest) -> None:
    done = run(LAB + HOST.replace("test_it", "test_host"), "--hosts=testbed://two-node/node1")
    assert done.status == 0, done.said


def test_a_host_of_the_projects_own_is_left_alone(run: Pytest) -> None:
    done = run(
        """
        import pytest

        @pytest.fixture(params=["node1", "node2"])
        def host(request, lab):
            return lab.node(request.param)

        def test_it(host):
            assert host.name.startswith("node")
        """,
        "--testbed-lab=two-node",
    )
    assert "2 passed" in done.said


def test_without_a_lab_host_is_what_testinfra_says(run: Pytest) -> None:
    done = run("def test_it(host):\n    assert host.backend.get_pytest_id() == 'local'\n")
    assert "PASSED test_small.py::test_it[local]" in done.said


# -- the runner of `testbed verify` ---------------------------------------------------


def verify(path: Path, text: str, lab: Any) -> Any:
    path.write_text(text)
    return runner.run(lab, Selection(paths=(path,)))


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path / "test_plain.py"
    for name in set(sys.modules) - before:
        if name == "test_plain":
            del sys.modules[name]


def test_the_runner_gives_the_nodes_of_its_lab(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TESTBED_LAB", "another")
    checks = verify(small, HOST, FakeLab()).checks
    assert [(check.name, check.outcome) for check in checks] == [
        (f"test_plain.py::test_it[testbed://two-node/{node}]", "passed") for node in NODES
    ]


def test_the_runner_gives_the_nodes_of_the_lab_it_has_now(small: Path) -> None:
    assert len(verify(small, HOST, FakeLab()).checks) == 3
    del sys.modules["test_plain"]
    (check, *_) = verify(small, HOST, FakeLab("other")).checks
    assert check.name == "test_plain.py::test_it[testbed://other/node1]"


@pytest.mark.parametrize("spec", ["local://", "testbed://another/node1"])
def test_the_runner_refuses_other_hosts(spec: str, small: Path) -> None:
    with pytest.raises(UsageError, match=r"test_plain\.py: testinfra_hosts"):
        verify(small, f"testinfra_hosts = [{spec!r}]\n{HOST}", FakeLab())


def test_the_runner_without_a_lab_has_no_hosts(small: Path) -> None:
    with pytest.raises(NothingTested):
        verify(small, HOST, None)


def test_the_runner_confines_for_its_own_run_alone(small: Path) -> None:
    verify(small, HOST, FakeLab())
    assert hosts.resolve("local://") == ["local://"]
