"""Nodes over ssh: the contract, against Debian's own sshd and systemd.

The machines are namespace nodes with a systemd inside, as containers have it,
and an sshd for each connection, on a socket that we hold the other end of.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import pytest

from testbed.artifacts import Store
from testbed.artifacts.debian import Apt
from testbed.artifacts.release import packages
from testbed.artifacts.source import Job, Origin, Source, system
from testbed.errors import LabError, NodeNotRunning, TimeoutExpired
from testbed.nodes.base import Node, NodeSpec, OneByOne, Provider, Service
from testbed.nodes.netns.agent import Connection
from testbed.nodes.netns.node import NetnsNode
from testbed.nodes.netns.provider import NetnsProvider
from testbed.nodes.qemu.identity import Keys, make_keys
from testbed.nodes.request import environment
from testbed.nodes.ssh.node import SshNode
from testbed.nodes.stream import provide
from testbed.testing.provider import ProviderContract, until
from testbed.testing.terminal import TerminalContract

if TYPE_CHECKING:
    from testbed.requirement import Requirement
    from testbed.topology import Topology

LAB = "contract"
CONFIG = """\
HostKey /etc/ssh/host_key
AuthorizedKeysFile /etc/ssh/authorized_keys
StrictModes no
UsePAM no
UseDNS no
"""
#: What OpenSSH's server calls since 9.8 and 10.0, by the option of sshd_config(5) that says where.
PIECES = {
    "SshdSessionPath": "usr/lib/openssh/sshd-session",
    "SshdAuthPath": "usr/lib/openssh/sshd-auth",
}
SYSTEMD = Path("/lib/systemd/systemd")
INSIDE = ("nsenter", "--mount", "--pid", "--target")
BOOT = f"""
umount -R /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup && mount -t proc proc /proc
mkdir -p /run/systemd/system /run/sshd
printf '[Unit]\\nDefaultDependencies=no\\n' > /run/systemd/system/testbed.target
exec env -i container=testbed PATH=/usr/sbin:/usr/bin:/sbin:/bin \
  {SYSTEMD} --system --unit=testbed.target --log-target=null --show-status=no
"""


@dataclass(frozen=True)
class Sshd(Source):
    """Debian's OpenSSH server, unpacked."""

    packages: tuple[str, ...] = ("openssh-server", "libwrap0")
    origin: ClassVar[Origin] = "debian"

    def recipe(self) -> Mapping[str, object]:
        return {"packages": packages(self.packages), "system": system(), "tree": True}

    def fill(self, job: Job) -> str:
        return Apt(job).unpack(self.packages, job.into / "tree")["openssh-server"]


class Machines(OneByOne):
    """Namespace nodes, reached by ssh alone."""

    name = "ssh"

    def __init__(self, state: Path, store: Store) -> None:
        self.inner = NetnsProvider(
            state, lambda: store.binary("testbed-init"), lambda: store.folders
        )
        self._store = store
        self._sshd = store.keep("sshd", Sshd()) / "tree"
        self._folder = state / "sockets"
        self._key = state / "key"
        kept = state / "keys.json"
        state.mkdir(parents=True, exist_ok=True)
        if not kept.exists():
            kept.write_text(json.dumps(asdict(make_keys())), encoding="utf-8")
        self._keys = Keys(**json.loads(kept.read_text(encoding="utf-8")))
        self._key.write_text(self._keys.client, encoding="utf-8")
        self._known: dict[int, SshNode] = {}
        self.host_key = self._keys.host_public
        self.connections: list[Connection] = []

    def probe(self) -> list[Requirement]:
        return self.inner.probe()

    def create_fabric(self, lab: str, topology: Topology) -> None:
        self.inner.create_fabric(lab, topology)

    def create_one(self, lab: str, spec: NodeSpec) -> SshNode:
        node = self.inner.create_one(lab, spec)
        node.put(self._keys.host.encode(), "/etc/ssh/host_key", mode=0o600)
        node.put(self._keys.client_public.encode(), "/etc/ssh/authorized_keys", mode=0o600)
        node.put(CONFIG.encode(), "/etc/ssh/sshd_config")
        # A machine of its own can write there.
        node.run(["mount", "-t", "tmpfs", "tmpfs", "/usr/local/bin"])
        node.put(
            node.get("/etc/passwd") + b"sshd:x:71:65534::/run/sshd:/usr/sbin/nologin\n",
            "/etc/passwd",
        )
        if SYSTEMD.exists():
            self._boot(node)
        else:
            node.run(["mkdir", "-p", "/run/sshd"])
        return self.reach(node)

    def _boot(self, node: NetnsNode) -> None:
        # Its own, not that which asks the namespace node's pid 1.
        node.offer({name: Path("/usr/bin", name) for name in ("systemctl", "journalctl")})
        argv = ["unshare", "--mount", "--pid", "--fork", "sh", "-ec", BOOT]
        node.start(Service("systemd", tuple(argv)))
        pid = node.services()["systemd"].pid
        first = ["cat", f"/proc/{pid}/task/{pid}/children"]
        assert until(lambda: node.run(first, check=False).stdout.strip().isdigit())
        child = node.run(first).stdout.strip()
        node.put(child.encode(), "/run/inside")
        running = [*INSIDE, child, "systemctl", "is-system-running"]
        assert until(lambda: node.run(running, check=False).ok, 120), node.logs("systemd")

    def reach(self, node: Node) -> SshNode:
        assert isinstance(node, NetnsNode)
        if node.init.pid not in self._known:
            self._known[node.init.pid] = SshNode(
                node.name,
                node.digest,
                lambda: self._open(node),
                key=self._key,
                host_key=self.host_key,
                agent=lambda: self._store.binary("testbed-agent"),
                folder=self._folder,
                alive=node.init.alive,
                lab=node.init.lab,
            )
        return self._known[node.init.pid]

    def _open(self, node: NetnsNode) -> socket.socket:
        """A connection to an sshd of its own, which goes when it is closed."""
        ours, theirs = socket.socketpair()
        root = Path(node.provide(self._sshd))
        libraries = ":".join(str(root / place) for place in ("lib", "usr/lib"))
        libraries = f"{libraries}:{root}/lib/x86_64-linux-gnu:{root}/usr/lib/x86_64-linux-gnu"
        connection = Connection(node.name, node.init.pid)
        with theirs, Path(os.devnull).open("wb") as null:
            env = environment({"LD_LIBRARY_PATH": libraries})
            argv = [f"{root}/usr/sbin/sshd", "-i", "-e", "-f", "/etc/ssh/sshd_config"]
            for option, name in PIECES.items():
                if (self._sshd / name).exists():
                    argv += ["-o", f"{option}={root}/{name}"]
            if SYSTEMD.exists():
                argv = [*INSIDE, node.get("/run/inside").decode(), *argv]
            files = [theirs.fileno(), theirs.fileno(), null.fileno()]
            connection.send(["run", "/", "0", *env, *argv], files)
            connection.receive(10.0)
        self.connections.append(connection)  # sshd is ended when this is hung up
        return ours

    def connect(self, lab: str, topology: Topology, node: Node) -> None:
        self.inner.connect(lab, topology, self.inner.nodes(lab)[node.name])

    def nodes(self, lab: str) -> dict[str, Node]:
        return {name: self.reach(node) for name, node in self.inner.nodes(lab).items()}

    def labs(self) -> list[str]:
        return self.inner.labs()

    def destroy(self, lab: str, nodes: Iterable[str] | None = None) -> None:
        self.inner.destroy(lab, nodes)

    def fabric(self, lab: str) -> Node | None:
        return self.inner.fabric(lab)

    def close(self) -> None:
        for lab in self.labs():
            self.destroy(lab)
        for node in self._known.values():
            node.close()
        for connection in self.connections:
            connection.close()


@pytest.fixture(scope="session")
def store() -> Store:
    return Store()


@pytest.fixture
def provider(state: Path, store: Store) -> Iterator[Machines]:
    made = Machines(state, store)
    yield made
    made.close()


def _needs_systemd() -> dict[str, str]:
    if SYSTEMD.exists():
        return {}
    words = ("node.start", "node.services", "node.stop", "node.logs")
    return {
        name: f"this machine has no {SYSTEMD}"
        for name, test in inspect.getmembers(ProviderContract, inspect.isfunction)
        if name.startswith("test_") and any(word in inspect.getsource(test) for word in words)
    }


class TestContract(ProviderContract):
    skips: ClassVar[Mapping[str, str]] = _needs_systemd()

    def again(self, provider: Provider) -> Provider:
        assert isinstance(provider, Machines)
        return Machines(provider._key.parent, provider._store)

    @pytest.fixture
    def provider(self, state: Path, store: Store) -> Iterator[Provider]:
        made = Machines(state, store)
        yield made
        made.close()


@pytest.fixture(scope="module")
def machine(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshNode]:
    """A machine that all tests of terminals share."""
    made = Machines(tmp_path_factory.mktemp("terminal") / "state", store)
    yield made.create_one(LAB, NodeSpec("node1", "digest"))
    made.close()


class TestTerminal(TerminalContract):
    @pytest.fixture
    def node(self, machine: SshNode) -> SshNode:
        return machine


class TestSsh:
    topology = ProviderContract.topology

    @pytest.fixture
    def node(self, provider: Machines, topology: Topology) -> SshNode:
        provider.create_fabric(LAB, topology)
        return provider.create_one(LAB, NodeSpec("node1", "digest"))

    def test_one_connection_is_enough(self, provider: Machines, node: SshNode) -> None:
        for _ in range(5):
            node.run(["true"])
        assert len(provider.connections) == 1

    def test_a_machine_with_another_host_key_is_not_talked_to(
        self, provider: Machines, topology: Topology
    ) -> None:
        provider.host_key = make_keys().host_public
        provider.create_fabric(LAB, topology)
        node = provider.create_one(LAB, NodeSpec("node1", "digest"))
        with pytest.raises(LabError, match=r"node1 .*host key"):
            node.run(["true"])
        with pytest.raises(TimeoutExpired, match=r"host key.* 0\.1 s"):
            node.wait_ssh(0.1)

    def test_a_connection_that_breaks_is_made_anew(self, provider: Machines, node: SshNode) -> None:
        running = node.spawn(["sleep", "71"])
        provider.connections[0].close()  # ends that sshd
        with pytest.raises(LabError, match="ssh connection"):
            running.wait(60)
        assert node.run(["echo", "again"]).stdout == "again\n"
        assert len(provider.connections) == 2
        gone = ["sh", "-c", "! grep -lzx 71 /proc/[0-9]*/cmdline"]
        assert until(lambda: node.run(gone, check=False).ok)

    def test_a_command_ends_with_the_process_that_asked(
        self, provider: Machines, node: SshNode
    ) -> None:
        script = (
            "import sys, time; from pathlib import Path\n"
            f"sys.path[:0] = {sys.path!r}\n"
            "from test_ssh_node import *\n"
            f"p = Machines(Path({str(provider._key.parent)!r}), Store())\n"
            f"r = p.nodes({LAB!r})['node1'].spawn(['sh', '-c', 'sleep 72 & sleep 73'])\n"
            "print('begun', flush=True); time.sleep(60)\n"
        )
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as asker:
            assert asker.stdout
            assert asker.stdout.readline() == b"begun\n"
            there = ["sh", "-c", "grep -lzE '^7[23]$' /proc/[0-9]*/cmdline | wc -l"]
            assert until(lambda: node.run(there).stdout == "2\n")
            asker.send_signal(signal.SIGKILL)
        assert until(lambda: node.run(there).stdout == "0\n")

    def test_a_forked_process_has_a_connection_of_its_own(
        self, provider: Machines, node: SshNode
    ) -> None:
        running = node.spawn(["cat"], input=b"parent's")
        path = node.socket("/run/x.sock")
        child = os.fork()
        if child == 0:
            ok = False
            with contextlib.suppress(Exception):
                ok = node.run(["echo", "child"]).out == b"child\n"
                ok = ok and node.socket("/run/x.sock") != path
                running.kill()  # says nothing on the parent's connection
            os._exit(0 if ok else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert running.wait(60).out == b"parent's"
        assert node.run(["echo", "parent"]).out == b"parent\n"
        assert len(provider.connections) == 1
        assert Path(path).exists()

    def test_a_child_that_stays_does_not_hold_a_command_up(self, node: SshNode) -> None:
        began = time.monotonic()
        result = node.run(["sh", "-c", "(sleep 600; echo late) & echo done"])
        assert (result.status, result.out) == (0, b"done\n")
        assert time.monotonic() - began < 300

    def test_input_that_nobody_reads(self, node: SshNode) -> None:
        assert node.run(["true"], input=b"x" * 3_000_000).ok
        assert node.run(["sh", "-c", "exec <&-; sleep 0.1; echo on"], input=b"x" * 3_000_000).ok

    def test_a_slow_reader_gets_all(self, node: SshNode) -> None:
        data = os.urandom(3_000_000)
        result = node.run(["sh", "-c", "sleep 0.3; sha256sum"], input=data)
        assert result.stdout.split()[0] == hashlib.sha256(data).hexdigest()

    def test_what_is_thrown_away_ends(self, node: SshNode) -> None:
        node.spawn(["sleep", "74"])  # and nobody keeps it
        gone = ["sh", "-c", "! grep -lzx 74 /proc/[0-9]*/cmdline"]
        assert until(lambda: node.run(gone, check=False).ok)

    def test_a_full_disk_is_said(self, node: SshNode) -> None:
        node.run(["sh", "-c", "mkdir /run/small && mount -t tmpfs -o size=64k tmpfs /run/small"])
        with pytest.raises(OSError, match="No space"):
            node.put(b"x" * 3_000_000, "/run/small/file")
        assert node.run(["ls", "-A", "/run/small"]).stdout == ""
        assert node.run(["true"]).ok

    def test_a_socket_of_the_machine(self, node: SshNode) -> None:
        program = (
            "import socket\n"
            "s = socket.socket(socket.AF_UNIX); s.bind('/run/echo.sock'); s.listen()\n"
            "print('up', flush=True)\n"
            "while True:\n"
            "    c, _ = s.accept()\n"
            "    data = b''\n"
            "    while more := c.recv(65536): data += more\n"
            "    c.sendall(data[::-1]); c.close()\n"
        )
        with node.spawn(["/usr/bin/python3", "-S", "-c", program]) as server:
            assert until(lambda: server.out == b"up\n")
            path = node.socket("/run/echo.sock")
            assert node.socket("/run/echo.sock") == path
            for data in (b"", b"abc", os.urandom(2_000_000)):
                with socket.socket(socket.AF_UNIX) as ours:
                    ours.connect(path)
                    feeder = threading.Thread(target=_send_all, args=(ours, data))
                    feeder.start()
                    seen = b"".join(iter(lambda s=ours: s.recv(65536), b""))  # type: ignore[misc]
                    feeder.join()
                    assert seen == data[::-1]

    def test_a_socket_that_is_not_there(self, node: SshNode) -> None:
        with socket.socket(socket.AF_UNIX) as ours:
            ours.connect(node.socket("/run/nobody.sock"))
            assert ours.recv(1) == b""

    def test_a_program_of_the_system_stays_where_it_is(self, node: SshNode) -> None:
        assert node.provide(Path("/usr/bin/env")) == "/usr/bin/env"

    def test_what_the_machine_lacks_is_copied_once(self, node: SshNode, tmp_path: Path) -> None:
        program = tmp_path / "program"
        program.write_bytes(b"#!/bin/sh\necho one\n")
        program.chmod(0o755)
        place = node.provide(program)
        assert place.startswith(f"{provide.FOLDER}/")
        assert node.run([place]).stdout == "one\n"
        inode = node.run(["stat", "-c", "%i", place]).stdout
        assert node.provide(program) == place
        program.write_bytes(b"#!/bin/sh\necho other\n")
        assert node.run([node.provide(program)]).stdout == "other\n"
        assert node.run(["stat", "-c", "%i", place]).stdout == inode

    def test_a_folder_is_copied_with_what_its_links_lead_to(
        self, node: SshNode, tmp_path: Path
    ) -> None:
        (tmp_path / "bin").mkdir()
        (tmp_path / "real").write_text("text", encoding="utf-8")
        (tmp_path / "bin" / "link").symlink_to(tmp_path / "real")
        place = node.provide(tmp_path / "bin")
        assert node.get(f"{place}/link") == b"text"
        assert node.run(["stat", "-c", "%F %u", f"{place}/link"]).stdout == "regular file 0\n"

    def test_pipes_of_the_user(self, node: SshNode, provider: Machines) -> None:
        script = (
            "import sys; from pathlib import Path\n"
            f"sys.path[:0] = {sys.path!r}\n"
            "from test_ssh_node import *\n"
            f"p = Machines(Path({str(provider._key.parent)!r}), Store())\n"
            f"n = p.nodes({LAB!r})['node1']\n"
            "sys.exit(n.attach(['sh', '-c', 'cat; echo err >&2; kill -TERM $$'], tty=False))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script], input=b"in", capture_output=True, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (143, b"in", b"err\n")

    def test_a_machine_that_ends_while_we_wait(self, node: SshNode, provider: Machines) -> None:
        running = node.spawn(["sleep", "75"])
        threading.Timer(0.05, provider.destroy, (LAB,)).start()
        with pytest.raises(NodeNotRunning) as caught:
            running.wait(60)
        assert caught.value.name == "node1"
        with pytest.raises(NodeNotRunning):
            node.wait_ssh(1)


def _send_all(ours: socket.socket, data: bytes) -> None:
    ours.sendall(data)
    ours.shutdown(socket.SHUT_WR)
