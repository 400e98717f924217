"""vagrant: the nodes of a lab as machines of a Vagrantfile that needs no testbed.

The lab's networks are isolated networks of libvirt or VirtualBox.  Vagrant itself reaches each
machine by its management network.  Containers are started by Vagrant's Docker provisioner.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar

from testbed.exports.base import Export, Exported, LeftOut, Subject, comment, unsaid

if TYPE_CHECKING:
    from testbed.topology.containers import Container
    from testbed.topology.model import Topology

FILE = "Vagrantfile"
BOX = "debian/bookworm64"
PROVIDERS = ("libvirt", "virtualbox")
MIB = 1 << 20
HEAD = """\
# Lab {name}, by `testbed export --to vagrant`: vagrant up && vagrant ssh {node}
{about}Vagrant.configure("2") do |config|
  config.vm.box = {box}
  config.vm.synced_folder ".", "/vagrant", disabled: true
"""


class Vagrantfile(Export):
    """A Vagrantfile."""

    name = "vagrant"
    about = f"Vagrant: a {FILE} for libvirt and VirtualBox"
    says: ClassVar[tuple[str, ...]] = (
        "description", "networks", "links", "nodes.*.networks", "nodes.*.cpus", "nodes.*.memory",
        "containers.*.node", "containers.*.image", "containers.*.network", "containers.*.publish",
        "containers.*.command", "containers.*.env", "containers.*.healthcheck",
    )  # fmt: skip
    reasons: ClassVar[Mapping[str, str]] = {
        "nodes.*.gateway": "a machine's default route is Vagrant's management network",
        "nodes.*.roles": "Vagrant installs Docker on machines with containers, and nothing else",
        "containers.*.expect": "Vagrant does not check an exit status",
        "containers.*.ready": "Vagrant does not wait for containers",
        "containers.*.networks": "Vagrant creates no Docker networks",
        "containers.*": "only the options above are passed to docker run",
        "*": "a Vagrantfile has no such thing",
    }

    def export(self, subject: Subject) -> Exported:
        topology = subject.topology
        parts = [f"nodes.{node.name}.cpus" for node in topology.nodes.values() if _cut(node.cpus)]
        left_out = [LeftOut(tuple(parts), "rounded up to whole CPUs")] if parts else []
        left_out += unsaid(topology, networks=["mtu"], why=self.reasons["*"])
        bare = [
            f"nodes.{node.name}.networks.{port.network}"
            for node in topology.nodes.values()
            for port in node.ports
            if not port.interfaces
        ]
        left_out += (
            [LeftOut(tuple(bare), "Vagrant gives each interface an address")] if bare else []
        )
        return Exported({FILE: "\n".join(_lines(topology)) + "\n"}, tuple(left_out))


def _cut(cpus: float | None) -> bool:
    return cpus is not None and cpus != int(cpus)


def ruby(text: str) -> str:
    """Return a string of Ruby without interpolation."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _lines(topology: Topology) -> Iterator[str]:
    about = comment(topology.description)
    yield HEAD.format(
        name=topology.name,
        node=next(iter(topology.nodes)),
        about=f"# {about}\n" if about else "",
        box=ruby(BOX),
    ).rstrip("\n")
    for name in topology.nodes:
        yield ""
        yield f"  config.vm.define {ruby(name)} do |node|"
        for line in _machine(topology, name):
            yield f"    {line}"
        yield "  end"
    yield "end"


def _machine(topology: Topology, name: str) -> Iterator[str]:
    node = topology.nodes[name]
    yield f"node.vm.hostname = {ruby(name)}"
    for port in node.ports:
        if not port.interfaces:
            continue
        segment = f"{topology.name}-{port.network.replace(':', '-')}"
        yield (
            f"node.vm.network 'private_network', ip: {ruby(str(port.address))}, "
            f"netmask: {ruby(str(port.interfaces[0].netmask))},"
        )
        yield (
            f"  libvirt__network_name: {ruby(segment)}, libvirt__forward_mode: 'veryisolated', "
            "libvirt__dhcp_enabled: false,"
        )
        if mtu := topology.networks[port.network].mtu:
            yield f"  libvirt__mtu: {mtu},"
        yield f"  virtualbox__intnet: {ruby(segment)}"
    if node.cpus or node.memory:
        for provider in PROVIDERS:
            yield f"node.vm.provider '{provider}' do |machine|"
            if node.cpus:
                yield f"  machine.cpus = {math.ceil(node.cpus)}"
            if node.memory:
                yield f"  machine.memory = {math.ceil(node.memory / MIB)}"
            yield "end"
    containers = topology.containers_on(name)
    if containers:
        yield "node.vm.provision 'docker' do |docker|"
        # The owner of a network starts before those that join it.
        for container in sorted(containers, key=lambda one: one.network.startswith("container:")):
            yield f"  {_run(container)}"
        yield "end"


def _run(container: Container) -> str:
    """Return the provisioner's line for a container (Vagrant, "Docker Provisioner")."""
    words = {"image": ruby(container.image), "args": ruby(shlex.join(_arguments(container)))}
    if container.command is not None:
        words["cmd"] = ruby(shlex.join(container.command))
    if container.expect is not None:
        words["restart"] = ruby("no")
    given = ", ".join(f"{key}: {value}" for key, value in words.items())
    return f"docker.run {ruby(container.name)}, {given}"


def _arguments(container: Container) -> Iterator[str]:
    """Yield the options of `docker run`."""
    if container.network:
        yield f"--network={container.network}"
    for published in container.publish:
        yield f"--publish={published}"
    for key, value in container.env.items():
        yield f"--env={key}={value}"
    check = container.healthcheck
    if check is None:
        return
    kind, *words = check.test or ("",)
    if kind == "NONE":
        yield "--no-healthcheck"
        return
    if words:
        yield f"--health-cmd={words[0] if kind == 'CMD-SHELL' else shlex.join(words)}"
    for option, seconds in {
        "interval": check.interval,
        "timeout": check.timeout,
        "start-period": check.start_period,
    }.items():
        if seconds is not None:
            yield f"--health-{option}={seconds:g}s"
    if check.retries is not None:
        yield f"--health-retries={check.retries}"
