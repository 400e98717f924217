"""The daemon of a node: its configuration and the steps that start it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from testbed.errors import LabError, ServiceError
from testbed.nodes import engine
from testbed.nodes.base import GO, note_packages
from testbed.nodes.engine import (
    CONFIG,
    CONTAINERD_CONFIG,
    CONTAINERD_FILE,
    PROGRAMS,
    SERVICE,
    is_folder,
    number_of,
    parse_version,
    parts_of,
    program,
    version_of,
)
from testbed.nodes.marks import mark, marked
from testbed.roles import firewall
from testbed.roles.base import digest_of, files, start
from testbed.roles.docker import images
from testbed.roles.docker.containers import container_steps
from testbed.roles.docker.daemon_json import RELOADABLE, remapped
from testbed.roles.docker.engine import Engine, preload
from testbed.roles.docker.network_steps import networks_steps
from testbed.roles.docker.networks import on_node
from testbed.roles.docker.role import BRIDGE
from testbed.roles.docker.section import (
    MIXED,
    ROLE,
    DockerSection,
    daemon_of,
    engine_of,
    firewall_of,
)
from testbed.roles.docker.settle import settle_steps
from testbed.roles.docker.swarm import MEMBER
from testbed.roles.flannel.section import FORWARDING6, FlannelSection
from testbed.steps.step import Step, node_step
from testbed.topology.shapes import merged

if TYPE_CHECKING:
    from ipaddress import IPv6Network

    from testbed.artifacts import Store
    from testbed.nodes.base import Node, ServiceState
    from testbed.steps.context import Context
    from testbed.topology.model import Node as Spec
    from testbed.topology.model import Topology

GROUP = "docker"  #: its members may use the daemon's socket (dockerd(8), --group)
GROUP_COLONS = 3  # group(5): name, password, number, members
SUBORDINATE = "100000:65536"  # the first range of useradd(8)
#: A user namespace can mount proc only where one without mounts on top of its folders is visible
#: (Linux, fs/namespace.c, mnt_already_visible()). A node's /proc has some, so it gets a second one.
WHOLE_PROC = """
folder=/run/testbed/proc
mountpoint -q $folder || { mkdir -p -m 0700 $folder && mount -t proc proc $folder; }
"""
WRITTEN = "daemon.json"  # mark: the file as testbed wrote it
STOP_SECONDS = 20.0  # a daemon gives its containers 15 s to end (dockerd(8), --shutdown-timeout)
FORWARDING = ("sysctl", "-q", "-w", "net.ipv4.ip_forward=1")


def docker_step(node: str) -> str:
    """Return the name of the step after which the node's daemon answers."""
    return f"docker {node}"


def daemon_config(
    topology: Topology, node: str, version: tuple[int, int, int], link_mtu: int | None = None
) -> dict[str, Any]:
    """Return the contents of the node's daemon.json: testbed's own, and those of the file.

    ``link_mtu`` is the node's (:attr:`Node.link_mtu`).
    """
    given = daemon_of(topology, node)
    config = merged(own_config(topology, node, version, link_mtu), given)
    if "bridge" in given:
        del config["bip"]  # dockerd refuses both
    return config


def own_config(
    topology: Topology, node: str, version: tuple[int, int, int], link_mtu: int | None = None
) -> dict[str, Any]:
    """Return the part of the node's daemon.json that testbed sets.

    On flannel nodes only flanneld translates source addresses, where packets leave the overlay.
    This is how flannel's own mk-docker-opts.sh configures Docker.
    """
    docker = DockerSection.of(topology)
    config = {"bip": str(docker.bip[node]), **engine.configuration(version)}
    filters = firewall_of(topology, node)
    if filters == "nftables":
        config["firewall-backend"] = "nftables"
    if _in_overlay(topology, node):
        config["mtu"] = FlannelSection.of(topology).mtu(topology, node, link_mtu)
        config["ip-masq"] = False
        if six := _subnet6(topology, node):
            # docker0 gets the first address, that of FLANNEL_IPV6_SUBNET.
            config |= {"ipv6": True, "fixed-cidr-v6": str(six)}
            if version < (27, 0, 0):
                config |= {"experimental": True, "ip6tables": True}  # the default since 27
    if _is_open(topology, node):
        if version >= (28, 2, 0):
            # Since 28 Docker drops packets to a container from other interfaces, such as an
            # overlay's (moby #49325).  For earlier releases of 28 see daemon_env.
            config["allow-direct-routing"] = True
        if filters == "nftables":
            config["bridge-accept-fwmark"] = firewall.MARK
    return config


def daemon_env(
    topology: Topology, node: str, version: tuple[int, int, int], path: str
) -> dict[str, str]:
    """Return the daemon's environment.

    ``path`` is the PATH for its helper programs.
    """
    env = {"PATH": path, **GO}
    if _is_open(topology, node) and (28, 0, 0) <= version < (28, 2, 0):
        env["DOCKER_INSECURE_NO_IPTABLES_RAW"] = "1"  # moby 28.0 release notes
    return env


def _in_overlay(topology: Topology, node: str) -> bool:
    flannel = FlannelSection.find(topology)
    return flannel is not None and node in flannel.subnets


def _subnet6(topology: Topology, node: str) -> IPv6Network | None:
    """Return the IPv6 subnet of a node's docker0; None without one."""
    flannel = FlannelSection.find(topology)
    return flannel.ipv6.subnets.get(node) if flannel and flannel.ipv6 else None


def _is_open(topology: Topology, node: str) -> bool:
    """Tell whether the overlay's packets may pass to all containers of a node."""
    return _in_overlay(topology, node) and FlannelSection.of(topology).allow_direct_routing


def told(node: Node) -> dict[str, Any]:
    """Return the daemon.json that a node's daemon was started with.

    Raises LabError without one.
    """
    try:
        return dict(json.loads(node.get(CONFIG)))
    except (OSError, ValueError, TypeError) as error:
        raise LabError(
            f"{CONFIG} of {node.name} cannot be read: {error}",
            hint="`testbed up -l LAB` writes it again if the lab is not complete",
        ) from error


def settings_digest(topology: Topology, node: str) -> str:
    """Return a digest of the settings of a node's daemons, without those of the file."""
    engine, filters = engine_of(topology, node), firewall_of(topology, node)
    # A node of an earlier version keeps its digest.
    number = number_of(engine) if is_folder(engine) else parse_version(engine)
    config = own_config(topology, node, number)
    return digest_of(config, CONTAINERD_CONFIG, engine, filters)


def restart_digest(topology: Topology, node: str) -> str:
    """Return a digest of the file's settings that dockerd reads only when it starts.

    It is empty if there are none.
    """
    given = daemon_of(topology, node)
    given = {name: value for name, value in given.items() if name not in RELOADABLE}
    return digest_of(given) if given else ""


def add_group(machine: Node, name: str) -> None:
    """Add a system group to a node unless it exists.

    The group ID is the highest free one below 1000, as groupadd(8) chooses with --system.
    """
    groups = ""
    with contextlib.suppress(FileNotFoundError):
        groups = machine.get("/etc/group").decode(errors="surrogateescape")
    lines = [line.split(":") for line in groups.splitlines() if line.count(":") >= GROUP_COLONS]
    if name in {line[0] for line in lines}:
        return
    taken = {line[2] for line in lines}
    number = next(n for n in range(999, 0, -1) if str(n) not in taken)
    end = "" if groups.endswith("\n") or not groups else "\n"
    added = f"{groups}{end}{name}:x:{number}:\n"
    machine.put(added.encode(errors="surrogateescape"), "/etc/group")


def add_user(machine: Node, name: str) -> None:
    """Add a system user with subordinate IDs to a node, as dockerd would with useradd(8).

    What exists stays. The IDs are the first range of useradd (subuid(5), login.defs(5)).
    """
    add_group(machine, name)
    if not machine.run(["getent", "passwd", name], check=False).ok:
        group = machine.run(["getent", "group", name]).stdout.split(":")[2]
        _append(machine, "/etc/passwd", f"{name}:x:{group}:{group}::/nonexistent:/usr/sbin/nologin")
    for path in ("/etc/subuid", "/etc/subgid"):
        _append(machine, path, f"{name}:{SUBORDINATE}", unless=f"{name}:")


def _append(machine: Node, path: str, line: str, *, unless: str = "\0") -> None:
    """Append a line to a file, unless one begins with a text."""
    before = b""
    with contextlib.suppress(FileNotFoundError):
        before = machine.get(path)
    if any(one.startswith(unless.encode()) for one in before.splitlines()):
        return
    end = b"" if before.endswith(b"\n") or not before else b"\n"
    machine.put(b"%b%b%b\n" % (before, end, line.encode()), path)


def steps(topology: Topology, node: Spec) -> Iterable[Step]:
    """Return the steps for a node's daemon, images and containers."""
    bip = DockerSection.of(topology).bip[node.name]

    def act(context: Context) -> tuple[str, bool]:
        return _start(context, node.name)

    six = _subnet6(topology, node.name)
    about = f"dockerd with docker0 at {bip}" + (f" and in {six}" if six else "")
    if given := daemon_of(topology, node.name):
        about += f", daemon.json with {', '.join(sorted(given))}"
    needs = (node_step(node.name),)
    yield Step(docker_step(node.name), about, needs, heavy=True, ahead=True, act=act)
    yield from images.images_steps(topology, node.name, docker_step(node.name))
    ready = images.images_step(node.name)
    for step in networks_steps(topology, node.name, ready):
        yield step
        ready = step.name
    started = list(container_steps(topology, node.name, ready))
    yield from started
    if node.compose:
        from testbed.roles.docker.compose import compose_steps

        yield from compose_steps(topology, node.name, started[-1].name if started else ready)
    yield from settle_steps(topology, node.name, (step.name for step in started))
    if DockerSection.of(topology).swarm:
        from testbed.roles.docker import swarm

        yield from swarm.steps(topology, node, _docker_steps(topology))


def _docker_steps(topology: Topology) -> dict[str, str]:
    """Return each Docker node's step for its daemon."""
    return {node.name: docker_step(node.name) for node in topology.with_role(ROLE)}


def ahead(store: Store, topology: Topology, node: str) -> list[str]:
    """Return the facts that determine the result of the steps that are done ahead."""
    release = engine_of(topology, node)
    parts = [program(store, release, name) for name in PROGRAMS]
    parts += [store.image(name) for name in images.wanted(topology, node)]
    started = [one.digest for one in on_node(topology, node)]
    started += [topology.container_digest(c.name) for c in topology.containers_on(node)]
    # Containers are labelled with the name of the lab.
    found = [topology.name, settings_digest(topology, node), *started, *files(parts)]
    given = daemon_of(topology, node)
    return [*found, digest_of(given)] if given else found


def facts(context: Context) -> dict[str, str]:
    """Return the version of the lab's engines and their packet filter; ``mixed`` for several.

    Nodes of one engine and one packet filter have the same facts: one of them is asked.
    """
    topology = context.topology
    kinds = {
        (engine_of(topology, node.name), firewall_of(topology, node.name)): node.name
        for node in reversed(topology.with_role(ROLE))
    }
    found: dict[str, str] = {}
    for node in kinds.values():
        for name, word in facts_of(context, node).items():
            found[name] = word if found.get(name, word) == word else MIXED
    return found


def facts_of(context: Context, node: str) -> dict[str, str]:
    """Return the version of a node's engine, and its packet filter.

    The packet filter is read from daemon.json or from the version of iptables. The daemon itself
    is not queried: it may be what is broken, and it does not start if it is configured for
    nftables and the kernel has none.
    """
    machine = context.node(node)
    version = version_of(context.store, machine, engine_of(context.topology, node))
    found = {"docker": ".".join(map(str, parse_version(version)))}
    if told(machine).get("firewall-backend") == "nftables":
        return found | {"firewall": "nftables"}
    says = machine.run(["iptables", "--version"]).stdout
    filters = (name for name, word in firewall.SAYS.items() if word in says)
    return found | {"firewall": next(filters, "iptables-nft")}


def _start(context: Context, node: str) -> tuple[str, bool]:
    topology = context.topology
    machine, bip = context.node(node), DockerSection.of(topology).bip[node]
    release, filters = engine_of(topology, node), firewall_of(topology, node)
    version = version_of(context.store, machine, release)
    number = parse_version(version)
    config = daemon_config(topology, node, number, machine.link_mtu)
    given = daemon_of(topology, node)
    if user := remapped(config):
        add_user(machine, user)
        if machine.shares_kernel:
            machine.run(["sh", "-c", WHOLE_PROC])
    how, is_member = "", False
    if SERVICE not in (services := machine.services()):  # its data root does not exist yet
        _write(machine, config, is_marked=bool(given))
        machine.put(CONTAINERD_CONFIG.encode(), CONTAINERD_FILE)
        images.install_seed(context, machine, version)
        add_group(machine, GROUP)
        if not machine.has_system and not is_folder(release):
            note_packages(machine, context.store.packages(*parts_of(release)))
    else:
        how = _change(machine, services[SERVICE], config, given)
        is_member = bool(marked(machine, MEMBER))
    firewall.choose(machine, filters)
    if filters == "nftables":
        # With nftables the daemon requires forwarding and does not turn it on itself.
        machine.run(FORWARDING)
    six = _subnet6(topology, node)
    if six:
        machine.run(FORWARDING6)
    if _is_open(topology, node):
        firewall.admit(machine, topology, filters, BRIDGE, closed=number >= (28, 0, 0))
    env = daemon_env(topology, node, number, engine.path(context.store, machine, release))
    digest = settings_digest(topology, node)
    preload()
    changed = bool(how)
    for service in engine.services(
        context.store,
        machine,
        release,
        env=env,
        digest=digest,
        more=restart_digest(topology, node),
        quiet="log-level" not in config,
    ):
        try:
            changed |= start(machine, service, timeout=180, context=context)
        except ServiceError as error:
            _point_at_settings(error, topology, node)
            raise
    if is_member and not DockerSection.of(topology).swarm:
        from testbed.roles.docker import swarm

        swarm.leave(machine)
        how, changed = f"{how}; left its swarm", True
    bridge = f"bridge {config['bridge']}" if "bridge" in config else f"docker0 {bip}"
    bridge += f" and {six[1]}/{six.prefixlen}" if six else ""
    return f"dockerd {version}, {bridge}{how}", changed


def _write(machine: Node, config: Mapping[str, Any], *, is_marked: bool = True) -> None:
    """Write daemon.json; without settings of the topology no mark is needed."""
    text = json.dumps(config, indent=1)
    machine.put(text.encode(), CONFIG)
    if is_marked:
        mark(machine, WRITTEN, text)


def _change(
    machine: Node, daemon: ServiceState, config: Mapping[str, Any], given: Mapping[str, Any]
) -> str:
    """Give a node's daemon other settings; return how, in words, or an empty text.

    What somebody has changed in the file stays until the topology's settings, ``given``, change.
    The daemon is stopped if it has to be started to read them.
    """
    written = marked(machine, WRITTEN)
    if written is None and not given:
        return ""
    try:
        before = json.loads(written or machine.get(CONFIG))
    except (FileNotFoundError, ValueError):
        before = {}
    keys = (name for name in {**before, **config} if before.get(name) != config.get(name))
    if not (names := sorted(keys)):
        return ""
    said = f"; {', '.join(names)} in daemon.json changed"
    if daemon.state == "ready" and all(one in RELOADABLE and one in config for one in names):
        machine.put(json.dumps(config, indent=1).encode(), CONFIG)
        with Engine(machine) as api:
            api.reload(lambda: machine.run(["kill", "-HUP", str(daemon.pid)]))
        _write(machine, config)
        return f"{said}, reloaded"
    # The daemon ends with its former settings: with live-restore its containers keep running.
    machine.stop(SERVICE, grace=STOP_SECONDS)
    _write(machine, config)
    return f"{said}, restarted"


def _point_at_settings(error: ServiceError, topology: Topology, node: str) -> None:
    """Add the place of the file's settings to the error of a daemon that does not start."""
    if daemon_of(topology, node):
        from testbed.roles.docker.validate import place
        from testbed.topology.load import places

        root, problems = places(topology)
        at = place(root, node, error.log)
        line = f":{at.line}" if at.line else ""
        where = f"{problems.file_of(at)}{line}, {'.'.join(map(str, at.path))}"
        error.hint = f"if its log is about daemon.json, correct {where}"
