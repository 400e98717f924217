"""``testbed vagrant``: what the Vagrantfile asks."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, cast

import click

from testbed.cli import common
from testbed.requirement import need_root

if TYPE_CHECKING:
    from testbed.labs.lab import Lab, Settings
    from testbed.nodes.base import NodeSpec
    from testbed.nodes.netns.node import NetnsNode
    from testbed.nodes.vagrant.provider import VagrantProvider
    from testbed.topology.model import Topology


@click.group("vagrant")
def command() -> None:
    """Answer what the Vagrantfile asks, for plain `vagrant up`.

    The Vagrantfile reads a topology (TESTBED_TOPOLOGY, or two-node) through these commands, so
    that Vagrant makes the machines that `testbed up --provider vagrant` makes.
    """


@command.command("describe")
@click.argument("topology", shell_complete=common.complete_topologies)
@click.option("--make", is_flag=True, help="Make what the machines run in, and keys for them.")
def describe(topology: str, make: bool) -> None:
    """Print the machines of a topology as JSON, as the Vagrantfile reads them."""
    from testbed.labs import base_steps
    from testbed.nodes.vagrant import outside
    from testbed.topology.load import is_path

    settings, meant, provider = _meant(topology)
    specs = [
        base_steps.node_spec(meant, node)
        for node in meant.nodes.values()
        if meant.provider_of(node.name) == provider.name
    ]
    if make:
        need_root("`vagrant up`")
        _make(settings, meant, provider, specs)
    own = [sys.executable, "-m", "testbed", "vagrant"]
    lasting = meant.file if is_path(topology) else topology  # Vagrant may run them elsewhere
    cell = provider.hypervisor(meant.name)
    common.print_json(
        {
            "box_url": _box_url(settings, cell) if cell else None,
            **outside.description(cell, specs),
            "joined": [*own, "joined", lasting],
            "left": [*own, "left", lasting],
        }
    )


@command.command("joined")
@click.argument("topology")
@click.argument("node")
def joined(topology: str, node: str) -> None:
    """Join a machine that Vagrant has made to its lab; with the last one, bring up the lab."""
    from testbed.cli.up import bring_up

    settings, meant, _ = _meant(topology)
    need_root("`vagrant up`")
    lab = _lab(settings, meant)
    if lab.adopt(meant, node):
        bring_up(lab, meant)


@command.command("left")
@click.argument("topology")
@click.argument("node")
def left(topology: str, node: str) -> None:
    """Forget a machine that Vagrant has destroyed; with the last one, take down the lab."""
    settings, meant, provider = _meant(topology)
    need_root("`vagrant destroy`")
    provider.destroy(meant.name, [node])
    if not provider.nodes(meant.name):
        _lab(settings, meant).down()


def _box_url(settings: Settings, cell: NetnsNode) -> str:
    """Where a Vagrant that has not got the box finds it."""
    from testbed.nodes.vagrant.hypervisor import FOLDER
    from testbed.vm.box import box
    from testbed.vm.package import CATALOGUE, package

    packed = package(settings.store, box(settings.store))
    path = f"{FOLDER}/{CATALOGUE}"
    cell.put(packed.catalogue(packed.file).encode(), path)
    return cell.socket(path)


def _meant(topology: str) -> tuple[Settings, Topology, VagrantProvider]:
    settings = common.make_settings()
    meant: Topology = common.load_variant(topology, provider="vagrant")
    # Before all machines have joined there is no record.
    if record := settings.state.read(meant.name):
        from testbed.labs import origin

        origin.refuse_other(meant, record)
    provider: Any = settings.provider("vagrant")
    return settings, meant, cast("VagrantProvider", provider)


def _lab(settings: Settings, meant: Topology) -> Lab:
    from testbed.labs.lab import Lab

    return Lab(meant.name, settings)


def _make(
    settings: Settings, meant: Topology, provider: VagrantProvider, specs: list[NodeSpec]
) -> None:
    from testbed.labs import preflight

    preflight.check(meant, settings.store.folder)
    with settings.state.lock(meant.name, f"vagrant up {meant.name}"):
        provider.create_fabric(meant.name, meant)
        there = provider.nodes(meant.name)
        provider.announce(
            meant.name,
            [s for s in specs if s.name not in there or there[s.name].digest != s.digest],
        )
