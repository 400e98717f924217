"""The programs that nodes have for those who work on them, and those that they hide."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from testbed.artifacts.inventory import INVENTORY
from testbed.labs import base_steps, offers
from testbed.labs.lab import Lab
from testbed.nodes.netns import provider as netns
from testbed.registry import ROLES
from testbed.roles.base import Offer
from testbed.roles.docker.section import ENGINES
from testbed.roles.kubernetes.section import PLUGINS
from testbed.steps.context import Context
from testbed.topology import Overrides, load

if TYPE_CHECKING:
    from testbed.testing.fakes import Bench
    from testbed.topology import Topology


def names(topology: Topology, node: str) -> set[str]:
    return {offer.name for offer, _ in offers.offers_on(topology, topology.nodes[node]).values()}


def test_a_node_has_the_programs_of_its_roles() -> None:
    topology = load("two-node")
    both = {"docker", "dockerd", "containerd", "ctr", "runc", "flanneld"}
    assert both <= names(topology, "node1") & names(topology, "node2")
    assert names(topology, "node1") - names(topology, "node2") == {"etcd", "etcdctl"}
    assert names(topology, "outside") == set()


@pytest.mark.parametrize("cni", PLUGINS)
def test_a_clusters_node_has_those_of_its_network_plugin(cni: str) -> None:
    topology = load("k8s-two-node", Overrides(cni=cni))
    found = names(topology, "node2")
    assert {"kubectl", "kubelet", "ctr", "runc", "containerd"} <= found
    assert "docker" not in found
    assert ("flanneld" in found) == (cni == "flannel")
    assert ("birdc" in found) == (cni == "bgp")


#: The part of an engine's program, if it is not Debian's.
OF_ENGINE: dict[str, dict[str, str]] = {
    "20.10": {},
    "24": {"dockerd": "docker-24", "docker": "docker-cli-24"},
    "26": {"dockerd": "docker-26", "docker": "docker-cli-26"},
    "28": {"dockerd": "docker-28", "docker": "docker-cli-28", "runc": "runc-1.5"},
    "29": {"dockerd": "docker-29", "docker": "docker-cli-29", "runc": "runc-1.5"},
}


@pytest.mark.parametrize("engine", ENGINES)
def test_each_comes_from_the_parts_of_its_engine(engine: str) -> None:
    topology = load("two-node", Overrides(docker=engine))
    for node in topology.nodes.values():
        for offer, parts in offers.offers_on(topology, node).values():
            bringing = [part for part in parts if offer.name in INVENTORY.brought_by(part)]
            part = bringing[0] if parts else INVENTORY.programs[offer.name]
            if offer.name in {"docker", "dockerd", "runc"}:
                assert part == OF_ENGINE[engine].get(offer.name, "docker")


def test_a_node_hides_what_any_role_offers_whatever_its_own(bench: Bench) -> None:
    topology = load("two-node")
    hidden = offers.hidden(topology, topology.nodes["outside"])
    for role in ROLES.values():
        assert {offer.name for offer in role.offers} <= set(hidden)
    assert {"docker", "docker-compose", "kubectl", "crictl", "/root/.docker"} <= set(hidden)
    store = bench.settings.store
    for node in topology.nodes.values():
        spec = base_steps.full_spec(topology, node, bench.provider, store)
        assert spec.hidden == hidden
    # A router of this machine's may be wanted on a plain node, and not where a cluster has its own.
    assert not {"bird", "birdc"} & set(hidden)
    cluster = load("k8s-two-node", Overrides(cni="bgp"))
    assert {"bird", "birdc"} <= set(offers.hidden(cluster, cluster.nodes["node2"]))


def test_every_program_but_those_with_a_stand_in_is_made_before_the_lab(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra = (Offer("wanted"), Offer("long", "/usr/libexec/long", "#!/bin/sh\n"))
    monkeypatch.setattr(ROLES["etcd"], "offers", extra)
    bench.store.unbuilt.add("long")
    offers.fetch(bench.store, load("two-node"))
    assert "wanted" in bench.store.asked
    assert "docker" in bench.store.asked
    assert "long" not in bench.store.asked


def test_they_are_put_there_once_and_again_when_they_are_others(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "#!/bin/sh\necho build it, then testbed up {lab} >&2\nexit 127\n"
    extra = (Offer("plain"), Offer("long", "/usr/libexec/long", script))
    monkeypatch.setattr(ROLES["etcd"], "offers", extra)
    bench.store.unbuilt.add("long")
    topology = load("two-node")
    lab = Lab("two-node", bench.settings)
    lab.up(topology)
    node = bench.provider.nodes("two-node")["node1"]
    assert node.programs["plain"].name == "plain"  # type: ignore[attr-defined]
    assert node.get("/usr/libexec/long") == script.format(lab="two-node").encode()
    assert node.modes["/usr/libexec/long"] == 0o755  # type: ignore[attr-defined]

    step = {s.name: s for s in base_steps.steps(topology)}["programs node1"]
    context = Context(topology, bench.provider, bench.store, {"node1": node})
    assert step.act(context)[1] is False
    bench.store.unbuilt.clear()
    assert step.act(context)[1] is True
    assert node.programs["/usr/libexec/long"].name == "long"  # type: ignore[attr-defined]
    assert step.act(context)[1] is False


def test_what_stands_for_crictl_names_the_command(bench: Bench) -> None:
    topology = load("k8s-two-node")
    bench.store.unbuilt.add("crictl")
    for node in topology.with_role("kubernetes"):
        script = offers.programs(bench.store, topology, node)["/usr/bin/crictl"]
        assert isinstance(script, str)
        argv = ["sh", "-c", script, "crictl", "ps"]
        done = subprocess.run(argv, check=False, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (127, "")
        assert "testbed artifacts build crictl" in done.stderr
        assert "testbed up -l k8s-two-node" in done.stderr


def test_a_stand_in_needs_a_place() -> None:
    assert Offer("tool").target == "tool"
    with pytest.raises(ValueError, match="tool"):
        Offer("tool", stand_in="#!/bin/sh\n")


def test_what_stands_for_compose_is_a_plugin_and_names_the_command(bench: Bench) -> None:
    """The client runs no plugin that does not say what it is (docker/cli, cli-plugins)."""
    topology = load("docker-single")
    bench.store.unbuilt.add("docker-compose")
    node = topology.nodes["host"]
    found = offers.programs(bench.store, topology, node)
    (script,) = {text for text in found.values() if isinstance(text, str)}
    argv = ["sh", "-c", script, "docker-compose"]
    told = subprocess.run([*argv, "docker-cli-plugin-metadata"], check=True, capture_output=True)
    assert json.loads(told.stdout).keys() >= {"SchemaVersion", "Vendor"}
    done = subprocess.run([*argv, "compose", "up"], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (127, "")
    assert "testbed artifacts build compose" in done.stderr
    assert "testbed up -l docker-single" in done.stderr
    # It is where clients look, and so is what takes its place.
    places = [place for place in found if place.endswith("docker-compose")]
    assert "/usr/libexec/docker/cli-plugins/docker-compose" in places
    bench.store.unbuilt.clear()
    assert offers.programs(bench.store, topology, node).keys() == found.keys()


def test_what_this_machine_has_of_them_is_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program on the PATH, and a folder of plugins, beside others of the machine's."""
    for place in ("sbin/tool", "bin/other", "bin/tool", "libexec/tool/plugin", "home/.tool/config"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "tool").symlink_to("nowhere")  # one that is broken now may not be later
    folders = tuple(str(tmp_path / name) for name in ("local", "sbin", "bin"))
    monkeypatch.setattr(netns, "path_folders", lambda: folders)
    monkeypatch.setattr(netns, "PROGRAMS", str(tmp_path / "bin"))
    monkeypatch.setattr(netns, "HELPERS", str(tmp_path / "libexec"))
    home, helper = str(tmp_path / "home/.tool"), str(tmp_path / "libexec/tool")
    words = netns.own_programs(["tool", "absent", helper, home, "/no/such"])
    pairs = list(zip(words[::2], words[1::2], strict=True))
    assert {path for kind, path in pairs if kind == "hide"} == {
        *(f"{folder}/tool" for folder in folders),
        helper,
    }
    # Each hidden program is right in a tree, and its place comes with the node's own programs.
    assert {path for kind, path in pairs if kind == "tree"} == {*folders, str(Path(helper).parent)}
    covered = {path for kind, path in pairs if kind == "cover"}
    assert home in covered
    assert "/root/.profile" in covered  # it would set this machine's PATH

    (tmp_path / "bin" / "tool").unlink()
    again = netns.own_programs(["tool", "absent", helper, home, "/no/such"])
    assert f"{folders[2]}/tool" not in again
