"""Documents 000, 001 and 002 on programs: runc, kube-debug, ifconfig."""

from __future__ import annotations

import contextlib
import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from testbed.errors import ArtifactError
from testbed.nodes.engine import CONTAINERD
from testbed.suites.helpers import (
    START,
    addresses,
    await_strace,
    bridge_containers,
    extra_container,
    link,
    namespace,
    network_entries,
    scratch_machine,
    settle,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testbed.claims.observation import Observation
    from testbed.labs.live import LiveLab
    from testbed.nodes.base import Node

NEW_NETWORK = "CLONE_NEWNET"
MAKES_A_PROCESS = {"clone", "clone3", "fork", "vfork"}
CALLS = "clone,clone3,unshare,setns"
TRACE = "/tmp/testbed-strace"
TOOL = "kube-debug"
NO_SUCH_PROGRAM = 127  # the status of env(1) and of shells
LINE = re.compile(
    r"(?P<pid>\d+) +(?:<\.\.\. )?(?P<name>\w+)(?P<rest>.*)= (?P<result>-?\d+)(?: .*)?$"
)


def program(node: Node, name: str) -> str:
    """Return the path of a program on the node, "" if it has none of that name."""
    found = node.run(["sh", "-c", 'command -v "$0"', name], check=False)
    return found.stdout.strip()


# -- document 000: CLONE_NEWNET -------------------------------------------------


@dataclass(frozen=True, slots=True)
class Call:
    """A finished system call in strace's output, with its flags as strace names them."""

    pid: int
    name: str
    flags: frozenset[str]
    result: int

    def __str__(self) -> str:
        return f"{self.pid} {self.name}({'|'.join(sorted(self.flags))}) = {self.result}"


def calls(text: str) -> list[Call]:
    """Return the calls in the output of ``strace -f -o``; interrupted ones are joined."""
    begun: dict[int, str] = {}
    found = []
    for line in text.splitlines():
        if line.endswith("<unfinished ...>"):
            pid, _, words = line.partition(" ")
            begun[int(pid)] = words
            continue
        matched = LINE.fullmatch(line)
        if matched is None:
            continue  # a signal, or the end of a process
        number = int(matched["pid"])
        words = begun.pop(number, "") if "resumed>" in line else ""
        flags = frozenset(re.findall(r"\bCLONE_\w+", words + matched["rest"]))
        found.append(Call(number, matched["name"], flags, int(matched["result"])))
    return found


def containerd(node: Node) -> str:
    """Return the pid of the containerd that starts the node's containers."""
    return str(node.services()[CONTAINERD].pid)


@contextlib.contextmanager
def strace(node: Node) -> Iterator[list[Call]]:
    """Trace containerd and its children; the list has the calls after the block."""
    seen: list[Call] = []
    argv = ["strace", "-f", "-e", f"trace={CALLS}", "-e", "signal=none", "-o", TRACE]
    try:
        with node.spawn([*argv, "-p", containerd(node)]) as running:
            await_strace(running, "containerd")
            yield seen
            node.run(["kill", "-INT", str(running.pid)])
            running.wait(START)
        seen += calls(node.get(TRACE).decode())
    finally:
        node.run(["rm", "-f", TRACE])


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("mode-bridge-clone-newnet")
@pytest.mark.testbed_needs("docker")
def test_which_call_makes_the_network_namespace(
    lab: LiveLab, node: Node, observe: Observation
) -> None:
    if not program(node, "strace"):
        pytest.skip("the node has no strace")
    with strace(node) as seen:
        for mode in ("bridge", "host"):
            with extra_container(lab, node, mode=mode) as name:
                identity = lab.container(name, node=node.name).state.id
                entries = network_entries(node, identity)
            observe.note(f"{mode} mode: the network in the OCI configuration", entries)
            asks = [entry for entry in entries if not entry.get("path")]
            assert bool(asks) == (mode == "bridge"), "the configuration asks for something else"
    makers = [c for c in seen if c.result >= 0 and c.name in {*MAKES_A_PROCESS, "unshare"}]
    started = [c for c in makers if "CLONE_NEWPID" in c.flags]
    observe.note(
        "calls that make namespaces, of containerd and all that it starts, while a container in "
        "bridge mode and one in host mode are started",
        "\n".join(str(c) for c in makers if any(flag.startswith("CLONE_NEW") for flag in c.flags)),
    )
    assert len(started) == 2, f"{len(started)} pid namespaces are made for two containers"
    done = [c for c in makers if NEW_NETWORK in c.flags]
    assert len(done) < 2, "a network namespace is made for host mode too"
    observe.holds_when(
        f"any call will do: {', '.join(sorted({c.name for c in done}))} has {NEW_NETWORK}", done
    )
    observe.fails_when(
        "it must be the call by which the parent creates the child",
        not any(c.name in MAKES_A_PROCESS for c in done),
    )


# -- document 001: kube-debug -----------------------------------------------------


@pytest.mark.testbed_claim("netns-enter-with-debug-tool")
@pytest.mark.testbed_needs("docker")
def test_a_containers_namespace_can_be_entered(
    lab: LiveLab, node: Node, observe: Observation
) -> None:
    container = bridge_containers(lab, node)[0]
    enter = ["nsenter", f"--target={container.pid}", "--net"]
    inside = observe.run(node, [*enter, "readlink", "/proc/self/ns/net"]).stdout.strip()
    listed = observe.json(node, [*enter, "ip", "-j", "-4", "addr", "show", "dev", "eth0"])
    shown = {address["local"] for one in listed for address in one.get("addr_info", ())}
    own = {str(address.ip) for address in addresses(observe, node)}
    assert container.address not in own, "the host has the container's address itself"
    observe.holds_when(
        f"nsenter is the tool: it shows eth0 with {container.address}",
        inside == namespace(observe, node, container.pid) and shown == {container.address},
    )
    found = program(node, TOOL)
    observe.note(f"{node.name}: {TOOL}", found or "no such program")
    observe.fails_when(f"the tool must be {TOOL}: the host has none", not found)


# -- document 002: ifconfig -------------------------------------------------------


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("veth-ifconfig-up")
@pytest.mark.testbed_needs("netns")
def test_ifconfig_brings_a_device_up_where_it_is_installed(
    lab: LiveLab, observe: Observation
) -> None:
    node = next(iter(lab.nodes.values()))
    ifconfig = program(node, "ifconfig") or brought(lab, node, "ifconfig")
    with scratch_machine(node) as machine:
        observe.run(machine, shlex.split("ip link add veth0 type veth peer name veth1"))
        before = link(observe, machine, "veth0")
        observe.run(machine, [ifconfig, "veth0", "up"])
        observe.run(machine, ["ip", "link", "set", "veth1", "up"])
        settle(machine)
        after, other = (link(observe, machine, name) for name in ("veth0", "veth1"))
        assert "UP" not in before["flags"], "it is up before anybody brings it up"
        observe.holds_when(
            "net-tools is installed: the device is as `ip link set DEV up` leaves one",
            "UP" in after["flags"] and set(after["flags"]) == set(other["flags"]),
        )
        # A machine without the package: all other programs are on PATH.
        observe.run(machine, ["mkdir", "/run/without"])
        observe.run(machine, ["ln", "-s", program(node, "ip"), "/run/without/ip"])
        without = ["env", "PATH=/run/without"]
        observe.run(machine, ["ip", "link", "set", "veth0", "down"])
        failed = observe.run(machine, [*without, "ifconfig", "veth0", "up"], check=False)
        still_down = "UP" not in link(observe, machine, "veth0")["flags"]
        observe.run(machine, [*without, "ip", "link", "set", "veth0", "up"])
        assert "UP" in link(observe, machine, "veth0")["flags"]
    observe.fails_when(
        "net-tools is not installed, as by default: only ip does it",
        failed.status == NO_SUCH_PROGRAM and still_down,
    )


def brought(lab: LiveLab, node: Node, name: str) -> str:
    """Provide a program that the node lacks, from the artifacts."""
    try:
        return node.provide(lab.context.store.binary(name))
    except ArtifactError as error:
        pytest.skip(f"the node has no {name}, and none can be had: {error.message}")
