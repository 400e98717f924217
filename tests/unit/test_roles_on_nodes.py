"""Settings of a node's daemons, their order, and the restarts after a change of them."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from topology_texts import DOCKER, FLANNEL

from testbed.artifacts.source import Job
from testbed.errors import ArtifactError, ServiceError, ServiceNotReady, StepsFailed
from testbed.labs.lab import Lab
from testbed.nodes import base as nodes
from testbed.nodes import seed
from testbed.nodes.base import Service
from testbed.nodes.fake import Answer, Behaviour, FakeNode, FakeProvider
from testbed.nodes.seed import Layout, Seed
from testbed.process import Completed
from testbed.registry import ROLES
from testbed.roles import base, firewall
from testbed.roles.docker import containers, images
from testbed.roles.docker.daemon import add_group, settings_digest
from testbed.roles.flannel import daemon as flanneld
from testbed.testing.fakes import VERSIONS, Bench, FakeStore, be_a_machine
from testbed.testing.provider import spec
from testbed.topology import Overrides, Topology, load, load_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from testbed.labs.lab import Outcome

BIN = "/nowhere/cache"


def up(bench: Bench, topology: Topology) -> Outcome:
    return Lab(topology.name, bench.settings).up(topology, replace=True)


def of(started: list[tuple[str, Service]], node: str, name: str) -> Service:
    return [service for place, service in started if (place, service.name) == (node, name)][-1]


def options(service: Service) -> dict[str, str]:
    pairs = (word.removeprefix("--").partition("=") for word in service.argv[1:])
    return {name: value for name, _, value in pairs}


def words(outcome: Outcome, step: str) -> str:
    (found,) = [done.words for done in outcome.steps if done.step.name == step]
    return found


# -- etcd --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shares", "listen"),
    [(True, "http://10.168.0.2:2379,http://127.0.0.1:2379"), (False, "http://0.0.0.0:2379")],
)
def test_etcd(
    bench: Bench,
    started: list[tuple[str, Service]],
    monkeypatch: pytest.MonkeyPatch,
    shares: bool,
    listen: str,
) -> None:
    be_a_machine(monkeypatch, not shares)
    outcome = up(bench, load("two-node"))
    service = of(started, "node1", "etcd")
    assert service.argv[0] == f"{BIN}/etcd"
    assert options(service) == {
        "name": "default",
        "data-dir": "/var/lib/etcd",
        "listen-client-urls": listen,
        "advertise-client-urls": "http://10.168.0.2:2379",
        # The only member: no peer is to come in.
        "listen-peer-urls": "http://127.0.0.1:2380",
        "heartbeat-interval": "50",
        "election-timeout": "250",
        "logger": "zap",
        "log-level": "warn",
        "unsafe-no-fsync": "",
    }
    assert service.notify
    assert words(outcome, "etcd node1") == f"etcd {VERSIONS['etcd']} at 10.168.0.2:2379"
    noted = [path for path in node_of(bench, "node1").files if "etcd.deb" in path]
    assert bool(noted) == shares  # a machine has a database of packages of its own


def node_of(bench: Bench, name: str, lab: str = "two-node") -> FakeNode:
    found = bench.provider.nodes(lab)[name]
    assert isinstance(found, FakeNode)
    return found


def test_etcd_is_started_again_at_another_address(
    bench: Bench, started: list[tuple[str, Service]]
) -> None:
    first = load_text(FLANNEL, "t")
    other = load_text(FLANNEL.replace("10.168.0.2", "10.168.0.7"), "t")
    up(bench, first)
    before = of(started, "n1", "etcd").digest
    up(bench, other)
    assert of(started, "n1", "etcd").digest != before


def test_etcdctl_has_patience_and_asks_the_loopback(bench: Bench) -> None:
    up(bench, load("two-node"))
    (argv,) = [w for w in bench.provider.asked("run", "node1") if w[-1] == "txn"]
    assert argv == (
        f"{BIN}/etcdctl", "--endpoints=http://127.0.0.1:2379", "--dial-timeout=30s",
        "--command-timeout=30s", "txn",
    )  # fmt: skip


# -- flannel -----------------------------------------------------------------------------


def test_flanneld(bench: Bench, started: list[tuple[str, Service]]) -> None:
    outcome = up(bench, load("two-node"))
    service = of(started, "node2", "flanneld")
    assert service.argv[0] == f"{BIN}/flanneld"
    # flannel, Documentation/configuration.md
    assert options(service) == {
        "etcd-endpoints": "http://10.168.0.2:2379",
        "iface": "eth0",
        "subnet-file": "/run/flannel/subnet.env",
        "ip-masq": "",
        "iptables-resync": "30",
    }
    assert service.env == nodes.GO
    assert service.notify
    assert words(outcome, "flannel node2") == f"flanneld {VERSIONS['flanneld']}, 100.96.2.0/24"
    assert words(outcome, "flannel config") == "2 subnets reserved"


@pytest.mark.parametrize(
    ("machine", "has_system"), [(True, True), (True, False), (False, False)],
    ids=["virtual machine", "Pod", "namespace"],
)  # fmt: skip
def test_modules_are_loaded_by_a_system_of_ones_own(
    monkeypatch: pytest.MonkeyPatch, machine: bool, has_system: bool
) -> None:
    be_a_machine(monkeypatch, machine)
    monkeypatch.setattr(FakeNode, "has_system", has_system)
    provider = FakeProvider()
    node = provider.create_one("lab", spec("node1"))
    flanneld.load_modules(node)
    wanted = [("modprobe", "--all", "br_netfilter", "vxlan", "tun")] if has_system else []
    assert provider.asked("run") == wanted


def test_a_machine_that_woke_with_another_lifes_etcd_is_configured_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, started: list[tuple[str, Service]]
) -> None:
    be_a_machine(monkeypatch)
    topology = load("two-node")
    up(bench, topology)
    before = of(started, "node2", "flanneld").digest
    node_of(bench, "node1").files["/etc/machine-id"] = b"other\n"
    up(bench, topology)
    assert of(started, "node2", "flanneld").digest != before


def test_links_that_were_put_back_restart_flanneld(
    bench: Bench, started: list[tuple[str, Service]]
) -> None:
    topology = load("two-node")
    up(bench, topology)
    node_of(bench, "node2").put(b"once", "/run/testbed/done/rewired")
    changed = [done.step.name for done in up(bench, topology).changed]
    assert changed == ["flannel node2"]


@pytest.mark.parametrize("roles", ["[docker, flannel]", "[flannel]"])
def test_flanneld_writes_to_the_packet_filter_of_docker(bench: Bench, roles: str) -> None:
    text = FLANNEL.replace(
        "lan: 10.168.0.3}, roles: [docker, flannel]", f"lan: 10.168.0.3}}, roles: {roles}"
    )
    text += "docker: {firewall: iptables-legacy}\n"
    bench.provider.script(["sh", "-c", firewall.CHOOSE], Answer(out=b"iptables v1.8.9 (legacy)\n"))
    up(bench, load_text(text, "t"))
    calls = [(c.what, c.words) for c in bench.provider.calls if c.node == "n2"]
    chosen = [i for i, (_, w) in enumerate(calls) if w[:3] == ("sh", "-c", firewall.CHOOSE)]
    starts = [
        calls.index(("start", (name,))) for name in ("flanneld", "dockerd") if name[:-1] in roles
    ]
    # The two daemons start side by side, each after its own choice.
    assert len(chosen) == (2 if "docker" in roles else 0)
    assert all(early < start for early, start in zip(chosen, sorted(starts), strict=False))


def test_what_the_roles_of_an_overlay_take() -> None:
    topology = load("two-node")
    etcd, two = ROLES["etcd"].takes(topology, "node1"), len(topology.nodes)
    assert (etcd.files, etcd.tasks) == (64 + 2 * two, 10)
    takes = ROLES["flannel"].takes(topology, "node2")
    assert (takes.files, takes.tasks) == (64, 9)
    docker = ROLES["docker"].takes(topology, "node2")
    assert (docker.files, docker.tasks) == (256, 22 + 14)


# -- the packet filter -------------------------------------------------------------------


@pytest.mark.parametrize("chosen", ["iptables", "nftables"])
def test_the_machines_own_packet_filter_is_left(chosen: Any) -> None:
    provider = FakeProvider()
    firewall.choose(provider.create_one("lab", spec("node1")), chosen)
    assert provider.asked("run") == []


def test_an_overlay_is_marked_for_nftables() -> None:
    provider = FakeProvider()
    topology = load("two-node", Overrides(docker="29", firewall="nftables"))
    # A machine that is made for a snapshot has another name than its node.
    machine = provider.create_one("two-node", spec("snapshot.1"))
    firewall.admit(machine, topology, "nftables", "docker0", closed=True)
    (call,) = [call for call in provider.calls if call.what == "run"]
    rules = (call.input or b"").decode().splitlines()
    assert rules[:2] == ["add table ip testbed", "flush table ip testbed"]  # none twice
    *_, rule = rules
    assert "iifname != docker0 ip daddr 100.96.0.0/16" in rule
    # Of the packet's mark only the bit of the mask is set (bridge-accept-fwmark: mark/mask).
    mark, mask = (int(one, 16) for one in firewall.MARK.split("/"))
    expression = rule.rpartition("meta mark & ")[2]
    kept, added = (int(one, 16) for one in expression.split(" | "))
    assert (kept, added) == (0xFFFFFFFF ^ mask, mark)


# -- daemons -----------------------------------------------------------------------------

DAEMON = Service("etcd", ("etcd",), notify=True, digest="1")


def test_a_start_tells_whether_anything_changed() -> None:
    node = FakeProvider().create_one("lab", spec("node1"))
    assert base.start(node, DAEMON)
    assert not base.start(node, DAEMON)
    assert base.start(node, Service("etcd", ("etcd",), notify=True, digest="2"))
    node.end("etcd", -9)
    assert base.dead(node) == {"etcd"}
    assert base.start(node, Service("etcd", ("etcd",), notify=True, digest="2"))
    assert base.dead(node) == frozenset()


@pytest.mark.parametrize(("killed", "hint"), [(0, False), (3, True)])
def test_a_daemon_that_ran_out_of_memory_is_told(
    monkeypatch: pytest.MonkeyPatch, killed: int, hint: bool
) -> None:
    be_a_machine(monkeypatch)
    provider = FakeProvider()
    provider.behave("etcd", Behaviour(dies=137, log="last words\n"))
    node = provider.create_one("lab", spec("node1"))
    node.put(f"pgfault 5\noom_kill {killed}\n".encode(), "/proc/vmstat")
    with pytest.raises(ServiceError) as caught:
        base.start(node, DAEMON)
    assert ("memory" in (caught.value.hint or "")) == hint
    assert not hint or str(killed) in (caught.value.hint or "")


def test_without_a_context_a_late_daemon_ends_at_its_bound() -> None:
    provider = FakeProvider()
    provider.behave("etcd", Behaviour(never_ready=True, log="one\ntwo\n"))
    with pytest.raises(ServiceNotReady) as caught:
        base.start(provider.create_one("lab", spec("node1")), DAEMON, timeout=0.01)
    assert caught.value.service == "etcd"
    assert "two" in str(caught.value)


def test_daemons_that_had_died_before_are_for_others_to_start() -> None:
    node = FakeProvider().create_one("lab", spec("node1"))
    base.still_alive(node)
    base.start(node, DAEMON)
    base.still_alive(node)
    node.end("etcd", 1, "no space left\n")
    base.still_alive(node, others=frozenset({"etcd"}))
    with pytest.raises(ServiceError, match="no space left") as caught:
        base.still_alive(node, others=frozenset({"dockerd"}))
    assert (caught.value.service, caught.value.node) == ("etcd", "node1")


def test_settings_are_told_apart_in_any_order() -> None:
    one = base.digest_of({"a": 1, "b": 2}, "x")
    assert one == base.digest_of({"b": 2, "a": 1}, "x")
    assert len({one, base.digest_of({"a": 1, "b": 3}, "x"), base.digest_of({"a": 1, "b": 2}, "y"),
                base.digest_of({"a": 1, "b": 2})}) == 4  # fmt: skip
    assert len(one) == 12


def test_files_are_told_apart_by_place_size_and_time(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("abc")
    other.write_text("abc")
    os.utime(one, ns=(1, 5))
    os.utime(other, ns=(1, 5))
    assert base.files([one, other]) == [f"{one} 3 5", f"{other} 3 5"]


def test_what_is_ahead_of_a_role_is_told_by_its_programs(tmp_path: Path) -> None:
    for name in ("etcd", "etcdctl", "flanneld"):
        (tmp_path / name).write_text(name)
    store = FakeStore()
    store.binary = lambda name, *_: tmp_path / name  # type: ignore[method-assign]
    topology = load("two-node")
    assert ROLES["etcd"].ahead(store, topology, "node1") == base.files(
        [tmp_path / "etcd", tmp_path / "etcdctl"]
    )
    config, *programs = ROLES["flannel"].ahead(store, topology, "node1")
    assert json.loads(config) == flanneld.reservations(topology)
    assert programs == base.files([tmp_path / "flanneld", tmp_path / "etcdctl"])


# -- containers and images ---------------------------------------------------------------


def test_containers_start_in_the_order_of_the_file_and_joined_ones_last(bench: Bench) -> None:
    text = DOCKER + (
        "containers:\n"
        "  c1: {node: n1, network: 'container:c3'}\n"
        "  c2: {node: n1, network: none}\n"
        "  c3: {node: n1}\n"
        "  c4: {node: n1, publish: ['8080:80', '53:53/udp']}\n"
    )
    outcome = up(bench, load_text(text, "t"))
    made = [what for _, what in bench.engine_log if what.startswith("start")]
    assert made == ["start c2", "start c3", "start c4", "start c1"]
    steps = {done.step.name: done.step for done in outcome.steps}
    assert (
        steps["container n1/c4"].about == "nginx, network bridge, publishes 8080:80/tcp, 53:53/udp"
    )
    assert steps["container n1/c2"].about == "nginx, network none"
    said = {name: words(outcome, f"container n1/{name}") for name in ("c1", "c2", "c3")}
    assert (said["c1"], said["c2"]) == ("container", "none")
    assert said["c3"].startswith("172.17.0.")


def test_nodes_fetch_pages_round_in_a_ring(bench: Bench) -> None:
    topology = load("two-node", Overrides(nodes=3))
    steps = list(containers.reach_steps(topology))
    assert [step.name for step in steps] == [
        "reach container-1 -> container-2",
        "reach container-2 -> container-3",
        "reach container-3 -> container-1",
    ]
    assert set(steps[2].needs) == {
        "container node3/container-3", "flannel node3",
        "container node1/container-1", "flannel node1",
    }  # fmt: skip
    up(bench, topology)
    (argv,) = [w for w in bench.provider.asked("run", "node3") if "curl" in w]
    assert argv[0] == "nsenter"
    assert "--net" in argv
    assert "--mount" not in argv  # the image need not have curl
    assert argv[-4:-1] == ("-sS", "--max-time", "2")
    assert argv[-1].startswith("http://172.17.0.")
    assert argv[-1].endswith(":80/")


@pytest.mark.parametrize(
    ("settings", "pages"),
    [
        ("", 2), (", env: {PORT: '8080'}", 2), (", network: host", 0), (", image: redis", 0),
        (", command: [sleep, '9']", 0), (", expect: exit 0", 0),
    ],
)  # fmt: skip
def test_only_pages_are_fetched(settings: str, pages: int) -> None:
    text = FLANNEL + f"containers:\n  c1: {{node: n1}}\n  c2: {{node: n2{settings}}}\n"
    assert len(list(containers.reach_steps(load_text(text, "t")))) == pages


def test_a_page_is_fetched_from_the_port_that_it_is_told(bench: Bench) -> None:
    text = FLANNEL + "containers:\n  c1: {node: n1}\n  c2: {node: n2, env: {PORT: '8080'}}\n"
    up(bench, load_text(text, "t"))
    (argv,) = [w for w in bench.provider.asked("run", "n1") if "curl" in w]
    assert argv[-1].endswith(":8080/")


def test_a_page_that_is_never_had_says_what_was_seen(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(containers, "REACH_SECONDS", 0.02)
    bench.provider.script(["nsenter"], Answer(7, err=b"curl: (7) refused\n"))
    with pytest.raises(StepsFailed) as caught:
        up(bench, load("two-node"))
    errors = [error for _, error in caught.value.failures]
    assert all("curl: (7) refused" in str(error) for error in errors)
    assert all("ip route" in (getattr(error, "hint", "") or "") for error in errors)


def test_images_are_loaded_where_they_lack_and_containers_of_nobody_end(bench: Bench) -> None:
    topology = load_text(
        DOCKER + "containers: {c1: {node: n1, image: redis}, c2: {node: n1}}\n", "t"
    )
    outcome = up(bench, topology)
    loaded = [what for _, what in bench.engine_log if what.startswith("load")]
    assert sorted(loaded) == ["load nginx", "load redis"]
    assert words(outcome, "images n1") == "nginx, redis loaded"
    assert "image-seed" in bench.store.asked
    bench.forget()
    fewer = load_text(DOCKER + "containers: {c1: {node: n1, image: redis}}\n", "t")
    outcome = up(bench, fewer)
    assert ("n1", "remove c2") in bench.engine_log
    assert words(outcome, "images n1") == "redis present"
    assert [done.step.name for done in outcome.changed] == ["images n1"]


def test_a_node_without_containers_needs_no_image(bench: Bench) -> None:
    outcome = up(bench, load_text(DOCKER, "t"))
    assert words(outcome, "images n1") == "none present"
    assert images.wanted(load_text(DOCKER, "t"), "n1") == []


def test_a_seed_that_cannot_be_kept_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ArtifactError("no whiteouts here")

    monkeypatch.setattr(FakeStore, "keep", refuse)
    outcome = up(bench, load_text(DOCKER + "containers: {c1: {node: n1}}\n", "t"))
    assert words(outcome, "images n1") == "nginx loaded; not kept: no whiteouts here"


@pytest.mark.parametrize("shares", [True, False])
def test_a_seed_is_put_under_a_daemon_that_has_never_run(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, shares: bool
) -> None:
    monkeypatch.setattr(FakeStore, "kept", lambda *_: Path("/seed"))
    be_a_machine(monkeypatch, not shares)
    up(bench, load_text(DOCKER + "containers: {c1: {node: n1}}\n", "t"))
    calls = [(c.what, c.words) for c in bench.provider.calls if c.node == "n1"]
    put = ("run", ("sh", "-c", seed.INSTALL, "sh", "/seed", "/var/lib/docker"))
    assert (put in calls) == shares
    assert ("image-seed" in bench.store.asked) is False  # another is not made of it
    if shares:
        assert calls.index(put) < calls.index(("start", ("containerd",)))


LAYOUT = Layout("/root", ("image", "layers"), ("layers/*/diff",), ("layers/own",))


def test_a_seed_is_another_for_another_daemon_image_or_layout(tmp_path: Path) -> None:
    one, other = tmp_path / "one.tar", tmp_path / "other.tar"
    one.write_text("1")
    other.write_text("2")
    plain = Seed("20.10", LAYOUT, [one])
    layouts = (
        replace(LAYOUT, root="/other"),
        replace(LAYOUT, parts=("image",)),
        replace(LAYOUT, linked=()),
        replace(LAYOUT, without=()),
    )
    others = [
        Seed("29", LAYOUT, [one]),
        Seed("20.10", LAYOUT, [one, other]),
        Seed("20.10", LAYOUT, [other]),
        *(Seed("20.10", layout, [one]) for layout in layouts),
    ]
    recipes = [json.dumps(dict(seed_.recipe()), sort_keys=True) for seed_ in (plain, *others)]
    assert len(set(recipes)) == len(recipes)
    assert plain == Seed("20.10", LAYOUT, [one], lambda *_: None)  # it is told apart by the rest


def test_a_harvest_is_a_tar_of_the_parts_below_the_nodes_root(tmp_path: Path) -> None:
    ran: list[Sequence[str | Path]] = []

    def runner(argv: Sequence[str | Path], **_: object) -> Completed:
        ran.append(argv)
        return Completed((), 0, b"", b"")

    node = FakeProvider().create_one("lab", spec("node1"))
    job = Job(tmp_path, tmp_path, print, runner, threading.Event(), lambda _: tmp_path)
    seed.harvest(node, LAYOUT)(job, tmp_path / "tar")
    ((_, _, script, _, target, *words),) = ran
    assert (script, target) == (seed.TO_FILE, tmp_path / "tar")
    assert words[:3] == ["chroot", node.socket("/"), "tar"]
    folder, root, *rest = map(str, words[3:])
    assert (folder, root) == ("-C", "/root")
    assert rest[:2] == ["-cf", "-"]
    assert rest[-3:] == ["--exclude=layers/own", "image", "layers"]
    assert set(seed.FAITHFUL) < set(rest)


@pytest.mark.parametrize(
    ("there", "whole"), [((), False), (("root",), False), (("layers",), False),
                         (("root", "layers"), True)],
)  # fmt: skip
def test_a_seed_that_was_cut_off_is_none(
    tmp_path: Path, there: tuple[str, ...], whole: bool
) -> None:
    for name in there:
        (tmp_path / name).mkdir()
    assert Seed("1", LAYOUT, []).whole(tmp_path) is whole


def test_a_user_of_the_socket_has_a_group(bench: Bench) -> None:
    node = bench.provider.create_one("lab", spec("node9"))
    files: dict[bytes, bytes] = {
        b"": b"docker:x:999:\n",
        b"root:x:0:\nssh:x:999:\n": b"root:x:0:\nssh:x:999:\ndocker:x:998:\n",
        b"root:x:0:": b"root:x:0:\ndocker:x:999:\n",
        b"docker:x:7:me\n": b"docker:x:7:me\n",
        b"broken\nx:\n": b"broken\nx:\ndocker:x:999:\n",
        b"\xff:x:999:\n": b"\xff:x:999:\ndocker:x:998:\n",
    }
    for before, after in files.items():
        node.put(before, "/etc/group")
        add_group(node, "docker")
        assert node.files["/etc/group"] == after
    del node.files["/etc/group"]
    add_group(node, "docker")
    assert node.files["/etc/group"] == b"docker:x:999:\n"


def test_docker_is_told_where_it_is_and_starts_after_its_files(
    bench: Bench, started: list[tuple[str, Service]]
) -> None:
    outcome = up(bench, load("docker-single"))
    below, above = of(started, "host", "containerd"), of(started, "host", "dockerd")
    assert below.argv == (
        f"{BIN}/containerd", "--config=/etc/docker/containerd.toml", "--log-level=warn",
    )  # fmt: skip
    assert above.argv == (
        f"{BIN}/dockerd", "--containerd=/run/docker/containerd/containerd.sock", "--log-level=warn",
    )  # fmt: skip
    assert (below.unit, above.unit) == ("", "docker")
    assert below.notify
    assert above.notify
    assert below.env == above.env
    assert below.env["PATH"] == f"{BIN}/docker:/usr/sbin:/usr/bin:/sbin:/bin"
    assert words(outcome, "docker host") == f"dockerd {VERSIONS['docker']}, docker0 172.17.0.1/16"
    node = node_of(bench, "host", "docker-single")
    assert {"/etc/docker/daemon.json", "/etc/docker/containerd.toml", "/etc/group"} <= set(
        node.files
    )
    assert any(path.endswith("docker.deb") for path in node.files)


def test_docker_is_left_alone_until_its_settings_change(
    bench: Bench, started: list[tuple[str, Service]]
) -> None:
    up(bench, load("docker-single"))
    before = of(started, "host", "dockerd").digest
    bench.forget()
    assert up(bench, load("docker-single")).changed == []
    assert ("/etc/docker/daemon.json",) not in bench.provider.asked("put", "host")
    assert of(started, "host", "dockerd").digest == before
    up(bench, load("docker-single", Overrides(docker="29")))
    assert of(started, "host", "dockerd").digest != before
    topology = load("docker-single")
    others = [
        load("docker-single", Overrides(docker="29")),
        load("docker-single", Overrides(firewall="iptables-legacy")),
    ]
    assert len({settings_digest(one, "host") for one in (topology, *others)}) == 3


def test_the_engine_of_a_lab_is_that_of_its_parts(bench: Bench) -> None:
    docker = ROLES["docker"]
    assert docker.parts(load("docker-single"), "host") == ("docker", "compose")
    assert docker.parts(load("docker-single", Overrides(docker="29")), "host") == (
        "docker-29", "docker-cli-29", "runc-1.5", "docker", "compose",
    )  # fmt: skip
    docker.fetch(bench.store, load("docker-single"))
    assert set(bench.store.asked) == {"dockerd", "containerd", "runc"}
