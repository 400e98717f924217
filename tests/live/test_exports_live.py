"""Exports in the hands of their tools: each file works as it is."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import standins
from commands import call
from exported import ODD, SECONDS, TOOLS, ansible_reaches, by_tool
from labs import brought_up

from testbed.artifacts.inventory import NODE_IMAGE
from testbed.artifacts.node_image import IMAGE, PART
from testbed.nodes.containerlab.cell import Cell
from testbed.nodes.netns.node import NetnsNode
from testbed.settings import settings
from testbed.topology import load_text

if TYPE_CHECKING:
    from testbed.labs.lab import Lab

#: For netlab on a machine: sudo without options, and the list of modules that a kernel may lack.
SUDO = '#!/bin/sh\nwhile case $1 in -*) ;; *) false ;; esac; do shift; done\nexec "$@"\n'
NO_MODULES = """\
import pathlib
read_text = pathlib.Path.read_text
def read(path, *words, **more):
    if str(path) == "/proc/modules" and not path.exists():
        return ""
    return read_text(path, *words, **more)
pathlib.Path.read_text = read
"""
LAB = "exports-live"
#: Other ranges than those of the labs that Compose starts on it.
TEXT = f"""\
name: {LAB}
networks: {{apart: {{subnet: 10.55.0.0/24}}}}
nodes:
  box: {{networks: {{apart: 10.55.0.2}}, roles: [docker]}}
  plain: {{networks: {{apart: 10.55.0.3}}}}
docker: {{engine: 29, bip: 172.31.0.1/24}}
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    yield from brought_up(load_text(TEXT, "lab.yaml"), tmp_path_factory.mktemp("state"))


@pytest.fixture
def containers(tmp_path: Path) -> Iterator[Lab]:
    """Nodes whose files are not this machine's, and that are at the end of a stream."""
    text = TEXT.replace(LAB, f"{LAB}-2").replace(", roles: [docker]", "").partition("docker:")[0]
    topology = load_text(f"{text}provider: containerlab\n", "lab.yaml")
    yield from brought_up(topology, tmp_path / "state")


def exported(folder: Path, what: str, form: str) -> Path:
    """The folder with the files of an export."""
    into = folder / form
    done = call(folder, "export", what, "--to", form, "--output", f"{into}/")
    assert done.status == 0, done.err
    return into


@pytest.fixture
def odd(tmp_path: Path) -> str:
    file = tmp_path / "odd.yaml"
    file.write_text(ODD)
    return str(file)


@pytest.mark.seconds(5)
def test_ssh_reaches_nodes_that_have_no_server(lab: Lab, tmp_path: Path) -> None:
    folder = exported(tmp_path, LAB, "ssh-config")
    ssh = ["ssh", "-F", "ssh_config"]
    for name in ("box", "plain"):
        assert by_tool(folder, [*ssh, name, "hostname"]) == f"{name}\n"
    assert by_tool(folder, [*ssh, "-tt", "plain", "tty"]).startswith("/dev/pts/")
    with pytest.raises(AssertionError, match=": 7\n"):
        by_tool(folder, [*ssh, "plain", "exit 7"])
    (folder / "file").write_text("content")
    by_tool(folder, ["scp", "-q", "-F", "ssh_config", "file", "plain:/tmp/copied"])
    assert lab.node("plain").get("/tmp/copied") == b"content"


def test_ssh_refuses_a_machine_with_another_key(lab: Lab, tmp_path: Path) -> None:
    del lab
    folder = exported(tmp_path, LAB, "ssh-config")
    file = folder / "ssh_config"
    box, plain = re.findall(r"(ssh-ed25519 \S+)", file.read_text())
    assert box != plain
    file.write_text(file.read_text().replace(plain, box))
    with pytest.raises(AssertionError, match="Host key verification failed"):
        by_tool(folder, ["ssh", "-F", file, "plain", "true"])


@pytest.mark.thorough
@pytest.mark.seconds(10)
def test_ssh_and_ansible_reach_containers(containers: Lab, tmp_path: Path) -> None:
    topology, lab = containers.topology(), containers
    folder = exported(tmp_path, lab.name, "ssh-config")
    for name in topology.nodes:
        assert by_tool(folder, ["ssh", "-F", "ssh_config", name, "hostname"]) == f"{name}\n"
    # A node that is created again has other keys.
    lab.settings.makers(topology).destroy(lab.name, ["plain"])
    lab.up(topology)
    (folder / "ssh_config").unlink()
    exported(tmp_path, lab.name, "ssh-config")
    assert by_tool(folder, ["ssh", "-F", "ssh_config", "plain", "hostname"]) == "plain\n"
    assert ansible_reaches(exported(tmp_path, lab.name, "ansible")) == {"box", "plain"}


@pytest.mark.thorough
@pytest.mark.seconds(20)
def test_ansible_reaches_all_nodes(lab: Lab, tmp_path: Path) -> None:
    folder = exported(tmp_path, LAB, "ansible")
    listed = json.loads(by_tool(folder, [TOOLS / "ansible-inventory", "--list"]))
    assert listed["role_docker"]["hosts"] == ["box"]
    assert listed["_meta"]["hostvars"]["plain"]["testbed_addresses"] == {"apart": "10.55.0.3"}
    assert ansible_reaches(folder) == {"box", "plain"}
    ansible = TOOLS / "ansible"
    (folder / "file").write_text("content")
    by_tool(folder, [ansible, "-m", "copy", "-a", "src=file dest=/tmp/by-ansible", "plain"])
    assert lab.node("plain").get("/tmp/by-ansible") == b"content"
    by_tool(folder, [ansible, "-m", "fetch", "-a", "src=/etc/hostname dest=got/ flat=yes", "plain"])
    assert (folder / "got" / "hostname").read_text() == "plain\n"


@pytest.mark.thorough
@pytest.mark.seconds(20)
def test_compose_starts_the_lab(lab: Lab, tmp_path: Path, odd: str) -> None:
    folder = exported(tmp_path, odd, "compose")
    store, box = settings().store, lab.node("box")
    store.binary("docker-compose")
    lab.up(lab.topology())  # with Compose, if it has just been built
    box.put((folder / "compose.yaml").read_bytes(), "/tmp/project/compose.yaml")
    docker = ["docker", "compose", "--project-directory=/tmp/project"]
    # No registry can be reached; our image has all that is run in the public one.
    box.run(["docker", "load", "--input", box.provide(store.image("nginx"))])
    box.run(["docker", "tag", "nginx", "busybox"])
    box.run([*docker, "config", "--quiet"])
    box.run([*docker, "up", "--detach", "--pull=never"], timeout=SECONDS)
    try:
        rows = box.run([*docker, "ps", "--all", "--format={{.Service}} {{.State}}"]).stdout
        states = dict(row.split() for row in rows.splitlines())
        assert states.pop("job") == "exited"
        assert set(states.values()) == {"running"}
        assert {"host", "n-host", "1st", "end", "end-container", "web", "side"} <= states.keys()
        enter = [*docker, "exec", "-T"]
        assert "inet 10.0.0.2/24" in box.run([*enter, "host", "ip", "address"]).stdout
        route = box.run([*enter, "host", "ip", "route", "show", "default"]).stdout
        assert route.startswith("default via 192.168.121.2 ")
        box.run([*enter, "host", "ping", "-c", "1", "10.0.0.3"])
        box.run([*enter, "host", "ping", "-c", "1", "192.168.121.2"])
        environment = box.run([*enter, "end-container", "env"]).stdout.splitlines()
        assert {"A=it's $Y", "B=22:22", "C=1e3", "D=08"} <= set(environment)
    finally:
        box.run([*docker, "down", "--timeout=1"])


@pytest.mark.seconds(15)
@pytest.mark.parametrize("what", [pytest.param("two-node", marks=pytest.mark.thorough), ""])
def test_containerlab_deploys_the_lab(lab: Lab, tmp_path: Path, odd: str, what: str) -> None:
    folder = exported(tmp_path, what or odd, "containerlab")
    store, box = settings().store, lab.node("box")
    assert isinstance(box, NetnsNode)
    (file,) = folder.iterdir()
    name = file.name.removesuffix(".clab.yml")
    cell = Cell(box, store)
    box.put(b"", "/run/testbed/modules")  # our build's list of the kernel's modules
    box.run(["docker", "load", "--input", box.provide(store.keep(PART, NODE_IMAGE) / IMAGE)])
    path = cell.write(name, file.read_text())
    cell.containerlab("validate", "--topo", path)
    cell.deploy(path)
    try:
        enter = ["docker", "exec", f"clab-{name}-{'node1' if what else 'host-node'}"]
        for address in ["10.168.0.3", "10.168.0.1"] if what else ["10.0.0.3", "192.168.121.2"]:
            box.run([*enter, "ping", "-c", "1", address])
        route = box.run([*enter, "ip", "route", "show", "default"]).stdout
        assert route.startswith(f"default via {'10.168.0.1' if what else '192.168.121.2'} ")
        assert box.run([*enter, "hostname"]).stdout == ("node1\n" if what else "host\n")
        mtu = json.loads(box.run([*enter, "ip", "-j", "link", "show", "eth0"]).stdout)[0]["mtu"]
        assert mtu == 1500
    finally:
        cell.destroy(path)


@pytest.mark.seconds(4)
@pytest.mark.parametrize("what", ["docker-single", ""])
def test_vagrant_accepts_the_file(tmp_path: Path, odd: str, what: str) -> None:
    folder = exported(tmp_path, what or odd, "vagrant")
    said = by_tool(folder, ["vagrant", "validate"], VAGRANT_HOME=str(tmp_path / "vagrant"))
    assert "validated successfully" in said


@pytest.mark.seconds(6)
@pytest.mark.parametrize("what", ["two-node", ""])
def test_netlab_creates_a_lab_of_it(tmp_path: Path, odd: str, what: str) -> None:
    folder = exported(tmp_path, what or odd, "netlab")
    path = f"{TOOLS}:{os.environ['PATH']}"  # netlab looks for Ansible
    by_tool(folder, [TOOLS / "netlab", "create", "topology.yml"], PATH=path)
    host = "node1" if what else "n-host-1"
    found = json.loads((folder / "host_vars" / host / "topology.json").read_text())
    addresses = {one["ipv4"] for one in found["interfaces"]}
    assert addresses == ({"10.168.0.2/24"} if what else {"10.0.0.2/24", "192.168.121.1/30"})
    # netlab itself has found the gateway of the network.
    gateways = {one["gateway"]["ipv4"] for one in found["interfaces"] if "gateway" in one}
    assert gateways == {"10.168.0.1/24" if what else "192.168.121.2/30"}
    assert f"    {host}:" in (folder / "clab.yml").read_text()


@pytest.mark.long
@pytest.mark.seconds(25)
def test_netlab_starts_and_configures_a_lab_of_it(lab: Lab, tmp_path: Path) -> None:
    folder = exported(tmp_path, "two-node", "netlab")
    store, box, place = settings().store, lab.node("box"), "/var/lib/netlab"
    box.put(b"", "/run/testbed/modules")  # our containerlab's list of the kernel's modules
    box.put((folder / "topology.yml").read_bytes(), f"{place}/topology.yml")
    box.put(SUDO.encode(), f"{place}/bin/sudo", mode=0o755)
    box.put(NO_MODULES.encode(), f"{place}/python/sitecustomize.py")
    programs = [f"{place}/bin", str(TOOLS), str(store.binary("containerlab").parent)]
    env = {
        "PATH": os.pathsep.join([*programs, os.environ["PATH"]]),
        "PYTHONPATH": f"{place}/python",
        "HOME": place,
        "CLAB_VERSION_CHECK": "disable",
    }

    def netlab(*words: str) -> str:
        argv = ["sh", "-c", f'cd {place} && exec "$@"', "sh", str(TOOLS / "netlab"), *words]
        return box.run(argv, env=env, timeout=SECONDS).stdout

    netlab("create", "topology.yml")
    wanted = set(re.findall(r"image: (\S+)", box.get(f"{place}/clab.yml").decode()))
    for name in sorted(wanted):
        box.run(["docker", "load"], input=standins.image(name, tmp_path).read_bytes())
    try:
        assert "Lab devices configured" in netlab("up", "topology.yml")
        for name, address in {"node1": "10.168.0.2", "outside": "10.168.0.1"}.items():
            enter = ["docker", "exec", f"clab-two_node-{name}"]
            shown = box.run([*enter, "ip", "address", "show", "dev", "eth1"]).stdout
            assert f"inet {address}/24" in shown
            box.run([*enter, "ping", "-c", "1", "10.168.0.3"])
    finally:
        netlab("down", "--cleanup")
