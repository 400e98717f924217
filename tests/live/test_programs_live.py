"""The programs on a node's PATH: of the versions that the lab runs, and never this machine's."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from labs import skip_unless_built

from testbed.artifacts.engines import BUILT
from testbed.labs import offers
from testbed.labs.lab import Lab
from testbed.labs.live import LiveLab
from testbed.nodes.engine import CONTAINERD_SOCKET
from testbed.roles.docker.section import ENGINES
from testbed.settings import settings
from testbed.topology import Overrides, load

NAME = "programs"
#: How people, and their tools, come to a program by its name.
WAYS = (
    ("sh", "-c"),
    ("bash", "-lc"),  # with the start-up files of a login
    ("bash", "-ic"),  # with those of a terminal
    ("env", "-i", "sh", "-c"),
    ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c"),
)
#: Put before a command, to make this machine one with programs and settings of its own that are
#: in the way, in a mount namespace that nobody else sees.
MACHINE = """
set -e
for folder in /usr/local/sbin /usr/libexec; do
  mount -n -t tmpfs none $folder
done
for name in docker docker-compose etcdctl flanneld ctr runc kubectl; do
  printf '#!/bin/sh\\necho the wrong one\\n' > /usr/local/sbin/$name
done
mkdir -p /usr/libexec/docker/cli-plugins
cp /usr/local/sbin/docker /usr/libexec/docker/cli-plugins/docker-other
chmod -R +x /usr/local/sbin /usr/libexec/docker
mount -n -t tmpfs none /etc/profile.d
echo 'export PATH=/usr/local/wrong:$PATH DOCKER_HOST=tcp://192.0.2.1' > /etc/profile.d/wrong.sh
exec "$@"
"""
ON_REQUEST = {name: one for name, one in BUILT.items() if not one.everywhere}
EACH = [pytest.param(one, marks=pytest.mark.long if one in ON_REQUEST else ()) for one in ENGINES]


@pytest.fixture(autouse=True)
def _down(state: Path) -> Iterator[None]:
    assert state
    yield
    Lab(NAME, settings()).down()


@pytest.mark.parametrize("engine", EACH)
def test_each_is_of_the_version_that_the_lab_runs(engine: str) -> None:
    if engine in ON_REQUEST:
        skip_unless_built(ON_REQUEST[engine])
    topology = load("two-node", Overrides(docker=engine, name=NAME))
    Lab(NAME, settings()).up(topology)
    live = LiveLab(Lab(NAME, settings()).context())
    node, store = live.node("node1"), settings().store
    try:
        version = live.engine("node1").version
        parts = {part["Name"]: part["Version"] for part in version["Components"]}
        if engine != ENGINES[0]:  # that one is Debian's, whichever it has
            assert version["Version"].startswith(engine)
        wanted = {
            "docker --version": version["Version"],
            "docker version --format '{{.Server.Version}}'": version["Version"],
            "dockerd --version": version["Version"],
            "ctr --version": parts["containerd"],
            "containerd --version": parts["containerd"],
            "runc --version": parts["runc"],
            "etcdctl version": store.version("etcd"),
            "etcd --version": store.version("etcd"),
            "flanneld --version 2>&1": store.version("flanneld"),
        }
        for command, one in wanted.items():
            number = re.findall(r"\d+\.\d+\.\d+", one)[0]
            for way in WAYS:
                if "docker version" in command and "setpriv" in way:
                    continue  # its socket is root's
                result = node.run([*way, command], check=False)
                said = re.findall(r"\d+\.\d+\.\d+", result.stdout)
                assert (result.status, said[:1]) == (0, [number]), (way, command, result)
        # It asks this node's daemon, and nobody else's: by its own default.
        assert "container-1" in node.run(["docker", "ps"]).stdout
        # No link from ctr's default address: dockerd would take it for the machine's containerd.
        ctr = ["ctr", f"--address={CONTAINERD_SOCKET}", "--namespace=moby"]
        listed = node.run([*ctr, "containers", "list", "--quiet"]).stdout.split()
        assert live.engine("node1").inspect("container-1").id in listed
        assert "DOCKER_HOST" not in node.run(["env"]).stdout
        run = ["docker", "run", "--rm", "--entrypoint", "hostname", "nginx", "-i"]
        assert re.search(r"100\.96\.1\.\d+", node.run(run).stdout)
        # Settings of its own can be kept, root's here are not to be seen.
        assert node.run(["ls", "-A", "/root/.docker"], check=False).stdout == ""
    finally:
        live.close()


COMPOSED = """
services:
  web: {image: nginx, ports: ["9090:80"]}
  other: {image: nginx, depends_on: [web]}
"""


@pytest.mark.parametrize("engine", EACH)
def test_compose(engine: str) -> None:
    """Two services that know each other by name; or the command that builds Compose."""
    if engine in ON_REQUEST:
        skip_unless_built(ON_REQUEST[engine])
    Lab(NAME, settings()).up(load("docker-single", Overrides(docker=engine, name=NAME)))
    live, store = LiveLab(Lab(NAME, settings()).context()), settings().store
    node = live.node("host")
    try:
        if store.made("docker-compose") is None:
            for command in (["docker", "compose"], ["docker-compose"]):
                result = node.run([*command, "up", "-d"], check=False)
                assert result.status == 127
                assert "testbed artifacts build compose" in result.stderr
            assert "not built" in node.run(["docker", "--help"]).stdout
            return
        version = store.version("compose")
        for command in (["docker", "compose"], ["docker-compose"]):
            assert node.run([*command, "version", "--short"]).stdout.strip() == version[1:]
        node.put(COMPOSED.encode(), "/tmp/project/compose.yaml")
        compose = ["docker", "compose", "--project-directory=/tmp/project"]
        node.run([*compose, "up", "--detach", "--pull=never"])
        states = node.run([*compose, "ps", "--format={{.Service}} {{.State}}"]).stdout
        assert sorted(states.split("\n")) == ["", "other running", "web running"]
        asked = [
            *compose,
            "exec",
            "-T",
            "web",
            "curl",
            "-sS",
            "--retry-connrefused",
            "--retry",
            "20",
        ]
        page = node.run([*asked, "--retry-delay", "1", "http://other/"]).json()
        assert page["host"] == "other"
        node.run([*compose, "down", "--timeout=1"])
        assert "project" not in node.run(["docker", "ps", "--all"]).stdout
    finally:
        live.close()


def test_this_machines_are_not_to_be_seen() -> None:
    """On a node with the roles, on one without; its own are first, and the only ones."""
    namespace = ["unshare", "--mount", "--propagation=private", "sh", "-c", MACHINE, "sh"]
    up = [sys.executable, "-m", "testbed", "up", "two-node", "--name", NAME]
    subprocess.run([*namespace, *up], check=True, capture_output=True, timeout=300)
    live = LiveLab(Lab(NAME, settings()).context())
    try:
        topology = live.topology
        hidden = offers.hidden(topology, topology.nodes["outside"])
        names = [name for name in hidden if "/" not in name]
        for name in ("node1", "outside"):
            offered = offers.offers_on(topology, topology.nodes[name])
            for way in WAYS:
                script = "".join(f"command -v {shlex.quote(one)} || echo none; " for one in names)
                found = live.node(name).run([*way, script]).stdout.split()
                places = [f"/usr/bin/{one}" for one in names]
                mine = {str(Path("/usr/bin", place)) for place in offered}
                expected = [place if place in mine else "none" for place in places]
                assert found == expected, (name, way)
            said = live.node(name).run(["bash", "-lc", 'echo "$PATH $DOCKER_HOST"']).stdout
            assert said == "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \n"
        assert not live.node("outside").run(["docker", "ps"], check=False).ok
        assert "wrong" not in live.node("node1").run(["docker", "ps"]).stdout
        assert "other" not in live.node("node1").run(["docker", "info"]).stdout
    finally:
        live.close()


def test_what_is_installed_later_is_there(tmp_path: Path) -> None:
    """Also where the node has looked for it before: the kernel remembers that for a tree."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = 'mount -n --bind $1 /usr/local/sbin; shift; exec "$@"'
    namespace = ["unshare", "--mount", "--propagation=private", "sh", "-ec", script, "sh"]
    (folder / "docker").touch()  # to be hidden, so that the folder is a tree of the node's
    up = [sys.executable, "-m", "testbed", "up", "netns-experiments", "--name", NAME]
    subprocess.run([*namespace, str(folder), *up], check=True, capture_output=True, timeout=300)
    node = settings().providers["netns"].nodes(NAME)["host"]
    for _ in range(2):
        assert node.run(["sh", "-c", "fresh"], check=False).status == 127
        (folder / "fresh").write_text("#!/bin/sh\nexit 7\n")
        (folder / "fresh").chmod(0o755)
        assert node.run(["sh", "-c", "fresh"], check=False).status == 7
        (folder / "fresh").unlink()
    assert node.run(["sh", "-c", "docker"], check=False).status == 127
