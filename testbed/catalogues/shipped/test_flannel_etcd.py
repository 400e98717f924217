"""Documents 003 and 004, flannel's data in etcd.

Labs: two-node and its variants.
"""

from __future__ import annotations

from ipaddress import IPv4Interface
from typing import TYPE_CHECKING, Any

import pytest

from testbed.observe.capture import captures
from testbed.roles.flannel.daemon import subnet_key
from testbed.roles.flannel.section import FlannelSection
from testbed.suites.helpers import SOON, note, observe_until, ping
from testbed.suites.overlay import (
    HOST_SIDE,
    SUBNETS,
    ends,
    etcd,
    has_printed_plan,
    key,
    keys,
    leased,
    overlay,
    third_host,
    third_subnet,
    wait_no_route,
    wait_route,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from ipaddress import IPv4Network

    from testbed.claims.observation import Observation
    from testbed.labs.live import LiveLab

#: A missing host: other hosts that send to it rely on etcd alone.
ABSENT = "10.168.0.99"
ABSENT_VTEP = "02:00:5e:00:53:99"


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("flannel-subnet-mapping-in-etcd")
@pytest.mark.testbed_needs("etcd", "flannel", "docker", "flannel-defaults")
def test_etcd_says_which_host_has_which_subnet(lab: LiveLab, observe: Observation) -> None:
    flannel = FlannelSection.find(lab.topology)
    assert flannel is not None
    kept = {name: found.value["PublicIP"] for name, found in keys(lab).items()}
    observe.note("etcdctl get --prefix /coreos.com/network/subnets", kept)
    for node, subnet in flannel.subnets.items():
        address = str(flannel.address(lab.topology, node))
        observe.holds(kept.get(subnet_key(subnet)) == address, f"{subnet} is {node}'s, {address}")
    subnet = third_subnet(lab)
    hosts = _hosts_follow(lab, observe, subnet)
    observe.holds(hosts, f"a key put by hand sends {subnet} to {ABSENT}")


def _hosts_follow(lab: LiveLab, observe: Observation, subnet: IPv4Network) -> bool:
    """True if the first host sends a subnet's packets to the host in a new etcd key."""
    flannel = FlannelSection.find(lab.topology)
    assert flannel is not None
    node = ends(lab)[0].node
    value: dict[str, Any] = {"PublicIP": ABSENT, "PublicIPv6": None}
    if flannel.backend != "udp":
        value["BackendType"] = flannel.backend
    if flannel.backend == "vxlan":
        value["BackendData"] = {"VNI": flannel.vni, "VtepMAC": ABSENT_VTEP}
    with key(lab, subnet_key(subnet), value):
        if flannel.backend == "udp":
            return _sends_to(lab, observe, str(subnet[2]), ABSENT)
        route = wait_route(observe, node, subnet)
        if flannel.backend == "vxlan":
            argv = ["bridge", "-j", "fdb", "show", "dev", f"flannel.{flannel.vni}"]
            table = {entry["mac"]: entry.get("dst") for entry in observe.json(node, argv)}
            routed = table.get(ABSENT_VTEP) == ABSENT
        else:
            routed = route.get("gateway") == ABSENT
    wait_no_route(observe, node, subnet)
    return routed


def _sends_to(lab: LiveLab, observe: Observation, target: str, host: str) -> bool:
    """True if ARP for a host shows that a datagram with a packet for ``target`` waits."""
    one = ends(lab)[0]
    # The absent host never answers, so its datagram waits for ARP, and the request is visible.
    with captures((one.node, one.interface, f"arp and host {host}")) as (seen,):

        def asked(notes: Observation) -> bool:
            ping(notes, one.container, target, seconds=SOON)
            return any(p.arp and p.arp.target == host for p in seen.packets)

        try:
            return observe_until(observe, asked, f"a datagram of flanneld's for {host}")
        finally:
            note(observe, seen)
            one.node.run(["ip", "neigh", "flush", "to", host], check=False)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(name.rpartition("/")[2] for name in sorted(names))


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("flannel-etcd-subnet-keys")
@pytest.mark.testbed_needs("etcd", "flannel", "docker", "gateway", "flannel-defaults")
def test_three_hosts_have_the_three_printed_keys(lab: LiveLab, observe: Observation) -> None:
    flannel = overlay(lab)
    reserved = {subnet_key(subnet) for subnet in flannel.subnets.values()}
    free = third_subnet(lab)
    with third_host(lab) as third:
        if len(reserved) < 3:
            reserved.add(subnet_key(free))
            with third.joined():
                found = set(keys(lab))
        else:
            found = set(keys(lab))
        observe.note("keys, a subnet reserved for each host", "\n".join(sorted(found)))
        printed = {f"{SUBNETS}/100.96.{number}.0-24" for number in (1, 2, 3)}
        listed = flannel.backend == "udp" and has_printed_plan(lab.topology)
        wanted = printed if listed else reserved
        observe.holds_when("each host's subnet is reserved for it", found == wanted)
        # Leased by another host, so that chance can't give it to this one.
        taken = {"PublicIP": ABSENT, "PublicIPv6": None}
        with key(lab, subnet_key(free), taken), third.flanneld() as chosen:
            own = [k for k, v in keys(lab).items() if v.value["PublicIP"] == HOST_SIDE]
        observe.note("keys of one more host, nothing reserved for it", _listed(own))
        observe.fails_when("the host chooses a free subnet itself", not set(own) & wanted)
        assert own == [subnet_key(chosen)]


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("flannel-etcd-key-naming")
@pytest.mark.testbed_needs("etcd", "flannel", "flannel-defaults")
def test_key_is_the_subnet_with_a_hyphen_for_the_slash(lab: LiveLab, observe: Observation) -> None:
    found = keys(lab)
    observe.note("keys", sorted(found))
    for node in lab.topology.with_role("flannel"):
        own = leased(observe, lab.node(node.name))["FLANNEL_SUBNET"]
        wanted = str(IPv4Interface(own).network).replace("/", "-")
        observe.holds(f"{SUBNETS}/{wanted}" in found, f"{node.name}: {SUBNETS}/{wanted}")


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("flannel-etcdctl-ls")
@pytest.mark.testbed_needs("etcd", "flannel", "flannel-defaults")
def test_etcdctl_ls_lists_the_keys(lab: LiveLab, observe: Observation) -> None:
    result = etcd(lab, "ls", SUBNETS, check=False)
    observe.note(f"etcdctl ls {SUBNETS}", f"exit status {result.status}\n{result.stderr}")
    observe.holds(result.ok and subnet_key(ends(lab)[0].subnet) in result.stdout, "etcdctl ls")
    answer = etcd(lab, "get", "--prefix", "--keys-only", SUBNETS).stdout.split()
    observe.note(f"etcdctl get --prefix --keys-only {SUBNETS}", "\n".join(answer))
    flannel = FlannelSection.find(lab.topology)
    assert flannel is not None
    assert {subnet_key(subnet) for subnet in flannel.subnets.values()} <= set(answer)
