"""Roles that `up` installs on machines that exist already, and what `down` removes of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import pytest
from topology_texts import problems

from testbed import process
from testbed.cli import common
from testbed.errors import CommandError, LabError, NodeNotRunning, StepsFailed
from testbed.labs import plan
from testbed.labs.existing import SYSTEM, listed
from testbed.labs.lab import Lab
from testbed.nodes.attachable import AttachedProvider
from testbed.nodes.base import NodeSpec, Result, Setup
from testbed.nodes.fake import Answer, FakeProvider
from testbed.nodes.footprint import Footprint
from testbed.nodes.openssh import client, facts, installation, traces
from testbed.nodes.openssh.installation import Installation, Record
from testbed.nodes.openssh.provider import SshProvider
from testbed.registry import PROVIDERS, ROLES
from testbed.testing.fakes import declare
from testbed.topology import load_text
from testbed.topology.load import load_data

if TYPE_CHECKING:
    from testbed.labs.lab import Settings
    from testbed.nodes.base import Node, Provider
    from testbed.testing.fakes import Bench
    from testbed.topology import Topology

TWO = """\
name: rack
provider: ssh
ssh: {user: admin, install: true}
networks: {lan: {subnet: 10.168.0.0/24}}
flannel: {backend: vxlan, network: 100.96.0.0/16}
nodes:
  web1: {networks: {lan: 10.168.0.2}, roles: [docker, flannel, etcd]}
  web2: {networks: {lan: 10.168.0.3}, roles: [docker, flannel]}
"""
DOCKER = """\
name: rack
provider: ssh
networks: {lan: {subnet: 10.168.0.0/24}}
nodes:
  web1: {networks: {lan: 10.168.0.2}, roles: [docker], ssh: {install: true}}
  web2: {networks: {lan: 10.168.0.3}, roles: [docker]}
containers:
  front: {node: web1, publish: ["8080-8081:80-81"]}
"""


def rack(text: str = TWO) -> Topology:
    return load_text(text, "rack.yaml")


# -- the file ------------------------------------------------------------------------------


def test_a_node_may_differ_from_the_lab() -> None:
    assert [*rack(DOCKER).installs] == ["web1"]
    text = DOCKER.replace("provider: ssh", "provider: ssh\nssh: {install: true}")
    assert [*rack(text).installs] == ["web1", "web2"]
    found = rack(text.replace("install: true}}", "install: false}}"))
    assert [*found.installs] == ["web2"]
    assert load_data(found.to_dict(), "record").installs == found.installs


def test_a_node_without_roles_has_nothing_to_install() -> None:
    text = "name: a\nprovider: ssh\nssh: {install: true}\nnodes: {web1: {}}\n"
    assert not rack(text).installs


def test_nodes_that_communicate_are_installed_as_a_whole() -> None:
    text = TWO.replace(
        "roles: [docker, flannel]}", "roles: [docker, flannel], ssh: {install: false}}"
    )
    (found,) = problems(text)
    assert found.line == text.splitlines().index(text.splitlines()[-1]) + 1
    assert "web2" in found.seen


def test_how_a_machine_is_reached_is_no_part_of_its_node() -> None:
    one = rack()
    two = rack(TWO.replace("user: admin", "user: root, port: 2222"))
    assert one.node_digest("web1") == two.node_digest("web1")


# -- the plan ------------------------------------------------------------------------------


def test_all_machines_are_checked_before_one_is_changed() -> None:
    steps = plan.make(rack()).steps
    checks = ("machine web1", "machine web2")
    assert all(not steps[name].needs for name in checks)
    assert {steps[f"node {name}"].needs for name in ("web1", "web2")} == {checks}
    assert {"docker web1", "flannel web2", "etcd web1", "flannel config"} <= {*steps}


def test_the_roles_of_other_machines_have_no_steps() -> None:
    steps = plan.make(rack(DOCKER)).steps
    assert {"node web1", "node web2", "docker web1", "machine web1"} <= {*steps}
    assert not {"docker web2", "machine web2"} & {*steps}
    assert "nothing is changed" in steps["node web2"].about


def test_what_is_installed_is_listed(bench: Bench) -> None:
    found = listed(rack(DOCKER), bench.settings.store)
    assert [*found] == ["web1"]
    assert found["web1"]["folder"] == "/var/lib/testbed-rack"
    assert found["web1"]["services"] == "containerd, dockerd"
    assert found["web1"]["ports"] == "tcp/8080, tcp/8081"
    assert "docker0" in found["web1"]["links"]
    assert "br_netfilter" in found["web1"]["modules"]
    assert "net.ipv4.ip_forward" in found["web1"]["settings"]


def test_plan_and_up_show_it(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    common.show_installed(listed(rack(), bench.settings.store))
    out = capsys.readouterr().out
    assert "web2" in out
    assert "udp/8472" in out
    assert "/var/lib/testbed-rack" in out


# -- traces --------------------------------------------------------------------------------

#: As dockerd 20.10 and flanneld 0.28 write them, between rules of the machine's owner.
FILTER = """\
# Generated by iptables-save v1.8.9 (nf_tables)
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
:DOCKER-USER - [0:0]
:FLANNEL-FWD - [0:0]
:OWN - [0:0]
-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -i docker01 -j OWN
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-USER -j RETURN
-A FLANNEL-FWD -s 100.96.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
-A OWN -j LOG
COMMIT
# Completed
"""
NAT = """\
*nat
:PREROUTING ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A POSTROUTING -s 172.17.0.2/32 -d 172.17.0.2/32 -p tcp -m tcp --dport 80 -j MASQUERADE
-A POSTROUTING -s 10.9.0.0/16 -d 10.8.0.0/16 -j MASQUERADE
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80
COMMIT
"""


def footprint(*roles: str, text: str = TWO) -> Footprint:
    topology = rack(text)
    return Footprint.of_all(ROLES[name].footprint(topology, "web1") for name in roles)


def test_rules_of_the_daemons_go_and_those_of_others_stay() -> None:
    found = traces.restored(FILTER, footprint("docker", "flannel"), {"filter": "ACCEPT"})
    lines = found.splitlines()
    assert (lines[0], lines[-1]) == ("*filter", "COMMIT")
    deleted = [line for line in lines if line.startswith("-D ")]
    assert deleted == [
        '-D FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD',
        "-D FORWARD -j DOCKER-USER",
        "-D FORWARD -j DOCKER-ISOLATION-STAGE-1",
        "-D FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "-D FORWARD -o docker0 -j DOCKER",
        "-D FORWARD -i docker0 ! -o docker0 -j ACCEPT",
    ]
    chains = [line.split()[1] for line in lines if line.startswith("-X ")]
    assert chains == [line.split()[1] for line in lines if line.startswith("-F ")]
    assert {*chains} == {
        "DOCKER", "DOCKER-ISOLATION-STAGE-1", "DOCKER-ISOLATION-STAGE-2", "DOCKER-USER",
        "FLANNEL-FWD",
    }  # fmt: skip
    assert lines[-2] == "-P FORWARD ACCEPT"


def test_the_policy_of_before_stays() -> None:
    assert "-P" not in traces.restored(FILTER, footprint("docker"), {"filter": "DROP"})
    only = "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -j LOG\nCOMMIT\n"
    assert traces.restored(only, footprint("docker"), {"filter": "ACCEPT"}) == ""


def test_a_rule_for_a_containers_own_port_is_dockers() -> None:
    found = traces.restored(NAT, footprint("docker"), {})
    assert "-s 172.17.0.2/32 -d 172.17.0.2/32" in found
    assert "10.9.0.0" not in found
    assert found.count("-F DOCKER") == 1


def test_rules_are_told_with_their_table() -> None:
    found = traces.rules(NAT, footprint("docker"))
    assert "nat :DOCKER - [0:0]" in found
    assert not traces.rules("*nat\n:PREROUTING ACCEPT [0:0]\nCOMMIT\n", footprint("docker"))


def test_only_empty_tables_of_iptables_go() -> None:
    used = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -j LOG\nCOMMIT\n"
    empty = f"*nat\n:PREROUTING ACCEPT [0:0]\nCOMMIT\n{used}"
    there = ["nat", "filter", "own", "raw"]
    assert traces.left_tables(empty, there, []) == ["nat", "raw"]
    assert traces.left_tables(empty, there, ["nat", "raw"]) == []
    assert traces.left_tables("*nat\n:PREROUTING DROP [0:0]\nCOMMIT\n", ["nat"], []) == []


def test_links_of_before_stay() -> None:
    there = [
        "lo",
        "docker0",
        "br-0123456789ab",
        "br-lan",
        "veth0123abc",
        "veth0000001",
        "flannel.1",
    ]
    mine = footprint("docker", "flannel")
    assert traces.links(there, mine, ["lo", "veth0000001", "br-lan"]) == [
        "docker0", "br-0123456789ab", "veth0123abc", "flannel.1",
    ]  # fmt: skip


def test_routes_to_the_overlay_go() -> None:
    shown = """\
default via 10.168.0.1 dev eth0
10.168.0.0/24 dev eth0 proto kernel scope link src 10.168.0.2
100.96.2.0/24 via 10.168.0.3 dev eth0
blackhole 100.96.9.0/24
100.0.0.0/8 via 10.168.0.9 dev eth0
"""
    found = traces.routes(shown, footprint("flannel"))
    assert found == ["100.96.2.0/24 via 10.168.0.3 dev eth0", "blackhole 100.96.9.0/24"]


# -- facts ---------------------------------------------------------------------------------

MOUNTS = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw
"""
LOOKED = f"""\

== kernel
6.1.0-30-amd64

== boot
0f1e2d3c

== mounts
{MOUNTS}
== room
/dev/vda 20000000 1000000 19000000 5% /

== folders

== links
lo
eth0

== sockets
tcp   sl  local_address rem_address   st tx_queue
tcp    0: 00000000:0016 00000000:0000 0A 00000000:00000000
tcp    1: 0100007F:1F90 0100007F:9999 01 00000000:00000000
udp6   1: 00000000000000000000000000000000:2118 00:0000 07 00000000:00000000

== lacking

== modules
bridge

== sysctls
net.ipv4.ip_forward 0

== daemons

== routes
default via 10.168.0.1 dev eth0

== tables
table inet own

== iptables-nft

== ip6tables-nft

== iptables-legacy

== ip6tables-legacy
"""


def with_part(name: str, *lines: str) -> facts.Facts:
    return facts.Facts({**facts.parse(LOOKED).parts, name: lines})


def test_facts_are_read() -> None:
    found = facts.parse(LOOKED)
    assert found.boot == "0f1e2d3c"
    assert found.ports == {"tcp/22", "udp/8472"}
    assert found.room == 19000000 << 10
    assert found.sysctls == {"net.ipv4.ip_forward": "0"}
    assert found.file_system[0] == "ext4"
    assert found.tables("inet") == ["own"]
    assert not found.variants
    assert not facts.problems(found, footprint("docker"), {})


@pytest.mark.parametrize(
    ("part", "lines", "words"),
    [
        ("daemons", ["dockerd 14"], ("dockerd", "pid 14")),
        ("links", ["lo", "docker0"], ("docker0",)),
        ("sockets", ["tcp  0: 00000000:094B 00000000:0000 0A 0"], ("tcp/2379",)),
        ("iptables-nft", FILTER.splitlines(), ("DOCKER", "iptables-nft")),
        ("tables", ["table ip docker-bridges"], ("docker-bridges",)),
        ("routes", ["100.96.7.0/24 dev cni0"], ("100.96.7.0/24",)),
        ("lacking", ["iptables"], ("iptables", "apt-get install iptables")),
        ("kernel", ["5.10.0-20-amd64"], ("5.10.0", "5.12")),
        ("room", ["/dev/vda 2000 1000 1000 50% /"], ("space",)),
        ("mounts", ["1 0 0:1 / / rw - overlay overlay rw"], ("overlay",)),
        ("mounts", ["1 0 0:1 / / rw,noexec - ext4 a rw"], ("noexec",)),
        ("mounts", [*MOUNTS.splitlines(), "9 1 0:9 / /var/lib ro - ext4 a rw"], ("with ro",)),
    ],
)
def test_what_speaks_against_it_is_told(
    part: str, lines: Sequence[str], words: Iterable[str]
) -> None:
    mine = footprint("docker", "flannel", "etcd")
    free = replace(mine, ports=tuple(port for port in mine.ports if port != "udp/8472"))
    (found,) = facts.problems(with_part(part, *lines), free, {"iptables": "iptables"})
    assert all(word in found for word in words)


def test_the_script_runs_where_little_is_there(tmp_path: Path) -> None:
    """On a machine without iptables and nft, and with none of the settings."""
    for name in ("sh", "cat", "uname", "df", "tail", "ls", "sed", "tr", "readlink"):
        (tmp_path / name).symlink_to(shutil.which(name) or "")
    argv = ["sh", "-c", facts.LOOK, "sh", "sh no-such", "no_such", "net.no.such", "no-daemon"]
    argv.append(" ".join(facts.VARIANTS))
    done = process.run(argv, env={"PATH": str(tmp_path)})
    found = facts.parse(done.stdout)
    assert {*facts.parse(LOOKED).parts} == {*found.parts}
    assert found.parts["lacking"] == ["no-such"]
    assert found.room > 0
    assert "lo" in found.links
    assert found.boot
    assert not found.parts["daemons"]


# -- the installation ----------------------------------------------------------------------


class Machine:
    """A machine with files; its commands are noted, and answered as set."""

    name = "web1"

    def __init__(self, looked: str = LOOKED) -> None:
        self.files: dict[str, bytes] = {}
        self.looked = looked
        self.ran: list[tuple[str, ...]] = []
        self.fails: Mapping[str, str] = {}
        self.folders: set[str] = set()

    def get(self, path: str) -> bytes:
        try:
            return self.files[path]
        except KeyError:
            raise FileNotFoundError(path) from None

    def run(
        self,
        argv: Sequence[str],
        *,
        input: bytes | None = None,
        timeout: float = 60,
        check: bool = True,
    ) -> Result:
        del timeout
        script = argv[2] if argv[0] == "sh" else argv[0]
        self.ran.append(tuple(argv))
        if script in self.fails and check:
            raise CommandError(tuple(argv), where="web1", status=1, stderr=self.fails[script])
        if script == installation.MAKE:
            self.files[f"{argv[4]}/record.json"] = input or b""
        elif script == installation.WRITE:
            self.files[argv[4]] = input or b""
        elif script == installation.FORGET:
            self.files = {}
        return Result(tuple(argv), 0, self.looked.encode() if script == facts.LOOK else b"", b"")

    @property
    def scripts(self) -> list[str]:
        """The commands that were run, without looks."""
        scripts = [words[2] if words[0] == "sh" else words[0] for words in self.ran]
        return [one for one in scripts if one != facts.LOOK]

    def words(self, program: str) -> list[tuple[str, ...]]:
        return [words for words in self.ran if program in words]


def installed(
    machine: Machine, *, owner: str = "/state on here", lab: str = "rack"
) -> Installation:
    return Installation(machine, lab, owner, footprint("docker"), {"iptables": "iptables"})  # type: ignore[arg-type]


def create(machine: Machine) -> None:
    installed(machine).create(NodeSpec("web1", "abc"), Path("/state"), b"program")


def test_the_record_comes_first_and_goes_last() -> None:
    machine = Machine()
    create(machine)
    assert machine.scripts[0] == installation.MAKE
    record = json.loads(machine.files["/var/lib/testbed-rack/record.json"])
    assert record["sysctls"] == {"net.ipv4.ip_forward": "0"}
    assert record["links"] == ["lo", "eth0"]
    start = machine.words("network")[0]
    assert start[5:10] == ("/var/lib/testbed-rack/testbed-init", "installed", "rack", "web1", "abc")
    assert "/sys/fs/cgroup/testbed-rack" in start
    machine.ran.clear()
    assert installed(machine).remove()
    assert machine.scripts[0] == installation.END
    assert machine.scripts[-1] == installation.FORGET


def test_nothing_is_made_where_something_speaks_against_it() -> None:
    machine = Machine(LOOKED.replace("eth0\n", "eth0\ndocker0\n", 1))
    with pytest.raises(LabError) as caught:
        create(machine)
    assert "docker0" in caught.value.message
    assert not machine.scripts


def test_the_folder_of_another_lab_is_left_alone() -> None:
    machine = Machine()
    create(machine)
    other = installed(machine, owner="/other on there")
    assert not other.is_ours()
    assert not other.remove()
    machine.looked = LOOKED.replace("== folders\n", "== folders\n/var/lib/testbed-rack/\n")
    with pytest.raises(LabError) as caught:
        other.check()
    assert "/state on here" in caught.value.message


def test_what_was_changed_is_as_before_again() -> None:
    machine = Machine()
    create(machine)
    machine.ran.clear()
    machine.looked = (
        LOOKED.replace("ip_forward 0", "ip_forward 1")
        .replace("bridge\n", "bridge\nbr_netfilter\nveth\n")
        .replace("== iptables-nft\n", f"== iptables-nft\n{NAT}")
    )
    with pytest.raises(LabError):  # the rules of this machine do not go
        installed(machine).remove()
    assert "/var/lib/testbed-rack/record.json" in machine.files
    assert machine.words("iptables-nft-restore")
    assert machine.words(installation.SET)[0][-2:] == ("/proc/sys/net/ipv4/ip_forward", "0")
    assert machine.words("rmmod") == [("rmmod", "br_netfilter")]  # and none that links may need
    machine.looked = LOOKED
    assert installed(machine).remove()
    assert not machine.files


def test_what_a_later_up_has_added_is_removed_too() -> None:
    machine = Machine()
    create(machine)
    machine.ran.clear()
    machine.looked = LOOKED.replace("eth0\n", "eth0\nbr-named\n", 1)
    later = Footprint(links=("br-named",))
    found = Installation(machine, "rack", "/state on here", later, {})  # type: ignore[arg-type]
    with pytest.raises(LabError):  # the link of this machine does not go
        found.remove()
    assert machine.words("ip") == [("ip", "link", "del", "br-named")]


def test_after_a_reboot_there_are_only_files() -> None:
    machine = Machine()
    create(machine)
    machine.ran.clear()
    machine.looked = LOOKED.replace("0f1e2d3c", "another").replace("ip_forward 0", "ip_forward 1")
    assert installed(machine).remove()
    assert installation.SET not in machine.scripts
    assert machine.scripts[-1] == installation.FORGET


def test_a_folder_without_a_record_is_all_that_there_is() -> None:
    machine = Machine()
    assert not installed(machine).remove()
    assert len(machine.scripts) == 1
    assert "rmdir" in machine.scripts[0]


def test_a_record_of_something_else_is_told() -> None:
    machine = Machine()
    machine.files["/var/lib/testbed-rack/record.json"] = b"[]"
    for ask in (installed(machine).record, installed(machine).remove):
        with pytest.raises(LabError):
            ask()
    assert not machine.scripts


def test_a_step_that_fails_says_what_the_machine_said() -> None:
    machine = Machine()
    machine.fails = {installation.START: "testbed-init: unshare: Operation not permitted"}
    with pytest.raises(LabError) as caught:
        create(machine)
    assert "Operation not permitted" in caught.value.message
    assert Record.parse(machine.files["/var/lib/testbed-rack/record.json"]).node == "web1"


# -- its scripts, for real -----------------------------------------------------------------


def sh(script: str, *arguments: str, input: bytes = b"") -> None:
    process.run(["sh", "-ec", script, "sh", *arguments], input=input)


def test_files_come_and_go(tmp_path: Path) -> None:
    folder = tmp_path / "testbed-rack"
    sh(installation.MAKE, str(folder), input=b"{}")
    with pytest.raises(CommandError):  # another one has it
        sh(installation.MAKE, str(folder), input=b"other")
    assert (folder / "record.json").read_bytes() == b"{}"
    assert folder.stat().st_mode & 0o777 == 0o700
    sh(installation.WRITE, str(folder / "testbed-init"), "755", input=b"program")
    assert (folder / "testbed-init").stat().st_mode & 0o777 == 0o755
    sh(installation.START, str(folder), "echo", "17")
    assert (folder / "pid").read_text() == "17\n"
    (folder / "testbed-init.part").touch()
    (folder / "lib" / "docker").mkdir()
    sh(installation.FORGET, str(folder))
    assert not folder.exists()
    sh(installation.MAKE, str(folder), input=b"{}")
    sh(installation.FORGET, str(folder))
    assert not folder.exists()


def test_what_runs_the_program_is_ended(tmp_path: Path) -> None:
    program = shutil.copy(shutil.which("sleep") or "", tmp_path / "testbed-init")
    with subprocess.Popen([program, "600"]) as mine, subprocess.Popen(["sleep", "600"]) as other:
        try:
            sh(installation.END, str(tmp_path), "testbed-init")
            assert mine.wait(10) == -9
            assert other.poll() is None
            sh(installation.END, str(tmp_path), "testbed-init")  # nothing more
        finally:
            mine.kill()
            other.kill()


def test_cgroups_come_and_go(tmp_path: Path) -> None:
    (tmp_path / "cpuset.cpus").write_text("0-1\n")
    folder = tmp_path / "testbed-rack"
    folder.mkdir()
    (folder / "cpuset.cpus").touch()  # as the kernel makes it
    sh(installation.GROUPS, str(folder))
    assert (folder / "cpuset.cpus").read_text() == "0-1\n"
    (folder / "cpuset.cpus").unlink()
    (folder / "docker" / "id").mkdir(parents=True)
    sh(installation.UNGROUP, str(folder), str(tmp_path / "missing"))
    assert not folder.exists()


def test_a_node_is_found_by_its_program(tmp_path: Path) -> None:
    find = client.INSIDE.format(folder=tmp_path) + "echo $n"
    program = shutil.copy(shutil.which("sleep") or "", tmp_path / "testbed-init")
    assert process.run(["sh", "-c", find], check=False).status == client.NO_NODE
    with subprocess.Popen([program, "600"]) as mine:
        try:
            (tmp_path / "pid").write_text(f"{os.getpid()}\n")  # another process has its number
            assert process.run(["sh", "-c", find], check=False).status == client.NO_NODE
            (tmp_path / "pid").write_text(f"{mine.pid}\n")
            assert process.run(["sh", "-c", find]).stdout.strip() == str(mine.pid)
        finally:
            mine.kill()


def test_a_node_that_does_not_run_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "ssh").write_text(f"#!/bin/sh\nexit {client.NO_NODE}\n")
    (folder / "ssh").chmod(0o755)
    (tmp_path / "agent").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        patch.setattr(client, "as_caller", list)
        with pytest.raises(NodeNotRunning):
            client.connect("web1", ["ssh", "web1"], tmp_path / "agent", inside="/var/lib/a")


def test_all_failures_of_a_removal_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def remove(one: Installation) -> bool:
        raise LabError(f"{one._machine.name} is away")

    monkeypatch.setattr(Installation, "remove", remove)
    provider = SshProvider(Setup(tmp_path, None)).of_machines(rack())  # type: ignore[arg-type]
    with pytest.raises(LabError) as caught:
        provider.destroy("rack")
    assert {"web1", "web2"} <= {*caught.value.message.split()}
    assert str(tmp_path / "rack.json") in (caught.value.hint or "")


# -- labs ----------------------------------------------------------------------------------


class Shelves(AttachedProvider):
    """Machines in memory that exist already; nodes with roles are installed on them."""

    name = "shelves"
    existing = "shelves in memory"
    there: ClassVar[FakeProvider]
    nodes_there: ClassVar[set[str]]
    refused: ClassVar[set[str]]

    @classmethod
    def installs(cls, topology: Topology) -> Mapping[str, str]:
        return {name: "/var/lib/x" for name, node in topology.nodes.items() if node.roles}

    def of_machines(self, topology: Topology) -> Provider:
        del topology
        return Full()

    def nodes(self, lab: str) -> dict[str, Node]:
        del lab
        return {}


class Full(Shelves):
    def nodes(self, lab: str) -> dict[str, Node]:
        del lab
        return dict(self.there.nodes("machines"))

    def is_installed(self, lab: str, spec: NodeSpec) -> bool:
        del lab
        return spec.name in self.nodes_there

    def prepare(self, lab: str, specs: Sequence[NodeSpec]) -> None:
        del lab
        if wrong := self.refused & {spec.name for spec in specs}:
            raise LabError(f"{wrong} cannot have roles")

    def create_one(self, lab: str, spec: NodeSpec) -> Node:
        self.nodes_there.add(spec.name)
        return self.nodes(lab)[spec.name]

    def destroy(self, lab: str, nodes: Iterable[str] | None = None) -> None:
        del lab
        self.nodes_there.difference_update(self.nodes_there if nodes is None else [*nodes])


LAB = """\
name: rack
provider: shelves
networks: {lan: {subnet: 10.168.0.0/24}}
nodes:
  web1: {networks: {lan: 10.168.0.2}, roles: [etcd]}
  web2: {networks: {lan: 10.168.0.3}}
"""


@pytest.fixture
def shelves(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Settings:
    Shelves.there, Shelves.nodes_there, Shelves.refused = FakeProvider(name="shelves"), set(), set()
    Shelves.there.script(["sh", "-c", SYSTEM], Answer(out=b"6.1.0\nDebian GNU/Linux 12\n"))
    bench.provider = Shelves.there
    Shelves.there.create("machines", [NodeSpec(name, "") for name in ("web1", "web2")])
    declare(monkeypatch, PROVIDERS, "shelves", f"{__name__}:Shelves")
    providers = {**bench.settings.providers, "shelves": Shelves()}
    monkeypatch.setattr(bench.settings, "providers", providers)
    return bench.settings


def test_up_installs_and_down_removes(shelves: Settings) -> None:
    lab = Lab("rack", shelves)
    done = lab.up(rack(LAB))
    assert {one.step.name for one in done.changed} >= {"node web1", "etcd web1"}
    assert Shelves.nodes_there == {"web1"}
    assert lab.installs
    assert "etcd" in lab.record().versions
    assert not lab.up(rack(LAB)).changed
    assert lab.down()
    assert not Shelves.nodes_there
    assert [*Shelves.there.nodes("machines")] == ["web1", "web2"]


def test_a_failure_leaves_nothing(shelves: Settings) -> None:
    lab = Lab("rack", shelves)
    Shelves.there.fail("start", "web1", LabError("no"))
    with pytest.raises(StepsFailed):
        lab.up(rack(LAB))
    assert not Shelves.nodes_there
    assert shelves.state.read("rack") is None
    with pytest.raises(StepsFailed):
        lab.up(rack(LAB), keep=True)
    assert Shelves.nodes_there == {"web1"}
    assert lab.down()
    assert not Shelves.nodes_there


def test_a_machine_that_is_refused_is_not_changed(shelves: Settings) -> None:
    Shelves.refused.add("web1")
    with pytest.raises(StepsFailed):
        Lab("rack", shelves).up(rack(LAB))
    assert not Shelves.nodes_there
    assert shelves.state.read("rack") is None


def test_what_an_up_did_not_make_stays_when_it_fails(shelves: Settings) -> None:
    lab = Lab("rack", shelves)
    lab.up(rack(LAB))
    Shelves.there.script(["sh", "-c", SYSTEM], Answer(status=1), "web2")
    with pytest.raises(StepsFailed):
        lab.up(rack(LAB))
    assert Shelves.nodes_there == {"web1"}
    assert lab.installs


def test_the_record_is_there_before_anything_is_made(
    shelves: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def made(self: Full, lab: str, spec: NodeSpec) -> Node:
        seen.append(shelves.state.read(lab) is not None)
        return self.nodes(lab)[spec.name]

    monkeypatch.setattr(Full, "create_one", made)
    Lab("rack", shelves).up(rack(LAB))
    assert seen == [True]


def test_what_the_file_no_longer_installs_is_removed(shelves: Settings) -> None:
    lab = Lab("rack", shelves)
    lab.up(rack(LAB))
    without = LAB.replace(", roles: [etcd]", "")
    lab.up(rack(without), replace=True)
    assert not Shelves.nodes_there
    assert not lab.installs


def test_a_removal_that_fails_keeps_the_record(
    shelves: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = Lab("rack", shelves)
    lab.up(rack(LAB))

    def fail(self: Full, lab: str, nodes: Iterable[str] | None = None) -> None:
        raise LabError("web1 is away")

    with monkeypatch.context() as patch:
        patch.setattr(Full, "destroy", fail)
        with pytest.raises(LabError):
            lab.down()
    assert shelves.state.read("rack") is not None
    assert lab.down()
