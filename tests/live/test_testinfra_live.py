"""Every module of testinfra on a node and in a container: the truth, or an error that says why."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import testinfra.modules

from testbed.artifacts import release
from testbed.labs.lab import Lab
from testbed.labs.live import LiveLab
from testbed.settings import settings
from testbed.topology.load import load

NODE, CONTAINER = "node", "container"
Host = Any


class Fails:
    """An error is expected, with these words in it."""

    def __init__(self, words: str) -> None:
        self.words = words


NO_MANAGER = Fails("no service manager")
NO_PROGRAM = Fails("not found")  # the shell's own word for a command that is not there
NO_UNIT = Fails("no service 'nginx'")
#: The version of Debian's own engine: 20.10.24+dfsg1 on Debian 12.
ENGINE = re.compile(rf"{re.escape(release.this().engine)}\.\d.*")

#: Module, what it is asked, and what is true of the node, then of the container "web" of the
#: topology docker-single: nginx on all addresses, port 80, in the image that comes along.
TABLE: list[tuple[Any, ...]] = [
    # The topology's networks: the node's address and docker0's bip; docker0 gives .4 to the third.
    ("addr", lambda h: h.addr("localhost").is_resolvable, True, True),
    ("addr", lambda h: h.addr("outside").ipv4_addresses, ["10.168.0.1"], []),
    ("addr", lambda h: h.addr("10.168.0.1").is_reachable, True, True),
    ("addr", lambda h: h.addr("127.0.0.1").port(80).is_reachable, False, True),
    ("addr", lambda h: h.addr("127.0.0.1").port(8080).is_reachable, True, False),  # published
    ("ansible", lambda h: h.ansible("ping"), *[Fails("ansible connection")] * 2),
    ("block_device", lambda h: h.block_device("/dev/none").size, *[Fails("/dev/none")] * 2),
    ("command", lambda h: h.check_output("echo %s", "a'b"), "a'b", "a'b"),
    ("command", lambda h: h.run("kill -9 $$; true").rc != 0, True, True),
    ("command", lambda h: h.run("printf '\\377'").stdout_bytes, b"\xff", b"\xff"),
    ("docker", lambda h: h.docker("web").is_running, True, NO_PROGRAM),
    ("docker", lambda h: h.docker("web").name, "web", NO_PROGRAM),
    ("docker", lambda h: h.docker("nothing").is_running, Fails("nothing"), NO_PROGRAM),
    (
        "docker",
        lambda h: "web" in {one.name for one in h.docker.get_containers(status="running")},
        True,
        NO_PROGRAM,
    ),
    ("docker", lambda h: h.docker.server_version(), ENGINE, NO_PROGRAM),
    ("environment", lambda h: h.environment().get("HOME"), "/root", "/root"),
    # What the image and the topology set, and what no container has.
    ("environment", lambda h: h.environment().get("NAME"), None, "web"),
    ("environment", lambda h: h.environment().get("TERM"), "dumb", None),
    ("facter", lambda h: h.facter("kernel"), NO_PROGRAM, NO_PROGRAM),
    ("file", lambda h: h.file("/etc/nginx/nginx.conf").exists, False, True),
    (
        "file",
        lambda h: h.file("/etc/nginx/nginx.conf").contains("worker_proc"),
        Fails("grep"),
        True,
    ),
    ("file", lambda h: h.file("/entrypoint.sh").mode, Fails("No such file"), 0o755),
    ("file", lambda h: h.file("/etc/shadow").mode, 0o640, 0o640),  # as Debian's base-passwd
    ("file", lambda h: h.file("/etc/passwd").user, "root", "root"),
    ("file", lambda h: h.file("/etc/passwd").group, "root", "root"),
    ("file", lambda h: h.file("/run/docker.sock").is_socket, True, False),
    ("file", lambda h: h.file("/run/docker.sock").group, "docker", Fails("No such file")),
    ("file", lambda h: h.file("/etc/hostname").content_string, "host\n", re.compile(r"\w+\n")),
    # Of a file without content, as RFC 1321, A.5, and FIPS 180-4 have it.
    ("file", lambda h: h.file("/dev/null").md5sum, *["d41d8cd98f00b204e9800998ecf8427e"] * 2),
    ("file", lambda h: h.file("/dev/null").sha256sum[:16], *["e3b0c44298fc1c14"] * 2),
    ("file", lambda h: h.file("/none").md5sum, *[Fails("No such file")] * 2),
    ("file", lambda h: "passwd" in h.file("/etc").listdir(), True, True),
    ("file", lambda h: h.file("/bin").linked_to, "/usr/bin", "/usr/bin"),
    ("file", lambda h: h.file("/etc/passwd").size > 0, True, True),
    ("file", lambda h: h.file("/none").size, *[Fails("No such file")] * 2),
    ("group", lambda h: h.group("root").gid, 0, 0),
    ("group", lambda h: h.group("docker").exists, True, False),
    ("group", lambda h: h.group("nothing").exists, False, False),
    ("interface", lambda h: h.interface("eth0").exists, True, True),
    ("interface", lambda h: h.interface("eth9").exists, False, False),
    ("interface", lambda h: h.interface("docker0").exists, True, False),
    ("interface", lambda h: h.interface("docker0").addresses[:1], ["172.17.0.1"], Fails("docker0")),
    ("interface", lambda h: h.interface.default().name, "eth0", "eth0"),
    ("interface", lambda h: sorted(h.interface.names())[:2], ["docker0", "eth0"], ["eth0", "lo"]),
    ("iptables", lambda h: "-N DOCKER" in h.iptables.rules("nat"), True, NO_PROGRAM),
    ("iptables", lambda h: h.iptables.rules("nothing"), Fails("nothing"), NO_PROGRAM),
    ("mount_point", lambda h: h.mount_point("/proc").filesystem, "proc", "proc"),
    ("mount_point", lambda h: h.mount_point("/var/lib").exists, True, False),
    ("mount_point", lambda h: h.mount_point("/").filesystem == "overlay", None, True),
    # dockerd comes out of Debian's package; of the image's no database is kept.
    ("package", lambda h: h.package("docker.io").is_installed, True, Fails("dpkg-query")),
    ("package", lambda h: h.package("docker.io").version, ENGINE, Fails("dpkg-query")),
    ("package", lambda h: h.package("no-such-package").is_installed, False, Fails("dpkg-query")),
    ("pip", lambda h: h.pip("no-such-package").version, Fails("no-such-package"), NO_PROGRAM),
    ("podman", lambda h: h.podman("web").is_running, NO_PROGRAM, NO_PROGRAM),
    ("process", lambda h: h.process.get(comm="dockerd").user, "root", Fails("No process")),
    ("process", lambda h: bool(h.process.filter(comm="containerd")), True, False),
    ("process", lambda h: h.process.get(pid=1).comm, "testbed-init", "nginx"),
    (
        "process",
        lambda h: h.process.get(user="www-data", ppid=1).comm,
        Fails("No process"),
        "nginx",
    ),
    ("puppet_resource", lambda h: h.puppet_resource("user"), NO_PROGRAM, NO_PROGRAM),
    ("salt", lambda h: h.salt("test.ping"), NO_PROGRAM, NO_PROGRAM),
    ("service", lambda h: h.service("docker").is_running, True, NO_MANAGER),
    ("service", lambda h: h.service("docker").is_enabled, True, NO_MANAGER),
    ("service", lambda h: h.service("dockerd").is_running, True, NO_MANAGER),
    ("service", lambda h: h.service("nginx").is_running, False, NO_MANAGER),
    ("service", lambda h: h.service("nginx").exists, False, NO_MANAGER),
    ("service", lambda h: h.service("nginx").is_enabled, NO_UNIT, NO_MANAGER),
    ("socket", lambda h: h.socket("tcp://0.0.0.0:80").is_listening, False, True),
    ("socket", lambda h: h.socket("tcp://81").is_listening, False, False),
    ("socket", lambda h: h.socket("unix:///run/docker.sock").is_listening, True, False),
    ("socket", lambda h: h.socket("unix:///var/run/docker.sock").is_listening, True, False),
    ("socket", lambda h: "tcp://0.0.0.0:80" in h.socket.get_listening_sockets(), False, True),
    ("sudo", lambda h: h.run("sudo true").rc in {0, 127}, True, True),  # where there is one
    ("supervisor", lambda h: h.supervisor("web").is_running, NO_PROGRAM, NO_PROGRAM),
    # A gateway of containers forwards (docker-run needs it); a container need not.
    ("sysctl", lambda h: h.sysctl("net.ipv4.ip_forward"), 1, None),
    ("sysctl", lambda h: h.sysctl("net.ipv4.ip_default_ttl"), 64, 64),  # RFC 1700's, Linux's own
    ("sysctl", lambda h: h.sysctl("net.nothing"), Fails("nothing"), Fails("nothing")),
    ("system_info", lambda h: h.system_info.type, "linux", "linux"),
    ("system_info", lambda h: h.system_info.distribution, "debian", "debian"),
    ("system_info", lambda h: bool(h.system_info.release and h.system_info.codename), True, True),
    ("user", lambda h: h.user().name, "root", "root"),
    ("user", lambda h: h.user("root").shell, "/bin/bash", "/bin/sh"),
    ("user", lambda h: h.user("root").home, "/root", "/root"),
    ("user", lambda h: h.user("www-data").uid, 33, 33),  # Debian's own number of it
    ("user", lambda h: h.user("www-data").groups, ["www-data"], ["www-data"]),
    ("user", lambda h: h.user("nobody").password, "*", "*"),
    ("user", lambda h: h.user("nothing").exists, False, False),
]


@pytest.fixture(scope="module")
def live() -> Iterator[LiveLab]:
    topology = load("docker-single")
    lab = Lab(topology.name, settings())
    try:
        lab.up(topology)
        found = LiveLab(lab.context())
        yield found
        found.close()
    finally:
        lab.down()


def test_no_module_is_left_out() -> None:
    assert {row[0] for row in TABLE} == set(testinfra.modules.modules)


@pytest.mark.parametrize("where", [NODE, CONTAINER])
@pytest.mark.parametrize("row", TABLE, ids=lambda row: row[0])
def test_a_module_tells_the_truth_or_why_not(
    row: tuple[Any, ...], where: str, live: LiveLab
) -> None:
    host = live.node("host").host if where == NODE else live.container("web").host
    _, ask, *both = row
    expected = both[where == CONTAINER]
    if isinstance(expected, Fails):
        with pytest.raises((AssertionError, RuntimeError, ValueError)) as caught:
            ask(host)
        assert expected.words in str(caught.value)
    elif isinstance(expected, re.Pattern):
        assert expected.fullmatch(ask(host))
    elif expected is not None or row[0] == "environment":
        assert ask(host) == expected
    else:  # nothing that must be so
        ask(host)


def test_a_daemon_that_was_stopped_does_not_run(live: LiveLab) -> None:
    node = live.node("host")
    node.stop("dockerd")
    assert not node.host.service("docker").is_running
    lab = Lab(live.name, settings())
    lab.up(load("docker-single"))
    assert node.host.service("docker").is_running


def test_a_suite_of_testinfra_alone_runs_on_the_lab(live: LiveLab, tmp_path: Path) -> None:
    """As people run it, with pytest and by `verify`: on each node, and nowhere else."""
    suite = tmp_path / "test_plain.py"
    suite.write_text(
        "def test_it(host):\n"
        "    name = host.check_output('hostname')\n"
        "    assert host.backend.get_hostname() == name\n"
    )
    names = [f"test_it[testbed://docker-single/{node}]" for node in live.topology.nodes]
    for command in (
        ["pytest", "-v", "-p", "no:cacheprovider", "--testbed-lab=docker-single"],
        ["pytest", "-v", "-p", "no:cacheprovider", "--hosts=testbed://docker-single"],
        ["testbed", "verify", "docker-single"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", *command, str(suite)],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert all(name in done.stdout for name in names), done.stdout
