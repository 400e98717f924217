"""``testbed vagrant``: the commands that the Vagrantfile runs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from testbed.cli import common
from testbed.requirement import need_root

if TYPE_CHECKING:
    from collections.abc import Mapping

    from testbed.labs.lab import Lab, Settings
    from testbed.nodes.base import NodeSpec
    from testbed.nodes.netns.node import NetnsNode
    from testbed.nodes.vagrant.provider import VagrantProvider
    from testbed.topology.model import Topology


@click.group("vagrant")
def command() -> None:
    """Serve the Vagrantfile, so that plain `vagrant up` works.

    The Vagrantfile reads a topology (TESTBED_TOPOLOGY, by default two-node) with these
    commands, so that Vagrant creates the same machines as `testbed up --provider vagrant`.
    """


@command.command("describe")
@click.argument("topology", shell_complete=common.complete_topologies)
@click.option("--make", is_flag=True, help="Create the machines' environment and SSH keys.")
@common.variables_option
def describe(topology: str, make: bool, **variant: Any) -> None:
    """Print the machines of a topology as JSON for the Vagrantfile."""
    from testbed.labs import base_steps
    from testbed.nodes.vagrant import outside
    from testbed.topology.load import is_path

    settings, meant, provider = _meant(topology, variant)
    specs = [
        base_steps.node_spec(meant, node)
        for node in meant.nodes.values()
        if meant.provider_of(node.name) == provider.name
    ]
    if make:
        need_root("`vagrant up`")
        _make(settings, meant, provider, specs)
    # -P: Vagrant may run in a folder of another user, who could put a testbed there.
    own = [sys.executable, "-P", "-m", "testbed", "vagrant"]
    lasting = meant.file if is_path(topology) else topology  # Vagrant may run elsewhere
    values = [f"--set={name}={value}" for name, value in meant.variables.items()]
    cell = provider.hypervisor(meant.name)
    common.print_json(
        {
            "box_url": _box_url(settings, cell) if cell else None,
            **outside.description(cell, specs),
            "joined": [*own, "joined", *values, lasting],
            "left": [*own, "left", *values, lasting],
        }
    )


@command.command("joined")
@click.argument("topology")
@click.argument("node")
@common.variables_option
def joined(topology: str, node: str, **variant: Any) -> None:
    """Add a machine from Vagrant to its lab.

    After the last one, start the lab.
    """
    from testbed.cli.up import bring_up

    settings, meant, _ = _meant(topology, variant)
    need_root("`vagrant up`")
    lab = _lab(settings, meant)
    if lab.adopt(meant, node):
        bring_up(lab, meant)


@command.command("left")
@click.argument("topology")
@click.argument("node")
@common.variables_option
def left(topology: str, node: str, **variant: Any) -> None:
    """Remove a destroyed machine from its lab.

    After the last one, remove the lab.
    """
    settings, meant, provider = _meant(topology, variant)
    need_root("`vagrant destroy`")
    provider.destroy(meant.name, [node])
    if not provider.nodes(meant.name):
        _lab(settings, meant).down()


def _box_url(settings: Settings, cell: NetnsNode) -> str:
    """Return the URL of the box for a Vagrant that does not have it."""
    from testbed.nodes.vagrant.hypervisor import FOLDER
    from testbed.vm.box import box
    from testbed.vm.package import CATALOGUE, package

    packed = package(settings.store, box(settings.store))
    path = f"{FOLDER}/{CATALOGUE}"
    cell.put(packed.catalogue(packed.file).encode(), path)
    return cell.socket(path)


def _meant(topology: str, variant: Mapping[str, Any]) -> tuple[Settings, Topology, VagrantProvider]:
    from testbed.nodes.vagrant.provider import VagrantProvider

    settings = common.make_settings()
    meant: Topology = common.load_variant(topology, provider="vagrant", **variant)
    # There is no record until all machines have been added.
    if record := settings.state.read(meant.name):
        from testbed.labs import origin

        origin.refuse_other(meant, record)
    return settings, meant, VagrantProvider.of(settings.setup)


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
