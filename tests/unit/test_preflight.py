"""Requirements of a topology, and the cache of features that work."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from plugins import Elsewhere, declare_elsewhere

from testbed import boot_cache, doctor, kernel
from testbed.errors import MachineError, UsageError
from testbed.labs import preflight
from testbed.limits import Takes
from testbed.requirement import Requirement
from testbed.topology import Overrides, Topology, load, load_data, names
from testbed.vm import accel, box

EVERY = set(kernel.EVERY_LAB)
DOCKER = {
    "overlay", "iptables variant", "iptables nat", "iptables conntrack", "iptables addrtype",
}  # fmt: skip
CLUSTER = DOCKER - {"iptables addrtype", "iptables variant"}
PATH = Path("/usr/bin")

FEATURES = {
    "bgp-clos": EVERY,
    "bgp-frr-bird": EVERY,
    "docker-10-1-27": EVERY | DOCKER,
    "docker-single": EVERY | DOCKER,
    "k8s-ingress": EVERY | CLUSTER | {"nf_tables", "vxlan"},
    "k8s-three-node": EVERY | CLUSTER | {"nf_tables"},
    "k8s-two-node": EVERY | CLUSTER | {"nf_tables", "vxlan"},
    "netns-experiments": EVERY,
    "ospf-triangle": EVERY,
    "three-node-udp": EVERY | DOCKER | {"tun"},
    "two-node": EVERY | DOCKER | {"vxlan"},
    "two-node-udp": EVERY | DOCKER | {"tun"},
    "two-node-host-gw": EVERY | DOCKER,
    "two-node-ipv6": EVERY | DOCKER | {"vxlan", "ip6tables nat"},
    "two-node-mixed": EVERY | DOCKER | {"vxlan", "tun"},  # the machine is plugged in by a tap
    "vxlan-10-1-16": EVERY | DOCKER | {"vxlan"},
}
BASE = {"ip": "iproute2", "nsenter": "util-linux", "mount": "mount"}
QEMU = {"qemu-system-x86_64": "qemu-system-x86", "qemu-img": "qemu-utils"}
WITH_DOCKER = {**BASE, "iptables": "iptables", "curl": "curl"}


class Probe:
    """Stands in for testbed.kernel.features: all works but what is said not to."""

    def __init__(self) -> None:
        self.lacking: set[str] = set()
        self.calls = 0
        self.instead: list[Requirement] | None = None

    def __call__(self) -> list[Requirement]:
        self.calls += 1
        if self.instead is not None:
            return self.instead
        found = []
        for item in kernel.known():
            ok = item.name not in self.lacking
            detail = "works" if ok else "failed: not supported"
            fix = "" if ok else f"a kernel with {item.option}, built in or as a module"
            found.append(Requirement(item.name, ok, detail, fix))
        return found


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Probe:
    made = Probe()
    monkeypatch.setattr(kernel, "features", made)
    monkeypatch.setattr(preflight, "which", lambda name: f"/usr/bin/{name}")
    boot_id = tmp_path / "boot_id"
    boot_id.write_text("first-boot\n")
    monkeypatch.setattr(boot_cache, "BOOT_ID", boot_id)
    return made


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def two_node() -> Topology:
    return load("two-node")


# -- what is needed --------------------------------------------------------------


def test_every_shipped_topology_is_in_the_table() -> None:
    assert set(FEATURES) == set(names())


@pytest.mark.parametrize(("name", "wanted"), FEATURES.items())
def test_kernel_features(name: str, wanted: set[str]) -> None:
    assert preflight.kernel_features(load(name)) == wanted


@pytest.mark.parametrize(
    ("firewall", "feature", "program"),
    [
        ("iptables-legacy", "iptables-legacy", {"iptables-legacy": "iptables"}),
        ("iptables-nft", "nf_tables", {"iptables-nft": "iptables"}),
        ("nftables", "nf_tables", {"nft": "nftables"}),
    ],
)
def test_a_packet_filter_needs_its_own(
    firewall: str, feature: str, program: dict[str, str]
) -> None:
    plain = load("docker-single")
    topology = load("docker-single", Overrides(docker="29", firewall=firewall))
    more = preflight.kernel_features(topology) - preflight.kernel_features(plain)
    assert more == {feature}
    assert feature in {item.name for item in kernel.known()}
    assert preflight.programs(topology).items() - preflight.programs(plain).items() == set(
        program.items()
    )
    assert set(program.values()) <= {tool.package for tool in doctor.tools()}


@pytest.mark.parametrize("name", FEATURES)
def test_the_doctor_knows_each_feature(name: str) -> None:
    assert FEATURES[name] <= {item.name for item in kernel.known()}


@pytest.mark.parametrize("name", FEATURES)
def test_programs(name: str) -> None:
    wanted = preflight.programs(load(name))
    assert wanted.items() >= (BASE if FEATURES[name] == EVERY else WITH_DOCKER).items()
    # ... and the doctor, who is to mend it, knows each by the same package.
    packages = {tool.name: tool.package for tool in doctor.tools()}
    packages |= {**box.PROGRAMS, accel.QEMU: accel.PACKAGE}  # box.summary
    assert {program: packages.get(program) for program in wanted} == wanted


@pytest.mark.parametrize("backend", ["udp", "vxlan", "host-gw"])
def test_a_virtual_machine_has_its_own_kernel_and_programs(backend: str) -> None:
    machines = load("two-node", Overrides(provider="qemu", backend=backend))
    assert preflight.kernel_features(machines) == EVERY | {"tun"}
    assert preflight.programs(machines) == {**BASE, **QEMU}


def test_a_container_has_its_own_programs_on_the_same_kernel() -> None:
    containers = load("two-node", Overrides(provider="containerlab"))
    assert preflight.kernel_features(containers) == preflight.kernel_features(load("two-node"))
    assert preflight.programs(containers) == {**BASE, "iptables": "iptables", "sysctl": "procps"}
    text = containers.to_dict()
    text["nodes"]["outside"]["provider"] = "netns"
    assert preflight.programs(load_data(text, "t.yaml")).keys() == {*BASE, "iptables", "sysctl"}
    text["nodes"]["outside"]["roles"] = ["docker"]
    assert preflight.programs(load_data(text, "t.yaml")).items() >= WITH_DOCKER.items()


def test_of_a_mixed_lab_what_each_of_its_nodes_needs() -> None:
    mixed = load("two-node-mixed")
    plain = load("two-node")
    assert preflight.kernel_features(mixed) == preflight.kernel_features(plain) | {"tun"}
    assert preflight.programs(mixed) == preflight.programs(plain) | QEMU


def test_what_only_machines_run_is_not_needed_here() -> None:
    text = load("two-node", Overrides(provider="qemu")).to_dict()
    text["nodes"]["outside"]["provider"] = "netns"
    gateway = load_data(text, "t.yaml")
    assert gateway.providers == ("qemu", "netns")
    assert preflight.kernel_features(gateway) == EVERY | {"tun"}
    assert preflight.programs(gateway) == {**BASE, **QEMU}
    # Docker here, flannel in the machines alone: what its backend needs is theirs.
    text["nodes"]["outside"]["roles"] = ["docker"]
    assert preflight.kernel_features(load_data(text, "t.yaml")) == EVERY | {"tun"} | DOCKER


# -- what is missing --------------------------------------------------------------


def test_all_is_well(probe: Probe, two_node: Topology, cache: Path) -> None:
    preflight.check(two_node, cache)
    assert probe.calls == 1


def test_missing_programs_are_named_with_their_packages(
    probe: Probe, two_node: Topology, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = {"ip", "iptables"}
    monkeypatch.setattr(preflight, "which", lambda name: None if name in gone else "/bin/x")
    with pytest.raises(MachineError, match="iptables") as caught:
        preflight.check(two_node, cache)
    assert caught.value.missing == ("ip", "iptables")
    assert "apt-get install iproute2 iptables" in str(caught.value.hint)
    assert "`testbed doctor --fix`" in str(caught.value.hint)
    assert caught.value.exit_code == 3
    assert probe.calls == 0  # the probe itself needs them


def test_a_hypervisor_that_is_missing_comes_with_the_command_that_installs_it(
    probe: Probe, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "which", lambda name: None if "qemu" in name else "/bin/x")
    with pytest.raises(MachineError, match="qemu") as caught:
        preflight.check(load("two-node", Overrides(provider="qemu")), cache)
    assert caught.value.missing == ("qemu-img", "qemu-system-x86_64")
    assert "`testbed doctor --provider qemu --fix`" in str(caught.value.hint)


def test_a_program_that_another_lab_needs_is_not_missed(
    probe: Probe, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "which", lambda name: None if name == "iptables" else "/bin/x")
    preflight.check(load("netns-experiments"), cache)


def test_a_package_is_named_once(
    probe: Probe, two_node: Topology, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "programs", lambda _: {"a": "pack", "b": "pack"})
    monkeypatch.setattr(preflight, "which", lambda _: None)
    with pytest.raises(MachineError, match="a, b") as caught:
        preflight.check(two_node, cache)
    assert caught.value.missing == ("a", "b")
    assert str(caught.value.hint).count("pack") == 1


def test_missing_features_are_all_named_with_their_options(
    probe: Probe, two_node: Topology, cache: Path
) -> None:
    probe.lacking = {"vxlan", "overlay", "tun", "nf_tables"}
    with pytest.raises(MachineError) as caught:
        preflight.check(two_node, cache)
    assert caught.value.missing == ("overlay", "vxlan")
    overlay, vxlan = caught.value.message.splitlines()[1:]
    assert overlay.split()[0] == "overlay:"
    assert "CONFIG_OVERLAY_FS" in overlay
    assert "CONFIG_VXLAN" in vxlan
    assert "--backend" in (caught.value.hint or "")
    assert not cache.exists()  # nothing is remembered of it


@pytest.mark.parametrize(("topology", "option"), [
    (load("k8s-two-node", Overrides(cni="weave")), "--cni"),
    (load("k8s-two-node"), "--backend"),
    (load("two-node"), "--backend"),
    (load("docker-single"), ""),
], ids=lambda one: getattr(one, "name", one))  # fmt: skip
def test_the_hint_names_a_variant_that_there_is(
    probe: Probe, cache: Path, topology: Topology, option: str
) -> None:
    probe.lacking = {"overlay"}
    with pytest.raises(MachineError) as caught:
        preflight.check(topology, cache)
    options = {"--cni", "--backend"}
    assert {one for one in options if one in str(caught.value.hint)} == {option} - {""}


def test_what_another_backend_needs_is_not_missed(probe: Probe, cache: Path) -> None:
    probe.lacking = {"vxlan", "tun"}
    preflight.check(load("two-node-host-gw"), cache)
    with pytest.raises(MachineError, match="CONFIG_TUN"):
        preflight.check(load("two-node-udp"), cache)


def test_no_namespaces_at_all_is_one_finding(probe: Probe, two_node: Topology, cache: Path) -> None:
    probe.instead = [Requirement("namespaces", False, "unshare: not permitted", "run as root")]
    with pytest.raises(MachineError, match="run as root") as caught:
        preflight.check(two_node, cache)
    assert caught.value.missing == ("namespaces",)


# -- what is remembered ------------------------------------------------------------


def test_what_works_is_tried_once_a_boot(probe: Probe, two_node: Topology, cache: Path) -> None:
    for _ in range(3):
        preflight.check(two_node, cache)
    assert probe.calls == 1
    preflight.check(load("docker-single"), cache)  # it needs less
    preflight.check(load("two-node-udp"), cache)  # the probe tried tun as well
    assert probe.calls == 1
    assert [path.name for path in cache.iterdir()] == [".machine.json"]


def test_what_does_not_work_is_tried_again(probe: Probe, two_node: Topology, cache: Path) -> None:
    probe.lacking = {"vxlan"}
    for _ in range(2):
        with pytest.raises(MachineError):
            preflight.check(two_node, cache)
    assert probe.calls == 2
    probe.lacking = set()  # somebody has loaded the module
    preflight.check(two_node, cache)
    preflight.check(two_node, cache)
    assert probe.calls == 3


def test_what_is_remembered_is_what_works_only(
    probe: Probe, two_node: Topology, cache: Path
) -> None:
    probe.lacking = {"tun"}
    preflight.check(two_node, cache)
    with pytest.raises(MachineError, match="CONFIG_TUN"):
        preflight.check(load("two-node-udp"), cache)
    assert probe.calls == 2
    preflight.check(two_node, cache)
    assert probe.calls == 2


def test_after_a_boot_it_is_tried_again(probe: Probe, two_node: Topology, cache: Path) -> None:
    preflight.check(two_node, cache)
    boot_cache.BOOT_ID.write_text("second-boot\n")
    preflight.check(two_node, cache)
    preflight.check(two_node, cache)
    assert probe.calls == 2


def test_without_a_boot_id_nothing_is_remembered(
    probe: Probe, two_node: Topology, cache: Path
) -> None:
    boot_cache.BOOT_ID.unlink()
    preflight.check(two_node, cache)
    preflight.check(two_node, cache)
    assert probe.calls == 2


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "4711",
        '"first-boot"',
        "{}",
        '{"boot": "first-boot"}',
        '{"boot": "first-boot", "found": null}',
        '{"boot": "first-boot", "found": 1}',
        '{"boot": "first-boot", "found": "vxlan"}',
        '{"boot": "first-boot", "found": [[]]}',
        '{"boot": "first-boot", "found": []}',
        '{"boot": "first-boot", "found": ["vxlan"',
        "\udcff",
    ],
)
def test_a_file_that_is_spoilt_is_written_anew(
    text: str, probe: Probe, two_node: Topology, cache: Path
) -> None:
    cache.mkdir()
    file = cache / ".machine.json"
    file.write_bytes(text.encode(errors="surrogateescape"))
    preflight.check(two_node, cache)
    assert probe.calls == 1
    assert json.loads(file.read_text())["boot"] == "first-boot"
    preflight.check(two_node, cache)
    assert probe.calls == 1


def blocked_by_a_file(cache: Path) -> None:
    cache.write_text("a file where the folder should be")


def blocked_by_a_folder(cache: Path) -> None:
    (cache / ".machine.json" / "x").mkdir(parents=True)


@pytest.mark.parametrize("block", [blocked_by_a_file, blocked_by_a_folder])
def test_what_cannot_be_kept_is_no_failure(
    block: Callable[[Path], None], probe: Probe, two_node: Topology, cache: Path
) -> None:
    block(cache)
    preflight.check(two_node, cache)
    preflight.check(two_node, cache)
    assert probe.calls == 2


def test_few_open_files_are_refused_with_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (24, 24))
    with pytest.raises(MachineError, match="only 24") as caught:
        preflight.check(load("two-node"), tmp_path)
    assert caught.value.hint
    assert "ulimit -n 256" in caught.value.hint


def test_a_lab_of_plain_nodes_needs_no_open_files_for_daemons(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, probe: Probe
) -> None:
    del probe
    monkeypatch.setattr("resource.getrlimit", lambda _: (64, 64))
    preflight.check(plain(3), tmp_path)
    with pytest.raises(MachineError, match="only 64"):
        preflight.check(load("two-node"), tmp_path)


# -- memory ---------------------------------------------------------------------


def test_too_little_memory_is_told_before_anything_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = load("k8s-two-node")
    monkeypatch.setattr(preflight, "available", lambda: 1 << 30)
    preflight.memory(cluster, cluster.nodes)
    monkeypatch.setattr(preflight, "available", lambda: 700 << 20)
    with pytest.raises(MachineError, match=r"k8s-two-node .* 810 MiB .* 700 MiB"):
        preflight.memory(cluster, cluster.nodes)
    preflight.memory(cluster, ["node2"])  # the other one is up, and has its own
    preflight.memory(load("two-node"), load("two-node").nodes)


def test_a_limit_below_what_a_node_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "available", lambda: 8 << 30)
    data = load("k8s-two-node").to_dict()
    data["nodes"]["node1"]["memory"] = "512M"
    with pytest.raises(UsageError, match=r"node1 .* 512 MiB .* 620 MiB"):
        preflight.memory(load_data(data, "cluster"), ["node1"])


# -- limits of the machine ------------------------------------------------------


def plain(count: int) -> Topology:
    """A lab of nodes without roles."""
    nodes = {f"n{i}": {"networks": {"lan": f"10.7.{i // 250}.{i % 250 + 1}"}} for i in range(count)}
    return load_data(
        {"name": "plain", "networks": {"lan": {"subnet": "10.7.0.0/16"}}, "nodes": nodes}, "plain"
    )


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /proc of a machine with room for everything, and no limit on its cgroups."""
    for name, value in {
        "loadavg": "0.00 0.01 0.05 1/1000 4711",
        "sys/kernel/pid_max": "32768",
        "sys/kernel/threads-max": "30000",
        "sys/fs/inotify/max_user_instances": "128",
        **{f"sys/user/max_{kind}_namespaces": "500" for kind in preflight.NAMESPACES},
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{value}\n")
    monkeypatch.setattr(preflight, "PROC", tmp_path)
    monkeypatch.setattr(preflight, "SYSCTL", tmp_path / "sys")
    monkeypatch.setattr("testbed.nodes.netns.cgroups.task_limits", list)
    return tmp_path


def refusal(topology: Topology, making: Iterable[str]) -> str:
    with pytest.raises(MachineError) as caught:
        preflight.room(topology, making)
    assert caught.value.exit_code == 3
    assert caught.value.hint
    return caught.value.message


def test_enough_room(machine: Path) -> None:
    del machine
    for name in ("two-node", "netns-experiments", "k8s-two-node", "two-node-mixed"):
        topology = load(name)
        preflight.room(topology, topology.nodes)
    preflight.room(plain(400), plain(400).nodes)


def test_too_few_inotify_instances_are_told(machine: Path) -> None:
    cluster = load("k8s-two-node")
    folder = machine / "7" / "fd"
    folder.mkdir(parents=True)
    for number in range(110):
        (folder / str(number)).symlink_to(preflight.INSTANCE)
    (folder / "200").symlink_to("/dev/null")
    said = refusal(cluster, ["node1", "node2", "outside"])
    assert "inotify instances: 24 needed, 110 of 128 in use" in said
    preflight.room(cluster, ["node2"])  # the other one is up, and has its own
    preflight.room(load("two-node"), ["node1", "node2"])
    (machine / "sys/fs/inotify/max_user_instances").write_text("134\n")
    preflight.room(cluster, ["node1", "node2", "outside"])


@pytest.mark.parametrize(("file", "name"), [("pid_max", "pid_max"), ("threads-max", "threads-max")])
def test_too_few_processes_are_told(machine: Path, file: str, name: str) -> None:
    two_node = load("two-node")
    # Two nodes with pid 1, a command (2), dockerd (22), a container (14), flanneld (9), and of
    # these one with etcd (10), and the outside node (2).
    wanted = 2 * (2 + 22 + 14 + 9) + 10 + 2
    (machine / "sys/kernel" / file).write_text(f"{1000 + wanted}\n")
    preflight.room(two_node, two_node.nodes)
    (machine / "sys/kernel" / file).write_text(f"{1000 + wanted - 1}\n")
    said = refusal(two_node, two_node.nodes)
    assert f"{wanted} needed, 1000 of {999 + wanted} in use (sysctl kernel.{name})" in said
    preflight.room(two_node, ["node2"])
    (machine / "sys/kernel" / file).write_text("500\n")
    preflight.room(two_node, [])  # nothing is to be made: nothing is lacking


def test_the_limit_of_a_container_that_testbed_runs_in(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del machine
    file = Path("/sys/fs/cgroup/pids.max")
    monkeypatch.setattr("testbed.nodes.netns.cgroups.task_limits", lambda: [(file, 512, 490)])
    assert f"490 of 512 in use ({file})" in refusal(plain(12), plain(12).nodes)
    preflight.room(plain(11), plain(11).nodes)


def test_limits_are_those_of_the_lab_s_providers(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine by QEMU has the fabric of namespaces; others have limits of their own."""
    del machine
    declare_elsewhere(monkeypatch)
    monkeypatch.setattr(Elsewhere, "takes", Takes(tasks=2))
    monkeypatch.setattr(Elsewhere, "task_limits", lambda: [("the pool", 9, 8)])
    own = Path("/sys/fs/cgroup/pids.max")
    monkeypatch.setattr("testbed.nodes.netns.cgroups.task_limits", lambda: [(own, 512, 512)])
    topology = plain(1)
    elsewhere = refusal(dataclasses.replace(topology, provider="elsewhere"), topology.nodes)
    assert "8 of 9 in use (the pool)" in elsewhere
    assert str(own) not in elsewhere
    qemu = refusal(dataclasses.replace(topology, provider="qemu"), topology.nodes)
    assert str(own) in qemu


def test_too_few_namespaces_are_told(machine: Path) -> None:
    experiments = load("netns-experiments")
    (machine / "sys/user/max_net_namespaces").write_text("2\n")
    (machine / "sys/user/max_pid_namespaces").write_text("1\n")
    said = refusal(experiments, experiments.nodes).splitlines()
    nodes = len(experiments.nodes) + 1
    assert any(f"pid namespaces: {nodes} needed, at most 1 " in line for line in said)
    spaces = nodes + len(experiments.namespaces)
    assert any(f"net namespaces: {spaces} needed, at most 2 " in line for line in said)
    assert len(said) == 3


def test_too_few_tracked_connections_are_told_for_one_node(machine: Path) -> None:
    file = machine / "sys/net/netfilter/nf_conntrack_max"
    file.parent.mkdir(parents=True)
    topology = plain(100)
    for enough in (preflight.CONNECTIONS + 100, 0):  # 0 is no limit
        file.write_text(f"{enough}\n")
        preflight.room(topology, topology.nodes)
    file.write_text(f"{preflight.CONNECTIONS + 99}\n")
    said = refusal(topology, topology.nodes)
    assert "356 needed, at most 355 (sysctl net.netfilter.nf_conntrack_max)" in said
    preflight.room(topology, [])
    preflight.room(dataclasses.replace(topology, provider="kubernetes"), topology.nodes)


def test_a_kernel_without_such_limits(machine: Path) -> None:
    for file in (machine / "sys").rglob("*"):
        if file.is_file():
            file.unlink()
    preflight.room(load("k8s-two-node"), load("k8s-two-node").nodes)
