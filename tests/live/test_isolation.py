"""The promises of docs/security.md for namespace labs, tested on running labs.

What a node must not be able to do is asked for in a form that does nothing where it is allowed:
files are opened for writing and not written, system calls have arguments that no kernel takes.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from crash.means import TESTBED, Bed

from testbed.labs.lab import Lab
from testbed.labs.live import LiveLab
from testbed.labs.state import State
from testbed.nodes.netns import cgroups
from testbed.nodes.netns.node import PRIVATE, NetnsNode, is_hidden
from testbed.process import run
from testbed.report import last
from testbed.settings import settings
from testbed.testing.provider import until

if TYPE_CHECKING:
    from testbed.nodes.base import Node, Result, Running

ONE, OTHER, PLAIN = "isolated-one", "isolated-other", "isolated-plain"
NOBODY = 65534
PYTHON = ("/usr/bin/python3", "-S", "-c")


SAME_PLAN = f"""
name: {OTHER}
networks:
  lan: {{subnet: 10.168.0.0/24}}
nodes:
  node1: {{networks: {{lan: 10.168.0.2}}}}
  node2: {{networks: {{lan: 10.168.0.3}}}}
"""
DOCKER = f"""
name: {PLAIN}
networks:
  lan: {{subnet: 10.168.0.0/24}}
nodes:
  host: {{networks: {{lan: 10.168.0.2}}, roles: [docker]}}
containers:
  bridged: {{node: host, image: nginx, publish: ["8080:80"]}}
  as-host: {{node: host, image: nginx, network: host, env: {{PORT: "8081"}}}}
"""


def listed() -> list[str]:
    """The capabilities that docs/security.md says a lab needs, as capsh(1) names them."""
    page = (Path(__file__).parents[2] / "docs" / "security.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`CAP_.*?) \|", page, re.MULTILINE)
    return sorted(name.lower() for row in rows for name in re.findall(r"`(CAP_\w+)`", row))


@dataclass
class Labs:
    """One with flannel, that came up with as little power as it needs; one of the same addresses,
    without anything; and one of plain Docker.
    """

    bed: Bed
    sockets_before: set[Socket]

    def live(self, name: str) -> LiveLab:
        return LiveLab(Lab(name, settings(state_folder=self.bed.state)).context())

    def node(self, lab: str, name: str) -> NetnsNode:
        node = self.live(lab).node(name)
        assert isinstance(node, NetnsNode)
        return node

    def places(self) -> dict[str, Node | Inside]:
        """Places for commands of a lab: nodes, and containers of each network mode."""
        found: dict[str, Node | Inside] = {}
        for lab, containers in ((ONE, ["container-1"]), (PLAIN, ["bridged", "as-host"])):
            live = self.live(lab)
            found |= {f"{lab} {name}": node for name, node in live.nodes.items()}
            for name in containers:
                found[f"{lab} {name}"] = Inside(live, name)
        return found


@dataclass
class Inside:
    """The network of a container, with the node's own programs."""

    live: LiveLab
    name: str

    def run(self, argv: list[str], *, check: bool = True) -> Result:
        return self.live.container(self.name).run(argv, check=check)


@pytest.fixture(scope="module")
def labs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Labs]:
    made = Labs(Bed(tmp_path_factory.mktemp("isolation") / "state"), sockets())
    least = ["setpriv", f"--bounding-set=-all,{','.join(f'+{name[4:]}' for name in listed())}"]
    try:
        run([*least, *TESTBED, "up", "two-node", "--name", ONE, "-q"], env=made.bed.environment())
        for name, text in ((OTHER, SAME_PLAN), (PLAIN, DOCKER)):
            file = made.bed.state.parent / f"{name}.yaml"
            file.write_text(text, encoding="utf-8")
            made.bed.must("up", str(file), "-q")
        yield made
    finally:
        made.bed.must("down", "--all")


@pytest.fixture
def node(labs: Labs) -> NetnsNode:
    return labs.node(ONE, "node1")


# -- what listens ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Socket:
    """One that somebody can send to: listening, bound, or fed by every packet."""

    kind: str
    address: str
    inode: str


def sockets() -> set[Socket]:
    """Those of this machine's own network namespace (proc_pid_net(5))."""
    found = set()
    for kind in (
        "tcp",
        "tcp6",
        "udp",
        "udp6",
        "udplite",
        "udplite6",
        "raw",
        "raw6",
        "icmp",
        "icmp6",
    ):
        for fields in table(kind):
            listens = fields[3] == "0A" if kind.startswith("tcp") else fields[2].endswith(":0000")
            if listens:
                found.add(Socket(kind, fields[1], fields[9]))
    for fields in table("packet"):
        found.add(Socket("packet", f"protocol {fields[3]}, link {fields[4]}", fields[8]))
    for fields in table("unix"):
        if len(fields) > 7 and (int(fields[3], 16) & 1 << 16 or fields[4] == "0002"):
            found.add(Socket("unix", fields[7], fields[6]))  # accepts, or is of datagrams
    return found


def table(kind: str) -> Iterator[list[str]]:
    with contextlib.suppress(FileNotFoundError):  # a kernel without that protocol
        for line in Path("/proc/self/net", kind).read_text(encoding="utf-8").splitlines()[1:]:
            yield line.split()


def strangers(inodes: set[str], ours: str) -> set[str]:
    """Those of some sockets that a process has which is of no lab of ours: somebody else's."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ends while we look
            if ours in (process / "cgroup").read_text(encoding="utf-8"):
                continue
            for file in (process / "fd").iterdir():
                with contextlib.suppress(OSError):
                    found |= {name for name in inodes if f"socket:[{name}]" == str(file.readlink())}
    return found


def test_nothing_listens_outside_of_the_labs(labs: Labs) -> None:
    folders = [cgroups.folder_name(name, labs.bed.state.resolve()) for name in (ONE, PLAIN)]
    (ours,) = {folder.rpartition(".")[2] for folder in folders}
    new = sockets() - labs.sockets_before
    new = {one for one in new if one.inode not in strangers({s.inode for s in new}, f".{ours}/")}
    assert new & sockets() == set(), "outside of the namespaces of a lab"


def mine() -> set[str]:
    """Inodes of the sockets that this process has open."""
    found = set()
    for file in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the folder's own
            found |= set(re.findall(r"socket:\[(\d+)\]", str(file.readlink())))
    return found


def test_what_listens_would_have_been_seen(tmp_path: Path) -> None:
    name = f"testbed-isolation-{os.getpid()}"
    before = sockets()
    with contextlib.ExitStack() as stack:
        kinds: list[tuple[int, int, str | tuple[str, int]]] = [
            (socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
            (socket.AF_INET6, socket.SOCK_STREAM, ("::1", 0)),
            (socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
            (socket.AF_UNIX, socket.SOCK_STREAM, f"\0{name}"),
            (socket.AF_UNIX, socket.SOCK_DGRAM, f"\0{name}"),
            (socket.AF_UNIX, socket.SOCK_STREAM, str(tmp_path / "socket")),
        ]
        for family, kind, address in kinds:
            made = stack.enter_context(socket.socket(family, kind))
            made.bind(address)
            if kind == socket.SOCK_STREAM:
                made.listen()
        stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP))
        stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0x0300))
        # Others of this machine may make sockets meanwhile.
        seen = sorted(one.kind for one in sockets() - before if one.inode in mine())
    assert [seen.count(kind) for kind in ("tcp", "tcp6", "udp", "raw", "packet")] == [1] * 5
    assert seen.count("unix") == 3


# -- files, sockets, keys --------------------------------------------------------------------------


def test_what_is_kept_of_labs_is_for_its_owner_alone(labs: Labs) -> None:
    last.keep(labs.bed.state, {"claims": [], "labs": []})
    with State(labs.bed.state).lock(ONE, "test"):
        modes = {
            str(path.relative_to(labs.bed.state)): stat.filemode(path.lstat().st_mode)
            for path in [labs.bed.state, *labs.bed.state.rglob("*")]
        }
        owners = {path.lstat().st_uid for path in labs.bed.state.rglob("*")}
    assert modes == {
        ".": "drwx------",
        **{f"{name}.json": "-rw-------" for name in (ONE, OTHER, PLAIN)},
        f".{ONE}.lock": "-rw-------",
        "runs": "drwx------",
        "runs/last.json": "-rw-------",
    }
    assert owners == {os.geteuid()}


def as_nobody(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv,
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        capture_output=True,
        text=True,
        check=False,
    )


def test_nobody_else_gets_into_a_node(labs: Labs, node: NetnsNode) -> None:
    process = f"/proc/{node.init.pid}"
    assert as_nobody("cat", f"{process}/status").returncode == 0
    for argv in (
        ["ls", f"{process}/root/"],
        ["stat", f"{process}/root/run/docker.sock"],
        ["ls", f"{process}/cwd/"],
        ["cat", f"{process}/environ"],
        ["nsenter", f"--net={process}/ns/net", "true"],
    ):
        done = as_nobody(*argv)
        assert done.returncode != 0, argv
        assert "Permission denied" in done.stderr, done.stderr


def test_pid_1_of_a_node_takes_requests_of_root_alone(node: NetnsNode) -> None:
    modes = node.run(["stat", "-c", "%A", "/run/testbed", "/run/testbed/init.sock"]).stdout.split()
    assert modes == ["drwx--x--x", "srw-------"]  # others may pass, to what is exposed below it
    argv = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    ask = "import socket\nsocket.socket(1, 5).connect('/run/testbed/init.sock')"  # SOCK_SEQPACKET
    assert node.run([*PYTHON, ask]).ok
    assert "PermissionError" in node.run([*argv, *PYTHON, ask], check=False).stderr
    assert not node.run([*argv, "ls", "/run/testbed"], check=False).ok
    assert node.run(["stat", "-c", "%a", "/run/docker.sock"]).stdout.strip() == "660"


# -- the way to this machine, and to another lab ---------------------------------------------------


class Service:
    """A web server of this machine, on all its addresses, and who came."""

    def __init__(self) -> None:
        outer = self
        self.came: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.came.append(str(self.client_address[0]))
                self.send_response(204)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            address_family = socket.AF_INET6

            def server_bind(self) -> None:
                self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
                super().server_bind()

        self._http = Server(("::", 0), Handler)
        self.port = self._http.server_address[1]
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

    def answers(self, address: str) -> bool:
        connection = http.client.HTTPConnection(address, self.port, timeout=60)
        try:
            connection.request("GET", "/")
            return connection.getresponse().status == 204
        finally:
            connection.close()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


def addresses() -> list[str]:
    """This machine's, those of links alone not, which need a link's name."""
    links = json.loads(run(["ip", "-j", "address"]).stdout)
    return [
        info["local"] for link in links for info in link["addr_info"] if info["scope"] != "link"
    ]


def test_this_machines_services_cannot_be_reached(labs: Labs) -> None:
    service = Service()
    try:
        known = addresses()
        assert "127.0.0.1" in known
        for address in known:
            assert service.answers(address)
        service.came.clear()
        for place in labs.places().values():
            for address in known:
                url = f"http://[{address}]" if ":" in address else f"http://{address}"
                argv = ["curl", "-sS", "--noproxy", "*", "--connect-timeout", "1"]
                done = place.run([*argv, f"{url}:{service.port}/"], check=False)
                assert done.status in (7, 28), done  # curl(1): failed to connect, or in time
        assert service.came == []
    finally:
        service.close()


def test_nor_by_the_name_of_a_socket(labs: Labs, tmp_path: Path) -> None:
    connect = "import socket, sys; name = sys.argv[1].replace('@', chr(0))\n"
    connect += "socket.socket(socket.AF_UNIX).connect(name)"
    nodes = [node for lab in (ONE, PLAIN) for node in labs.live(lab).nodes.values()]
    with contextlib.ExitStack() as stack:
        for name in (f"@testbed-isolation-{os.getpid()}", str(tmp_path / "socket")):
            made = stack.enter_context(socket.socket(socket.AF_UNIX))
            made.bind(name.replace("@", "\0"))
            made.listen()
            run([*PYTHON, connect, name])  # from here it can be reached
            for node in nodes:
                done = node.run([*PYTHON, connect, name], check=False)
                assert re.search("ConnectionRefused|FileNotFound", done.stderr), done
    for folder in PRIVATE:  # where this machine's own sockets are
        here = Path(folder).stat()
        for node in nodes:
            there = node.run(["stat", "-c", "%d %i", folder]).stdout.split()
            assert there != [str(here.st_dev), str(here.st_ino)], folder


def test_labs_of_one_address_plan_do_not_meet(labs: Labs) -> None:
    """An address leads to a server of the same lab, or to nothing."""
    serve = "import socket, sys; s = socket.create_server((sys.argv[1], 7777)); print(flush=True)\n"
    serve += "while True: c, _ = s.accept(); c.sendall(sys.argv[2].encode()); c.close()"
    ask = "import socket; s = socket.create_connection(('10.168.0.2', 7777), 2); print(s.recv(99))"

    def asked(lab: str) -> str:
        done = labs.node(lab, "node2").run([*PYTHON, ask], check=False)
        return done.stdout.strip() or done.stderr.strip().splitlines()[-1].partition(":")[0]

    with contextlib.ExitStack() as stack:
        for lab, others in ((ONE, "ConnectionRefusedError"), (OTHER, "b'isolated-other'")):
            argv = [*PYTHON, serve, "10.168.0.2", lab]
            assert says_something(stack.enter_context(labs.node(lab, "node1").spawn(argv)))
            assert asked(ONE) == f"b'{ONE}'"
            assert asked(OTHER) == others


def says_something(running: Running) -> bool:
    return until(lambda: bool(running.out))


# -- what a node can change ------------------------------------------------------------------------

WRITABLE = """
import os, stat, sys
for top in sys.argv[1:]:
    for folder, folders, names in os.walk(top):
        if folder == "/proc":
            folders[:] = [name for name in folders if not name.isdigit()]
        if folder in ("/proc/sys/net", "/sys/fs/cgroup"):  # the node's own
            folders[:] = names = []
        for name in names:
            path = os.path.join(folder, name)
            mode = os.lstat(path).st_mode
            if stat.S_ISREG(mode) and mode & 0o222 and os.access(path, os.W_OK):
                print(path)
"""
SYSCTLS = (
    "kernel/panic", "kernel/core_pattern", "kernel/sysrq", "kernel/modprobe", "kernel/pid_max",
    "vm/overcommit_memory", "vm/drop_caches", "fs/file-max", "fs/inotify/max_user_watches",
)  # fmt: skip


def test_nothing_of_proc_and_sys_can_be_written_but_what_is_its_own(labs: Labs) -> None:
    host = run([*PYTHON, WRITABLE, "/proc", "/sys"]).stdout.split()
    assert "/proc/sys/kernel/panic" in host  # the look sees what can be written
    for node in (labs.node(ONE, "node1"), labs.node(PLAIN, "host")):
        assert node.run([*PYTHON, WRITABLE, "/proc", "/sys"], timeout=60).stdout == ""
        for name in SYSCTLS:
            if Path("/proc/sys", name).exists():
                with pytest.raises(OSError, match="Read-only file system"):
                    os.close(node._open(f"/proc/sys/{name}", os.O_WRONLY, 0))


def test_mounts_stay_in_the_node(labs: Labs, node: NetnsNode) -> None:
    mark = f"testbed-isolation-{os.getpid()}"
    before = node.run(["cat", "/proc/self/mountinfo"]).stdout
    node.run(["mount", "-t", "tmpfs", mark, "/mnt"])
    node.run(["mkdir", "/mnt/below"])
    node.run(["mount", "--bind", "/mnt", "/mnt/below"])
    try:
        assert mark in node.run(["cat", "/proc/self/mountinfo"]).stdout
        assert mark not in Path("/proc/self/mountinfo").read_text(encoding="utf-8")
        for other in (labs.node(ONE, "node2"), labs.node(OTHER, "node1")):
            assert mark not in other.run(["cat", "/proc/self/mountinfo"]).stdout
    finally:
        node.run(["umount", "--recursive", "/mnt"])
    assert node.run(["cat", "/proc/self/mountinfo"]).stdout == before


def test_all_that_is_this_machines_is_mounted_read_only(node: NetnsNode) -> None:
    for line in node.run(["cat", "/proc/self/mountinfo"]).stdout.splitlines():
        place, options = line.split()[4:6]
        assert is_hidden(Path(place)) or "ro" in options.split(","), line


def test_a_node_sees_no_cgroup_but_its_own(labs: Labs, node: NetnsNode) -> None:
    for line in node.run(["cat", "/proc/self/cgroup"]).stdout.splitlines():
        assert line.split(":", 2)[2] in ("/", "/init"), line
    found = node.run(["find", "/sys/fs/cgroup", "-type", "d"]).stdout
    assert ONE not in found
    assert OTHER not in found
    above = node.run(["find", "/sys/fs/cgroup", "-maxdepth", "2", "-name", "testbed"]).stdout
    assert above == ""


def test_no_device_but_those_that_are_nobodys(node: NetnsNode) -> None:
    argv = ["find", "/dev", "-xdev", "(", "-type", "b", "-o", "-type", "c", ")", "-printf", "%P\\n"]
    wanted = {"null", "zero", "full", "random", "urandom", "tty", "net/tun", "fuse"}
    assert set(node.run(argv).stdout.split()) == wanted


def test_processes_of_this_machine_cannot_be_seen_or_ended(node: NetnsNode) -> None:
    with subprocess.Popen([sys.executable, "-S", "-c", "input()", "testbed-isolation"],
                          stdin=subprocess.PIPE) as mine:  # fmt: skip
        try:
            seen = node.run(["sh", "-c", "cat /proc/[0-9]*/cmdline 2> /dev/null || :"]).out
            assert b"testbed-isolation" not in seen
            assert b"testbed-init" in seen
            argv = ["sh", "-c", 'test ! -e "/proc/$1" && ! kill -0 "$1"', "sh", str(mine.pid)]
            assert node.run(argv, check=False).ok
        finally:
            mine.kill()


#: clock_settime, clock_adjtime, settimeofday, adjtimex, swapon, swapoff, kexec_load,
#: kexec_file_load, delete_module, syslog; the last two of x86_64 are iopl and ioperm.
NUMBERS = {
    "x86_64": (227, 305, 164, 159, 167, 168, 246, 320, 176, 103, 172, 173),
    "aarch64": (112, 266, 170, 171, 224, 225, 104, 294, 106, 116),
}
# No kernel takes -1 for an address, a clock, a flag or a number of ports: nothing comes of it.
CALL = """
import ctypes, errno, sys
libc = ctypes.CDLL(None, use_errno=True)
for number in sys.argv[1:]:
    assert libc.syscall(int(number), -1, -1, -1, -1, -1) == -1
    print(number, errno.errorcode[ctypes.get_errno()])
"""


def test_what_has_no_namespace_is_refused(labs: Labs) -> None:
    """The machine's clock, swap, modules, log and ports; `date -s` in a node, say."""
    node = labs.node(PLAIN, "host")  # one that has all capabilities that there are
    calls = [str(number) for number in NUMBERS[os.uname().machine]]
    for place in (node, Inside(labs.live(PLAIN), "bridged")):
        told = place.run([*PYTHON, CALL, *calls]).stdout.splitlines()
        assert told == [f"{number} EPERM" for number in calls]
    status = node.get("/proc/1/status").decode()
    assert bits(status, "CapBnd") == bits(Path("/proc/self/status").read_text("utf-8"), "CapBnd")
    assert "\nSeccomp:\t2\n" in status
    assert node.get("/proc/kmsg") == b""
    assert node.run([*PYTHON, "import time; print(time.clock_gettime(0))"]).ok  # asked, it answers


def bits(status: str, field: str) -> int:
    """A set of capabilities in proc_pid_status(5)."""
    found = re.search(rf"^{field}:\t([0-9a-f]+)$", status, re.MULTILINE)
    assert found
    return int(found[1], 16)


#: What Docker gives a container by default, by capabilities(7)'s numbers: chown, dac_override,
#: fowner, fsetid, kill, setgid, setuid, setpcap, net_bind_service, net_raw, sys_chroot, mknod,
#: audit_write, setfcap (Docker's documents, "Runtime privilege and Linux capabilities").
BY_DEFAULT = sum(1 << number for number in (0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31))


def test_a_container_has_what_docker_gives_by_default_and_no_more(labs: Labs) -> None:
    for lab, name in ((ONE, "container-1"), (PLAIN, "bridged"), (PLAIN, "as-host")):
        container = labs.live(lab).container(name)
        status = container.node.get(f"/proc/{container.pid}/status").decode()
        for field in ("CapPrm", "CapEff", "CapBnd"):
            assert bits(status, field) == BY_DEFAULT
        assert "\nSeccomp_filters:\t2\n" in status  # the node's, and Docker's
        mounts = container.node.get(f"/proc/{container.pid}/mountinfo").decode()
        assert re.search(r" /proc/sys ro,", mounts)
        assert not re.search(r" - (ext4|xfs|btrfs) .* /( |$)", mounts)


# -- what testbed itself needs ---------------------------------------------------------------------


def test_a_lab_needs_no_power_but_what_is_listed(labs: Labs, node: NetnsNode) -> None:
    """It came up with that alone."""
    mask = bits(node.get("/proc/1/status").decode(), "CapBnd")
    named = run(["capsh", f"--decode={mask:x}"]).stdout.strip().partition("=")[2].split(",")
    assert sorted(named) == listed()
    assert labs.bed.status(ONE)["ok"]
