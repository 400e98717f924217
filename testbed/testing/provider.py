"""The contract of a provider and its nodes, as a test suite.

Derive a class from :class:`ProviderContract` and give it a fixture ``provider``.  A provider
whose nodes are slow to create can test its halves apart: :class:`NodeContract` with a fixture
``node`` that many tests share, and :class:`FleetContract` for creating, finding and removing.

The nodes need a POSIX shell with the usual utilities (GNU or BusyBox) and Python
(:attr:`Contract.python`).  The tests run few and plain programs, so that nodes in memory can be
taught them (:func:`testbed.testing.fakes.taught`).
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from testbed import polling
from testbed.errors import (
    CommandError,
    LabError,
    MachineError,
    NoSuchNode,
    NoSuchService,
    ServiceError,
    ServiceNotReady,
    TimeoutExpired,
)
from testbed.nodes.base import Node, NodeSpec, Provider, Service, name_unit
from testbed.topology import Topology, load_text

#: Commands that nodes in memory must know as a whole.
BOTH = ("sh", "-c", "echo out; echo err >&2; exit 3")
SIGNALLED = ("sh", "-c", "kill -TERM $$")
ODD = ["", " ", "a b", "$HOME", "`id`", "'\"\\", "*", "-n", "\n", "é中", "a;b|c&d>e", "\udcff"]
HARD = "trap '' TERM; echo ignoring; sleep 60 & wait; wait; wait"  # a service that ignores SIGTERM
DIES = "dies"  #: name of a service that writes "no luck" and exits with 7 before it is ready
NEVER = "never"  #: name of a service that never becomes ready

#: A service that reports that it is ready (sd_notify(3)).
NOTIFY = (
    "import os, socket, time\n"
    "s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
    "print('ready soon', flush=True)\n"
    "s.sendto(b'STATUS=well\\nREADY=1', os.environ['NOTIFY_SOCKET'])\n"
    "time.sleep(60)\n"
)

PYTHON = "/usr/bin/python3"

#: The topology of the tests.
TWO = """
name: contract
networks: {lan: {subnet: 10.168.0.0/24}, wan: {subnet: 10.169.0.0/24}}
nodes:
  node1: {networks: {lan: 10.168.0.2, wan: 10.169.0.2}}
  node2: {networks: {lan: 10.168.0.3}}
  outside: {networks: {lan: 10.168.0.1}, gateway: true}
"""


def until(true: Callable[[], object], seconds: float = 60.0) -> bool:
    """Wait until a condition holds; return False if it does not within ``seconds``."""
    return polling.until(true, seconds)


def spec(name: str, digest: str = "digest-1") -> NodeSpec:
    """Return the settings of a node of :data:`TWO`."""
    return NodeSpec(name, digest, interfaces=2)  # as many as node1 of TWO has networks


class Contract:
    """The parts that all contracts of providers share."""

    #: Tests that do not apply to a provider: name and reason.
    skips: ClassVar[Mapping[str, str]] = {}
    #: Path of Python on the nodes.
    python: ClassVar[str] = PYTHON

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        unknown = sorted(name for name in cls.skips if not hasattr(cls, name))
        if unknown:
            raise TypeError(f"{cls.__name__}.skips names no test: {', '.join(unknown)}")

    def again(self, provider: Provider) -> Provider:
        """Return another object for the same machine, as another process would construct it."""
        raise NotImplementedError

    @pytest.fixture(autouse=True)
    def _skips(self, request: pytest.FixtureRequest) -> None:
        reason = self.skips.get(request.node.originalname)
        if reason:
            pytest.skip(reason)

    @pytest.fixture
    def provider(self) -> Iterator[Provider]:
        """The provider, without labs.  At the end, remove the labs that the test has created."""
        raise NotImplementedError

    @pytest.fixture
    def topology(self) -> Topology:
        """The topology of the tests: two nodes and a gateway on two networks."""
        return load_text(TWO, "contract.yaml")

    @pytest.fixture
    def node(self, provider: Provider, topology: Topology) -> Node:
        """A new node, named node1, that is not connected."""
        provider.create_fabric("contract", topology)
        return provider.create_one("contract", spec("node1"))

    def service(
        self, name: str = "good", digest: str = "d1", *, program: str = NOTIFY, notify: bool = True
    ) -> Service:
        """Return a service that runs a program in Python."""
        return Service(name, (self.python, "-S", "-c", program), notify=notify, digest=digest)


class NodeContract(Contract):
    """Commands, files and services of one node.  No test creates or removes a node."""

    # -- commands -----------------------------------------------------------

    def test_status_and_both_outputs_come_back_apart(self, node: Node) -> None:
        result = node.run(BOTH, check=False)
        assert (result.status, result.out, result.err) == (3, b"out\n", b"err\n")
        assert result.argv == BOTH
        assert not result.ok

    def test_a_failure_shows_command_place_and_output(self, node: Node) -> None:
        with pytest.raises(CommandError) as caught:
            node.run(BOTH)
        error = caught.value
        assert (error.status, error.where, error.argv) == (3, "node1", BOTH)
        assert (error.stdout, error.stderr) == ("out\n", "err\n")

    def test_a_signal_is_a_negative_status(self, node: Node) -> None:
        assert node.run(SIGNALLED, check=False).status == -15
        with pytest.raises(CommandError) as caught:
            node.run(SIGNALLED)
        assert caught.value.status == -15

    def test_an_unknown_program_ends_with_127(self, node: Node) -> None:
        with pytest.raises(CommandError) as caught:
            node.run(["no-such-program", "--at-all"])
        assert (caught.value.where, caught.value.status) == ("node1", 127)

    def test_input_reaches_a_command_and_has_an_end(self, node: Node) -> None:
        assert node.run(["cat"], input=b"one\ntwo\0\xff").out == b"one\ntwo\0\xff"
        assert node.run(["cat"], input=b"").out == b""
        assert node.run(["cat"]).out == b""

    def test_the_environment_is_the_nodes_and_what_is_given(
        self, node: Node, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("DOCKER_HOST", "tcp://elsewhere")
        seen = node.run(["env"], env={"A": "b c", "LANG": "C"}).stdout.splitlines()
        assert "A=b c" in seen
        assert "LANG=C" in seen
        assert not [line for line in seen if line.startswith("DOCKER_HOST")]

    def test_a_command_may_open_as_many_files_as_in_a_login(self, node: Node) -> None:
        """More would break programs that use select(2), and slow those that close them all."""
        assert node.run(["sh", "-c", "ulimit -Sn"]).stdout == "1024\n"

    def test_odd_arguments_arrive_as_they_are(self, node: Node) -> None:
        out = node.run(["printf", "%s\\0", *ODD]).out
        assert out.split(b"\0")[:-1] == [word.encode("utf-8", "surrogateescape") for word in ODD]

    def test_a_nul_in_an_argument_is_refused(self, node: Node) -> None:
        with pytest.raises(ValueError, match="NUL"):
            node.run(["echo", "a\0b"])

    @pytest.mark.parametrize("count", [1000, 9000])
    def test_many_arguments_arrive_all_or_are_refused(self, node: Node, count: int) -> None:
        seen = 0
        with contextlib.suppress(LabError):
            seen = len(node.run(["echo", *["a"] * count]).stdout.split())
        assert seen in ({count} if count < 4000 else {count, 0})  # refused, but never cut short

    def test_a_command_line_that_is_too_long_is_refused(self, node: Node) -> None:
        with pytest.raises(LabError):
            node.run(["true", "x" * (1 << 20)])
        assert node.run(["true"]).ok

    def test_much_output(self, node: Node) -> None:
        out = node.run(["head", "-c", "5000000", "/dev/zero"]).out
        assert len(out) == 5_000_000
        assert not out.strip(b"\0")

    def test_much_input(self, node: Node) -> None:
        data = os.urandom(5_000_000)
        assert node.run(["cat"], input=data).out == data

    def test_a_command_on_open_files(self, node: Node) -> None:
        with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as taken:
            given.write(b"one\0\xff" * 100_000)
            given.seek(0)
            assert node.pipe(["cat"], stdin=given.fileno(), stdout=taken.fileno()) == 0
            taken.seek(0)
            assert taken.read() == b"one\0\xff" * 100_000
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            assert node.pipe(BOTH, stdout=out.fileno(), stderr=err.fileno()) == 3
            for file, text in ((out, b"out\n"), (err, b"err\n")):
                file.seek(0)
                assert file.read() == text
        assert node.pipe(BOTH) == 3
        assert node.pipe(SIGNALLED) == 128 + 15
        assert node.pipe(["cat"]) == 0, "its input has an end"

    def test_a_time_out_ends_the_command(self, node: Node) -> None:
        began = time.monotonic()
        with pytest.raises(TimeoutExpired):
            node.run(["sleep", "600"], timeout=0.1)
        assert time.monotonic() - began < 300

    def test_a_time_out_ends_its_children_too(self, node: Node) -> None:
        with pytest.raises(TimeoutExpired):
            node.run(["sh", "-c", "sleep 62 & sleep 63"], timeout=0.3)
        gone = ["sh", "-c", "! grep -lzE '^6[23]$' /proc/[0-9]*/cmdline"]
        assert until(lambda: node.run(gone, check=False).ok)

    def test_json(self, node: Node) -> None:
        assert node.run(["cat"], input=b'{"a": [1]}').json() == {"a": [1]}
        assert node.run(["true"]).json() is None

    def test_twenty_threads_at_once(self, node: Node) -> None:
        def ask(i: int) -> bytes:
            node.put(str(i).encode(), f"/run/threads/{i}")
            return node.run(["cat"], input=node.get(f"/run/threads/{i}")).out

        with ThreadPoolExecutor(20) as pool:
            assert list(pool.map(ask, range(100))) == [str(i).encode() for i in range(100)]

    def test_spawn_returns_at_once_and_the_output_so_far_can_be_read(self, node: Node) -> None:
        with node.spawn(["sh", "-c", "echo begun; sleep 64"]) as running:
            assert running.pid > 1
            assert until(lambda: running.out == b"begun\n")
            with pytest.raises(TimeoutExpired):
                running.wait(0.1)
            assert running.out == b"begun\n"
        assert running.wait().status == -9
        assert running.out == b"begun\n"

    def test_wait_gives_the_result_as_often_as_asked(self, node: Node) -> None:
        running = node.spawn(BOTH)
        assert running.wait(60) == running.wait()
        running.kill()
        assert running.wait().status == 3
        assert running.err == b"err\n"

    def test_kill_ends_it(self, node: Node) -> None:
        running = node.spawn(["sleep", "65"])
        running.kill()
        running.kill()
        assert running.wait(60).status == -9
        gone = ["sh", "-c", "! grep -lzx 65 /proc/[0-9]*/cmdline"]
        assert until(lambda: node.run(gone, check=False).ok)

    # -- files --------------------------------------------------------------

    def test_what_is_put_can_be_got(self, node: Node) -> None:
        data = bytes(range(256)) * 5000
        node.put(data, "/run/deep/folder/file")
        assert node.get("/run/deep/folder/file") == data
        node.put(b"", "/run/deep/folder/file")
        assert node.get("/run/deep/folder/file") == b""

    @pytest.mark.parametrize("mode", [0o644, 0o755, 0o600, 0o4711])
    def test_modes(self, node: Node, mode: int) -> None:
        node.put(b"#!/bin/sh\n", "/run/file", mode=mode)
        assert node.run(["stat", "-c", "%a", "/run/file"]).stdout.strip() == f"{mode:o}"
        node.put(b"#!/bin/sh\n", "/run/file")
        assert node.run(["stat", "-c", "%a", "/run/file"]).stdout.strip() == "644"

    def test_odd_paths(self, node: Node) -> None:
        path = "/run/a b/$x'é\n"
        node.put(b"odd", path)
        assert node.get(path) == b"odd"

    def test_a_program_is_offered_by_a_name_and_at_a_place(self, node: Node) -> None:
        deep = "/usr/libexec/deep/folder/once"
        node.offer({"once": Path("/usr/bin/true"), deep: Path("/usr/bin/env")})
        assert node.run(["once"]).ok
        assert node.run([deep, "true"]).ok
        node.offer({"once": Path("/usr/bin/false")})
        assert node.run(["once"], check=False).status == 1

    def test_a_file_that_is_not_there(self, node: Node) -> None:
        with pytest.raises(FileNotFoundError) as caught:
            node.get("/run/no/such")
        assert caught.value.filename == "node1:/run/no/such"
        with pytest.raises(FileNotFoundError):
            node.get("/nowhere/at/all")

    def test_a_folder_is_no_file(self, node: Node) -> None:
        node.put(b"", "/run/folder/file")
        with pytest.raises(IsADirectoryError):
            node.get("/run/folder")
        with pytest.raises(IsADirectoryError):
            node.put(b"", "/run/folder")
        assert node.get("/run/folder/file") == b""

    def test_a_file_is_replaced_in_one_step(self, node: Node) -> None:
        texts = [letter * 200_000 for letter in (b"a", b"b")]
        node.put(texts[0], "/run/file")
        stop = threading.Event()

        def write() -> None:
            for i in range(30):
                node.put(texts[i % 2], "/run/file")
            stop.set()

        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(write)
            while not stop.is_set() and not done.done():
                assert node.get("/run/file") in texts
            done.result()

    def test_a_failed_put_leaves_nothing(self, node: Node) -> None:
        node.put(b"", "/run/testing/folder/file")
        with pytest.raises(OSError) as caught:
            node.put(b"x", "/run/testing/folder")
        assert caught.value.filename == "node1:/run/testing/folder"
        assert node.run(["ls", "-A", "/run/testing"]).stdout.split() == ["folder"]

    def test_testinfra_sees_the_node(self, node: Node) -> None:
        node.put(b"hello\n", "/run/greeting")
        assert node.host.run("cat /run/greeting").stdout == "hello\n"

    # -- services -----------------------------------------------------------

    def test_a_service_is_waited_for_until_it_says_it_is_ready(self, node: Node) -> None:
        assert node.services() == {}
        node.start(self.service())
        state = node.services()["good"]
        assert (state.name, state.state, state.status, state.digest) == (
            "good",
            "ready",
            None,
            "d1",
        )
        assert state.pid > 1
        assert until(lambda: "ready soon" in node.logs("good"))

    def test_testinfra_is_told_of_services(self, node: Node) -> None:
        service = replace(self.service(), unit="good-unit")
        node.start(service)
        name_unit(node, service)
        for name in ("good", "good-unit", "good.service"):
            assert node.host.service(name).is_running
        node.stop("good")
        assert not node.host.service("good-unit").is_running
        assert node.host.service("good-unit").exists

    def test_a_service_that_does_not_tell_is_ready_once_started(self, node: Node) -> None:
        node.start(Service("plain", ("sleep", "67")))
        state = node.services()["plain"]
        assert (state.state, state.digest) == ("ready", "")

    def test_starting_it_again_does_nothing(self, node: Node) -> None:
        node.start(self.service())
        before = node.services()
        node.start(self.service())
        assert node.services() == before

    def test_with_another_digest_it_is_started_anew(self, node: Node) -> None:
        node.start(self.service())
        before = node.services()["good"]
        node.start(self.service(digest="d2 with a space"))
        after = node.services()["good"]
        assert (after.state, after.digest) == ("ready", "d2 with a space")
        assert after.pid != before.pid

    def test_one_that_dies_is_reported_with_its_log_at_once(self, node: Node) -> None:
        program = "print('no luck', flush=True); raise SystemExit(7)"
        began = time.monotonic()
        with pytest.raises(ServiceError) as caught:
            node.start(self.service(DIES, program=program), timeout=600)
        assert time.monotonic() - began < 300
        error = caught.value
        assert (error.service, error.node, error.log) == (DIES, "node1", "no luck\n")
        assert not isinstance(error, ServiceNotReady)
        state = node.services()[DIES]
        assert (state.state, state.status, state.pid) == ("dead", 7, 0)

    def test_a_program_that_is_not_there(self, node: Node) -> None:
        with pytest.raises(ServiceError) as caught:
            node.start(Service(DIES, ("/no/such/program",), notify=True))
        assert (caught.value.service, caught.value.node) == (DIES, "node1")

    def test_one_that_is_never_ready_is_reported_when_the_time_is_over(self, node: Node) -> None:
        with pytest.raises(ServiceNotReady) as caught:
            node.start(self.service(NEVER, program="import time; time.sleep(60)"), timeout=0.2)
        assert (caught.value.service, caught.value.node) == (NEVER, "node1")
        assert node.services()[NEVER].state == "starting"
        node.stop(NEVER)
        assert node.services()[NEVER].state == "dead"

    def test_stop(self, node: Node) -> None:
        node.start(self.service())
        node.stop("good")
        state = node.services()["good"]
        assert (state.state, state.status, state.pid) == ("dead", -15, 0)
        node.stop("good")
        node.stop("no-such-service")
        assert "ready soon" in node.logs("good")
        node.start(self.service())
        assert node.services()["good"].state == "ready"

    def test_a_service_is_started_again_with_its_settings(self, node: Node) -> None:
        with pytest.raises(NoSuchService):
            node.start_again("no-such-service")
        node.start(self.service())
        digest = node.services()["good"].digest
        node.stop("good")
        node.start_again("good", timeout=60)
        again = node.services()["good"]
        assert (again.state, again.digest) == ("ready", digest)
        node.start_again("good")
        assert node.services()["good"].pid == again.pid

    def test_stop_kills_what_does_not_obey(self, node: Node) -> None:
        node.start(Service("hard", ("sh", "-c", HARD)))
        assert until(lambda: "ignoring" in node.logs("hard"))
        node.stop("hard", grace=0.2)
        assert node.services()["hard"].status == -9

    def test_the_log_of_an_unknown_service(self, node: Node) -> None:
        node.start(self.service())
        with pytest.raises(NoSuchService) as caught:
            node.logs("no-such-service")
        assert (caught.value.name, caught.value.known) == ("no-such-service", ("good",))

    def test_two_who_start_the_same_service_get_one(self, node: Node) -> None:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: node.start(self.service()), range(8)))
        assert node.logs("good").count("ready soon") == 1

    def test_a_nul_in_a_service_is_refused(self, node: Node) -> None:
        with pytest.raises(ValueError, match="NUL"):
            node.start(Service("bad", ("echo", "a\0b")))


class FleetContract(Contract):
    """Creating, finding and removing nodes."""

    def test_a_lab_that_is_not_there_has_no_nodes(self, provider: Provider) -> None:
        assert provider.nodes("nowhere") == {}
        assert provider.fabric("nowhere") is None
        assert provider.labs() == []

    def test_what_is_prepared_is_not_there_yet(self, provider: Provider) -> None:
        provider.prepare("contract", [spec("node1"), spec("node2")])
        assert provider.nodes("contract") == {}
        assert provider.labs() == []

    def test_a_node_that_was_removed_has_not_ended_by_itself(
        self, provider: Provider, node: Node
    ) -> None:
        assert provider.ended("contract") == {}
        provider.destroy("contract", [node.name])
        assert provider.ended("contract") == {}

    def test_a_node_that_is_made_is_found(self, provider: Provider, node: Node) -> None:
        assert (node.name, node.digest) == ("node1", "digest-1")
        found = provider.nodes("contract")
        assert [(n, found[n].name, found[n].digest) for n in found] == [
            ("node1", "node1", "digest-1")
        ]
        assert provider.labs() == ["contract"]

    def test_it_is_found_by_another_object_too(self, provider: Provider, node: Node) -> None:
        other = self.again(provider)
        node.put(b"seen", "/run/mark")
        assert other.nodes("contract")["node1"].get("/run/mark") == b"seen"
        other.destroy("contract")
        assert provider.nodes("contract") == {}
        assert provider.labs() == []

    def test_one_node_is_removed_the_others_stay(self, provider: Provider, node: Node) -> None:
        provider.create_one("contract", spec("node2"))
        provider.destroy("contract", ["node1"])
        assert list(provider.nodes("contract")) == ["node2"]
        assert provider.labs() == ["contract"]

    def test_what_is_not_there_can_be_removed(self, provider: Provider, node: Node) -> None:
        provider.destroy("nowhere")
        provider.destroy("nowhere", ["node1"])
        provider.destroy("contract", [])
        provider.destroy("contract", ["node9"])
        assert list(provider.nodes("contract")) == ["node1"]
        provider.destroy("contract")
        provider.destroy("contract")
        assert provider.labs() == []

    def test_labs_do_not_touch_each_other(
        self, provider: Provider, node: Node, topology: Topology
    ) -> None:
        for lab in ("other", "contract-2"):
            provider.create_fabric(lab, topology)
            provider.create_one(lab, spec("node1", lab)).put(lab.encode(), "/run/mark")
        assert provider.labs() == ["contract", "contract-2", "other"]
        provider.destroy("contract")
        assert provider.labs() == ["contract-2", "other"]
        assert provider.nodes("contract-2")["node1"].get("/run/mark") == b"contract-2"
        assert provider.nodes("other")["node1"].digest == "other"

    def test_the_fabric_is_made_once(self, provider: Provider, topology: Topology) -> None:
        provider.create_fabric("contract", topology)
        first = provider.fabric("contract")
        provider.create_fabric("contract", topology)
        assert provider.labs() == (["contract"] if first else [])
        assert provider.nodes("contract") == {}
        provider.destroy("contract")
        assert provider.fabric("contract") is None

    def test_connected_nodes_have_their_addresses_and_reach_each_other(
        self, provider: Provider, node: Node, topology: Topology
    ) -> None:
        made = [node, provider.create_one("contract", spec("node2"))]
        for one in made:
            provider.connect("contract", topology, one)
            links = {link["ifname"]: link for link in one.run(["ip", "-j", "address"]).json()}
            for port in topology.nodes[one.name].ports:
                there = [entry["local"] for entry in links[port.name]["addr_info"]]
                assert str(port.address) in there
        assert not provider.differences("contract", topology).keys() & {"", "node1", "node2"}
        # The kernel may take a second to notice that a new link is up.
        ping = ["ping", "-c1", "-W5", "10.168.0.3"]
        assert until(lambda: node.run(ping, check=False).ok, 30)

    def test_what_is_known_of_this_machine_has_places_and_numbers(
        self, provider: Provider, node: Node
    ) -> None:
        for lab, folder in type(provider).running():
            assert lab
            assert folder.is_absolute()
        for place, maximum, now in type(provider).task_limits():
            assert place
            assert maximum >= now >= 0

    def test_many_nodes_are_made_at_once(self, provider: Provider, topology: Topology) -> None:
        provider.create_fabric("contract", topology)
        names = [f"node{i}" for i in range(8)]
        with ThreadPoolExecutor(8) as pool:
            made = list(pool.map(lambda n: provider.create_one("contract", spec(n)), names))
        assert [n.name for n in made] == names
        assert sorted(provider.nodes("contract")) == names

    def test_a_node_made_anew_knows_nothing_of_the_one_before(
        self, provider: Provider, node: Node
    ) -> None:
        node.put(b"old", "/etc/mark")
        provider.destroy("contract", ["node1"])
        new = provider.create_one("contract", spec("node1", "digest-2"))
        with pytest.raises(FileNotFoundError):
            new.get("/etc/mark")
        assert provider.nodes("contract")["node1"].digest == "digest-2"

    def test_a_node_is_removed_and_joined_again_at_once(
        self, provider: Provider, node: Node, topology: Topology
    ) -> None:
        provider.connect("contract", topology, node)
        for _ in range(8):
            provider.destroy("contract", ["node1"])
            provider.connect("contract", topology, provider.create_one("contract", spec("node1")))

    def test_a_node_that_is_gone_says_so(self, provider: Provider, node: Node) -> None:
        provider.destroy("contract", ["node1"])
        for ask in (
            lambda: node.run(["true"]),
            lambda: node.get("/etc/hostname"),
            lambda: node.put(b"", "/run/x"),
            node.services,
            lambda: node.start(Service("s", ("true",))),
        ):
            with pytest.raises(NoSuchNode):
                ask()

    def test_who_waits_on_a_node_that_goes_is_told(self, provider: Provider, node: Node) -> None:
        running = node.spawn(["sleep", "66"])
        threading.Timer(0.05, provider.destroy, ("contract",)).start()
        with pytest.raises(NoSuchNode):
            running.wait(300)

    def test_a_snapshot_brings_back_files_and_services(
        self, provider: Provider, node: Node, topology: Topology
    ) -> None:
        del topology
        if not provider.snapshot_parts:
            for act in (provider.snapshot, provider.revert, provider.drop_snapshot):
                with pytest.raises(MachineError):
                    act("contract", ["node1"], "first")
            assert provider.snapshots("contract") == {}
            assert provider.recover("contract", ["node1"]) == []
            return
        nodes = [node.name, provider.create_one("contract", spec("node2")).name]
        node.put(b"before", "/run/state")
        node.start(self.service())
        pid = node.services()["good"].pid
        provider.snapshot("contract", nodes, "first")
        node.put(b"after", "/run/state")
        node.put(b"", "/run/later")
        node.stop("good")
        provider.snapshot("contract", nodes, "second")
        provider.revert("contract", nodes, "first")
        there = self.again(provider)
        back = there.nodes("contract")["node1"]
        assert back.get("/run/state") == b"before"
        with pytest.raises(FileNotFoundError):
            back.get("/run/later")
        assert (back.services()["good"].state, back.services()["good"].pid) == ("ready", pid)
        provider.revert("contract", nodes, "second")
        assert node.get("/run/state") == b"after"
        provider.drop_snapshot("contract", nodes, "first")
        assert there.recover("contract", nodes) == [], "they go on already"
        kept = there.snapshots("contract")
        assert sorted(kept) == nodes
        assert all([one.name for one in some] == ["second"] for some in kept.values())
        provider.destroy("contract", ["node1"])
        provider.create_one("contract", spec("node1"))
        assert provider.snapshots("contract")["node1"] == [], "they end with the node"

    def test_services_outlive_who_started_them(self, provider: Provider, node: Node) -> None:
        node.start(self.service())
        again = self.again(provider).nodes("contract")["node1"]
        assert again.services() == node.services()

    def test_who_waits_for_a_service_is_told_when_the_node_goes(
        self, provider: Provider, node: Node
    ) -> None:
        threading.Timer(0.05, provider.destroy, ("contract",)).start()
        with pytest.raises(NoSuchNode):
            node.start(self.service(NEVER, program="import time; time.sleep(600)"), timeout=300)


class ProviderContract(FleetContract, NodeContract):
    """The whole contract of a provider."""
