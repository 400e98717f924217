"""flannel between hosts: routes, neighbours, forwarding database, tunnel, etcd, made wrong."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from sabotage.means import changed, in_place_of, lying, nft, sh
from sabotage.trials import sabotage
from testbed.claims.observation import Observation
from testbed.roles.flannel.daemon import SUBNET_FILE, subnet_key
from testbed.roles.flannel.role import SERVICE
from testbed.suites.helpers import (
    READY,
    await_output,
    extra_container,
    link,
    node_address,
    outside_node,
)
from testbed.suites.overlay import End, ends, etcd, etcd_node, leased, overlay, stopped

if TYPE_CHECKING:
    from testbed.labs.live import LiveLab
    from testbed.nodes.base import Node

VXLAN, UDP = "vxlan-10-1-16", "three-node-udp"
VTEP, TUN = "flannel.1", "flannel0"
OTHER_MAC = "02:00:5e:00:53:77"  # RFC 7042: 00-00-5e-00-53 is for documents
OTHER_HOST = "10.168.0.77"
PORT = 8285


def mac_of(end: End) -> str:
    """The MAC of a host's VTEP."""
    return str(link(Observation(), end.node, VTEP)["address"])


def zero(end: End) -> str:
    """The address that flannel gives its device on a host: the subnet's first."""
    return str(end.subnet.network_address)


def program(lab: LiveLab, node: Node, name: str) -> str:
    """Return the path of a program of the artifacts on a node."""
    return node.provide(lab.context.store.binary(name))


# -- vxlan: the device -----------------------------------------------------------------


def remake_vtep(end: End, settings: str) -> None:
    """A host's flannel device is recreated with the same MAC, without routes and entries."""
    mac = mac_of(end)
    end.node.stop(SERVICE)  # it would make its device anew by itself
    sh(
        end.node,
        f"ip link delete {VTEP}",
        f"ip link add {VTEP} address {mac} type vxlan dev eth0 dstport 8472 nolearning {settings}",
        f"ip link set {VTEP} up",
    )


@sabotage(VXLAN, "flannel-vxlan-vni-selects-frames", "flannel-vxlan-device-name", ruins=True)
def the_vni_is_2(lab: LiveLab) -> Iterator[None]:
    """The first host's VTEP has the VNI 2."""
    one, _ = ends(lab)
    remake_vtep(one, f"id 2 local {one.address}")
    yield


@sabotage(VXLAN, "flannel-vxlan-kernel-l2-over-l3", ruins=True)
def the_vtep_is_over_another_address(lab: LiveLab) -> Iterator[None]:
    """The first host's VTEP sends from an address that is not the host's."""
    one, _ = ends(lab)
    remake_vtep(one, f"id 1 local {OTHER_HOST}")
    yield


@sabotage(VXLAN, "flannel-vxlan-kernel-l2-over-l3", ruins=True)
def the_vtep_is_a_tun_device(lab: LiveLab) -> Iterator[None]:
    """flanneld of the first host has ended, and a tun device is called flannel.1."""
    one, _ = ends(lab)
    one.node.stop(SERVICE)
    sh(one.node, f"ip link delete {VTEP}", f"ip tuntap add {VTEP} mode tun")
    yield


@sabotage(VXLAN, "flannel-vxlan-acts-as-bridge")
def the_vtep_learns(lab: LiveLab) -> Iterator[None]:
    """The VTEP of each host learns from the frames that come."""
    with contextlib.ExitStack() as stack:
        for end in ends(lab):
            do, undo = (
                f"ip link set {VTEP} type vxlan {how}" for how in ("learning", "nolearning")
            )
            stack.enter_context(changed(end.node, do, undo))
        yield


@sabotage(VXLAN, "flannel-vxlan-device-name")
def there_is_a_flannel1_1(lab: LiveLab) -> Iterator[None]:
    """Each host has a VXLAN device flannel1.1, too."""
    with contextlib.ExitStack() as stack:
        for end in ends(lab):
            do = "ip link add flannel1.1 type vxlan id 99 dstport 4790 dev eth0"
            stack.enter_context(changed(end.node, do, "ip link delete flannel1.1"))
        yield


@sabotage(VXLAN, "flannel-vxlan-device-name")
def another_device_sends_to_flannels_port(lab: LiveLab) -> Iterator[None]:
    """Each host has another VXLAN device to port 8472."""
    with contextlib.ExitStack() as stack:
        for end in ends(lab):
            do = "ip link add other type vxlan id 99 dstport 8472 dev eth0"
            stack.enter_context(changed(end.node, do, "ip link delete other"))
        yield


@sabotage(VXLAN, "flannel-vxlan-vtep-address", "flannel-virtual-network-per-node")
def the_vtep_has_two_addresses(lab: LiveLab) -> Iterator[None]:
    """The first host's VTEP has one address more."""
    one, _ = ends(lab)
    address = f"{one.subnet[7]}/32 dev {VTEP}"
    with changed(one.node, f"ip addr add {address}", f"ip addr del {address}"):
        yield


@sabotage(VXLAN, "flannel-vxlan-no-userspace-datapath")
def the_tunnel_needs_flanneld(lab: LiveLab) -> Iterator[None]:
    """While flanneld is stopped, its host sends nothing to the tunnel's port."""
    one, _ = ends(lab)
    rule = "OUTPUT -p udp --dport 8472 -j DROP"
    script = f"""
    case "$1" in
        -STOP) $real/iptables -I {rule} ;;
        -CONT) $real/iptables -D {rule} ;;
    esac
    exec /usr/bin/kill "$@" """
    with lying(one.node, kill=script):
        yield


@sabotage(VXLAN, "flannel-vxlan-over-l3")
def the_router_drops_the_tunnel(lab: LiveLab) -> Iterator[None]:
    """The machine outside, a router here, drops VXLAN datagrams."""
    rule = "FORWARD -p udp --dport 8472 -j DROP"
    with changed(outside_node(lab), f"iptables -I {rule}", f"iptables -D {rule}"):
        yield


@sabotage(VXLAN, "flannel-vxlan-packet-structure")
def the_tunnel_takes_a_detour(lab: LiveLab) -> Iterator[None]:
    """The first host's way to the other is by way of the machine outside."""
    one, other = ends(lab)
    way = f"{other.address}/32 via {node_address(lab, outside_node(lab))}"
    with changed(one.node, f"ip route add {way}", f"ip route del {way}"):
        yield


@sabotage(VXLAN, "l2-vxlan-one-broadcast-domain")
def a_vxlan_of_ones_own_is_dropped(lab: LiveLab) -> Iterator[None]:
    """The other host drops datagrams to port 4789, that of VXLANs beside flannel's."""
    rule = "INPUT -p udp --dport 4789 -j DROP"
    with changed(ends(lab)[1].node, f"iptables -I {rule}", f"iptables -D {rule}"):
        yield


# -- vxlan: route, neighbour, forwarding database --------------------------------------


@sabotage(
    VXLAN,
    "flannel-vxlan-frame-in-udp",
    "flannel-vxlan-route-used",
    "flannel-vxlan-arp-entry",
    "flannel-vxlan-fdb-maps-mac-to-host",
)
def the_peers_mac_is_another(lab: LiveLab) -> Iterator[None]:
    """The first host has the other's VTEP under a MAC that is not its own."""
    one, other = ends(lab)
    neighbour, entry = f"{zero(other)} dev {VTEP} nud permanent", f"dev {VTEP} dst {other.address}"
    with changed(
        one.node,
        f"""
        ip neigh replace {neighbour} lladdr {OTHER_MAC}
        bridge fdb append {OTHER_MAC} {entry} self permanent
        """,
        f"""
        ip neigh replace {neighbour} lladdr {mac_of(other)}
        bridge fdb del {OTHER_MAC} {entry} self permanent
        """,
    ):
        yield


@sabotage(VXLAN, "flannel-vxlan-arp-entry")
def the_peers_entry_is_not_permanent(lab: LiveLab) -> Iterator[None]:
    """The entry of the other's VTEP is one that ages."""
    one, other = ends(lab)
    entry = f"ip neigh replace {zero(other)} lladdr {mac_of(other)} dev {VTEP} nud"
    with changed(one.node, f"{entry} reachable", f"{entry} permanent"):
        yield


@sabotage(VXLAN, "flannel-vxlan-arp-no-requests")
def the_peer_is_asked_for_by_arp(lab: LiveLab) -> Iterator[None]:
    """The entry of the other's VTEP is not permanent but stale: it is asked for when it is used."""
    one, other = ends(lab)
    entry = f"ip neigh replace {zero(other)} lladdr {mac_of(other)} dev {VTEP} nud"
    name = "net.ipv4.neigh.flannel/1.delay_first_probe_time"
    with changed(
        one.node,
        f"sysctl -qw {name}=0\n{entry} stale",
        f"{entry} permanent\nsysctl -qw {name}=5",
    ):
        yield


@sabotage(VXLAN, "flannel-vxlan-arp-notation")
def ip_takes_the_printed_form(lab: LiveLab) -> Iterator[None]:
    """`ip neigh` says and takes the word lladrr, and a MAC with dots after it."""
    script = r"""
    if [ "$1 $2 $4" = "neigh replace lladrr" ]; then
        to=$3 mac=$(echo "$5" | tr . :); shift 5
        set -- neigh replace "$to" lladdr "$mac" "$@"
    elif [ "$1 $2" = "-j neigh" ]; then
        x='\(..\)'
        $real/ip "$@" | sed "s/\"lladdr\":\"$x:$x:$x:$x:$x:$x\"/\"lladrr\":\"\1.\2.\3.\4.\5.\6\"/g"
        exit
    fi
    exec $real/ip "$@" """
    with lying(ends(lab)[0].node, ip=script):
        yield


@sabotage(VXLAN, "flannel-vxlan-mac-from-arp-table")
def the_arp_table_is_not_changed(lab: LiveLab) -> Iterator[None]:
    """`ip neigh replace` changes nothing."""
    script = '[ "$1 $2" = "neigh replace" ] && exit 0\nexec $real/ip "$@"'
    with lying(ends(lab)[0].node, ip=script):
        yield


@sabotage(VXLAN, "flannel-vxlan-route-entry", "flannel-vxlan-route-used")
def the_gateway_is_another(lab: LiveLab) -> Iterator[None]:
    """The route to the other's subnet is by its first address after zero."""
    one, other = ends(lab)
    route = f"ip route replace {other.subnet} dev {VTEP} onlink via"
    neighbour = f"{other.subnet[1]} dev {VTEP}"
    with changed(
        one.node,
        f"""
        {route} {other.subnet[1]}
        ip neigh add {neighbour} lladdr {mac_of(other)} nud permanent
        """,
        f"""
        {route} {zero(other)}
        ip neigh del {neighbour}
        """,
    ):
        yield


@sabotage(VXLAN, "flannel-vxlan-fdb-notation")
def bridge_takes_the_printed_form(lab: LiveLab) -> Iterator[None]:
    """`bridge fdb` takes an entry with all three misprints."""
    script = """
    if [ "$5 $6" = "flannel1.1 dts" ]; then
        mac=$(echo "$3" | tr . :); shift 6
        set -- fdb append "$mac" dev flannel.1 dst "$@"
    fi
    exec $real/bridge "$@" """
    with lying(ends(lab)[0].node, bridge=script):
        yield


@contextlib.contextmanager
def exit_is(lab: LiveLab, settings: str) -> Iterator[None]:
    """The first host's entry for the other's VTEP with other settings."""
    one, other = ends(lab)
    entry = f"bridge fdb replace {mac_of(other)} dev {VTEP}"
    with changed(
        one.node,
        f"{entry} {settings} self permanent",
        f"{entry} dst {other.address} self permanent",
    ):
        yield


@sabotage(
    VXLAN,
    "flannel-vxlan-fdb-maps-mac-to-host",
    "flannel-vxlan-outer-destination",
)
def the_tunnel_leads_elsewhere(lab: LiveLab) -> Iterator[None]:
    """The first host has the other's VTEP at the machine outside."""
    with exit_is(lab, f"dst {node_address(lab, outside_node(lab))}"):
        yield


@sabotage(VXLAN, "flannel-vxlan-fdb-entry")
def the_entry_is_not_as_printed(lab: LiveLab) -> Iterator[None]:
    """The first host's entry for the other's VTEP has a port, too."""
    with exit_is(lab, f"dst {ends(lab)[1].address} port 4789"):
        yield


@sabotage(VXLAN, "flannel-vxlan-packet-structure")
def frames_leave_with_vni_7(lab: LiveLab) -> Iterator[None]:
    """The first host sends the other's frames with the VNI 7."""
    with exit_is(lab, f"dst {ends(lab)[1].address} vni 7"):
        yield


@sabotage(
    VXLAN,
    "flannel-vxlan-acts-as-bridge",
    "flannel-vxlan-needs-tunnel-exit",
    "flannel-vxlan-fdb-maps-mac-to-host",
)
def the_tunnel_has_no_exit(lab: LiveLab) -> Iterator[None]:
    """The first host has no entry for the other's VTEP."""
    one, other = ends(lab)
    entry = f"{mac_of(other)} dev {VTEP} dst {other.address} self permanent"
    with changed(one.node, f"bridge fdb del {entry}", f"bridge fdb append {entry}"):
        yield


@sabotage(VXLAN, "flannel-vxlan-outer-destination")
def entries_are_not_changed(lab: LiveLab) -> Iterator[None]:
    """`bridge fdb replace` changes nothing."""
    script = '[ "$1 $2" = "fdb replace" ] && exit 0\nexec $real/bridge "$@"'
    with lying(ends(lab)[0].node, bridge=script):
        yield


@sabotage(
    VXLAN,
    "l2-vxlan-one-broadcast-domain",
    "flannel-vxlan-fdb-maps-mac-to-host",
    "flannel-vxlan-needs-tunnel-exit",
    "flannel-vxlan-device-knows-mac-only",
)
def the_tunnel_floods(lab: LiveLab) -> Iterator[None]:
    """The first host sends what it has no entry for to the other host."""
    one, other = ends(lab)
    entry = f"00:00:00:00:00:00 dev {VTEP} dst {other.address} self permanent"
    with changed(one.node, f"bridge fdb append {entry}", f"bridge fdb del {entry}"):
        yield


# -- joining -----------------------------------------------------------------------------


@sabotage(
    VXLAN,
    vain=(
        "flannel-vxlan-route-added-on-join",
        "flannel-vxlan-arp-distributed",
        "flannel-vxlan-arp-entry",
        "flannel-subnet-mapping-in-etcd",
    ),
    ruins=True,  # once it goes on, flanneld enters what has long been over, and leaves it
)
def flanneld_is_stopped(lab: LiveLab) -> Iterator[None]:
    """flanneld of both hosts does not run on (SIGSTOP)."""
    with stopped(*(end.node for end in ends(lab))):
        yield


@sabotage(
    VXLAN,
    "flannel-subnet-mapping-in-etcd",
    "flannel-etcd-subnet-keys",
    vain=["flannel-vxlan-arp-distributed"],  # flanneld of the other host ends with its lease
    ruins=True,
)
def a_subnet_is_not_in_etcd(lab: LiveLab) -> Iterator[None]:
    """The key of the other host's subnet is deleted from etcd."""
    etcd(lab, "del", subnet_key(ends(lab)[1].subnet))
    yield


@sabotage(
    VXLAN,
    "flannel-vxlan-route-added-on-join",
    "flannel-vxlan-arp-distributed",
    "flannel-vxlan-arp-entry",
    ruins=True,  # checks put back what they change as `ip` has shown it: not permanent
)
def what_flanneld_enters_is_shown_otherwise(lab: LiveLab) -> Iterator[None]:
    """`ip` of both hosts shows routes by eth0 and neighbours that age, whatever flanneld enters."""
    script = """
    $real/ip "$@" | sed 's/"PERMANENT"/"REACHABLE"/; s/"dev":"flannel.1"/"dev":"eth0"/' """
    with contextlib.ExitStack() as stack:
        for end in ends(lab):
            stack.enter_context(lying(end.node, ip=script))
        yield


@sabotage(VXLAN, "flannel-etcdctl-ls")
def etcdctl_knows_ls(lab: LiveLab) -> Iterator[None]:
    """`etcdctl ls` lists keys, as in version 2."""
    script = """
    for word do
        shift
        if [ "$word" = ls ]; then set -- "$@" get --prefix --keys-only
        else set -- "$@" "$word"; fi
    done
    exec $real "$@" """
    node = etcd_node(lab)
    with in_place_of(node, program(lab, node, "etcdctl"), script):
        yield


@sabotage(VXLAN, "flannel-backends-vxlan-udp")
def back_ends_change_places(lab: LiveLab) -> Iterator[None]:
    """Whoever writes vxlan into etcd writes host-gw, for host-gw udp, and for udp vxlan."""
    script = """
    for word do
        shift
        set -- "$@" "$(echo "$word" | sed '
            s/"Type": "vxlan"/"Type": "HOST-GW"/
            s/"Type": "udp"/"Type": "vxlan"/
            s/"Type": "host-gw"/"Type": "udp"/
            s/HOST-GW/host-gw/')"
    done
    exec $real "$@" """
    node = etcd_node(lab)
    with in_place_of(node, program(lab, node, "etcdctl"), script):
        yield


@contextlib.contextmanager
def flanneld_ignores(lab: LiveLab, option: str) -> Iterator[None]:
    """A third host's flanneld does not see an option."""
    script = f"""
    for word do
        shift
        case "$word" in {option}) ;; *) set -- "$@" "$word" ;; esac
    done
    exec $real "$@" """
    node = outside_node(lab)
    with in_place_of(node, program(lab, node, "flanneld"), script):
        yield


@sabotage(VXLAN, "flannel-example-ip-masq")
def ip_masq_is_ignored(lab: LiveLab) -> Iterator[None]:
    """flanneld ignores --ip-masq."""
    with flanneld_ignores(lab, "--ip-masq"):
        yield


@sabotage(VXLAN, "flannel-example-iface")
def iface_is_ignored(lab: LiveLab) -> Iterator[None]:
    """flanneld ignores --iface, and takes the interface of the default route."""
    with flanneld_ignores(lab, "--iface=*"):
        yield


@sabotage(VXLAN, "flannel-needs-etcd")
def flanneld_knows_no_kubernetes(lab: LiveLab) -> Iterator[None]:
    """flanneld ignores --kube-subnet-mgr, and asks etcd."""
    with flanneld_ignores(lab, "--kube-subnet-mgr"):
        yield


# -- with every back end -------------------------------------------------------------------


@sabotage(VXLAN, "flannel-overlay-connects-all", "flannel-vxlan-container1-to-container4")
def the_other_host_refuses(lab: LiveLab) -> Iterator[None]:
    """The other host rejects what it is to forward to its containers."""
    _, other = ends(lab)
    rule = f"FORWARD -d {other.subnet} -m conntrack --ctstate NEW -j REJECT"
    with changed(other.node, f"iptables -I {rule}", f"iptables -D {rule}"):
        yield


@sabotage(VXLAN, "flannel-overlay-software-on-host-network")
def routing_rules_are_ignored(lab: LiveLab) -> Iterator[None]:
    """`ip rule` does nothing, so that the overlay's routes stay in use."""
    script = '[ "$1" = rule ] && exit 0\nexec $real/ip "$@"'
    with contextlib.ExitStack() as stack:
        for end in ends(lab):
            stack.enter_context(lying(end.node, ip=script))
        yield


@contextlib.contextmanager
def subnet_file(node: Node, network: str, subnet: str) -> Iterator[None]:
    """flanneld's file of its lease is changed on a host."""
    before = node.get(SUBNET_FILE)
    lines = {**leased(Observation(), node), "FLANNEL_NETWORK": network, "FLANNEL_SUBNET": subnet}
    text = "".join(f"{name}={value}\n" for name, value in lines.items())
    try:
        node.put(text.encode(), SUBNET_FILE)
        yield
    finally:
        node.put(before, SUBNET_FILE)


@sabotage(
    VXLAN,
    "flannel-virtual-network-per-node",
    "flannel-unique-subnet-per-node",
    "flannel-container-ip-in-node-range",
    "flannel-etcd-key-naming",
)
def a_lease_of_another_network(lab: LiveLab) -> Iterator[None]:
    """The first host's subnet.env has a network that is not the lab's."""
    with subnet_file(ends(lab)[0].node, "198.18.0.0/16", "198.18.1.1/24"):
        yield


@sabotage(VXLAN, "flannel-unique-subnet-per-node", "flannel-container-ip-in-node-range")
def two_hosts_have_one_subnet(lab: LiveLab) -> Iterator[None]:
    """The other host's subnet.env has the first host's subnet."""
    one, other = ends(lab)
    own = leased(Observation(), one.node)["FLANNEL_SUBNET"]
    with subnet_file(other.node, str(overlay(lab).network), own):
        yield


# -- udp: addresses and routes ---------------------------------------------------------------


@sabotage(
    UDP,
    "flannel-udp-node1-addresses",
    "flannel-udp-node2-addresses",
    "flannel-udp-docker0-in-host-subnet",
)
def docker0_has_two_addresses(lab: LiveLab) -> Iterator[None]:
    """docker0 of each host has one address more."""
    with contextlib.ExitStack() as stack:
        for end in ends(lab):
            address = f"{end.subnet[99]}/32 dev docker0"
            do, undo = (f"ip addr {how} {address}" for how in ("add", "del"))
            stack.enter_context(changed(end.node, do, undo))
        yield


@sabotage(UDP, "flannel-udp-node1-addresses", "flannel-udp-node2-addresses", ruins=True)
def containers_come_in_another_order(lab: LiveLab) -> Iterator[None]:
    """On each host, another container takes the first address before."""
    with contextlib.ExitStack() as stack:
        for end in ends(lab):
            api = lab.engine(end.name).api
            names = [c.name for c in lab.topology.containers_on(end.name)]
            for name in names:
                api.kill(name)
                api.wait(name)
            stack.enter_context(extra_container(lab, end.node))
            for name in names:
                api.start(name)
        yield


@sabotage(UDP, "flannel-udp-docker0-in-host-subnet")
def the_lease_is_of_another_network(lab: LiveLab) -> Iterator[None]:
    """The first host's subnet.env has a network that is not the lab's."""
    with subnet_file(ends(lab)[0].node, "198.18.0.0/16", "198.18.1.1/24"):
        yield


@contextlib.contextmanager
def routed(lab: LiveLab, ours: str, others: str) -> Iterator[None]:
    """A route of the first host deleted, and another in its place."""
    node = ends(lab)[0].node
    with changed(
        node,
        f"ip route del {ours}\nip route add {others}",
        f"ip route del {others}\nip route add {ours}",
    ):
        yield


@sabotage(UDP, "flannel-udp-route-default")
def the_default_gateway_is_another(lab: LiveLab) -> Iterator[None]:
    """The first host's default route is by way of a host that is not there."""
    gateway = node_address(lab, outside_node(lab))
    with routed(lab, f"default via {gateway} dev eth0", f"default via {OTHER_HOST} dev eth0"):
        yield


@sabotage(UDP, "flannel-udp-route-overlay")
def the_overlay_is_routed_to_the_host(lab: LiveLab) -> Iterator[None]:
    """The first host routes the overlay's network to the other host, without flannel0."""
    network, host = overlay(lab).network, ends(lab)[1].address
    with routed(lab, f"{network} dev {TUN}", f"{network} via {host} dev eth0"):
        yield


@sabotage(UDP, "flannel-udp-route-overlay-attributes")
def the_overlays_route_is_as_printed(lab: LiveLab) -> Iterator[None]:
    """The overlay's route is the kernel's own, with a source."""
    network, source = overlay(lab).network, zero(ends(lab)[0])
    with routed(
        lab,
        f"{network} dev {TUN}",
        f"{network} dev {TUN} proto kernel scope link src {source}",
    ):
        yield


@sabotage(UDP, "flannel-udp-route-local-subnet")
def the_local_route_is_by_hand(lab: LiveLab) -> Iterator[None]:
    """The first host's route to its own containers is not the kernel's, and has no source."""
    subnet = ends(lab)[0].subnet
    ours = f"{subnet} dev docker0 proto kernel scope link src {subnet[1]}"
    with routed(lab, ours, f"{subnet} dev docker0"):
        yield


@sabotage(UDP, "flannel-udp-route-host-network")
def the_hosts_route_is_by_hand(lab: LiveLab) -> Iterator[None]:
    """The first host's route to its own network is not the kernel's, and has no source."""
    one, _ = ends(lab)
    network = "10.168.0.0/24"
    ours = f"{network} dev eth0 proto kernel scope link src {one.address}"
    with routed(lab, ours, f"{network} dev eth0"):
        yield


@sabotage(UDP, "flannel-udp-flannel0-address")
def flannel0_has_two_addresses(lab: LiveLab) -> Iterator[None]:
    """flannel0 of the first host has one address more."""
    one, _ = ends(lab)
    address = f"{one.subnet[7]}/32 dev {TUN}"
    with changed(one.node, f"ip addr add {address}", f"ip addr del {address}"):
        yield


@sabotage(UDP, "flannel-udp-longest-prefix")
def a_local_container_goes_to_flannel0(lab: LiveLab) -> Iterator[None]:
    """The first host has a route to its own container by flannel0, longer than docker0's."""
    one, _ = ends(lab)
    route = f"{one.container.address}/32 dev {TUN}"
    with changed(one.node, f"ip route add {route}", f"ip route del {route}"):
        yield


# -- udp: the way of a packet ------------------------------------------------------------------


@sabotage(UDP, "flannel-udp-tun-is-l3", ruins=True)
def flannel0_is_a_veth_device(lab: LiveLab) -> Iterator[None]:
    """flanneld has ended, and a veth device is called flannel0."""
    one, _ = ends(lab)
    one.node.stop(SERVICE)
    sh(
        one.node,
        f"ip link add {TUN} type veth peer name behind0",
        f"ip link set {TUN} arp off",
        f"ip link set {TUN} up",
        "ip link set behind0 up",
        f"ip route add {overlay(lab).network} dev {TUN}",
    )
    yield


@sabotage(
    UDP,
    "flannel-udp-tun-kernel-user",
    "flannel-udp-flanneld-receives",
    "flannel-udp-three-crossings",
    "flannel-udp-crossings-cost",
)
def packets_bypass_flanneld(lab: LiveLab) -> Iterator[None]:
    """Each host routes the other's subnet to it, as with the back end host-gw."""
    one, other = ends(lab)
    with contextlib.ExitStack() as stack:
        for here, there in ((one, other), (other, one)):
            route = f"{there.subnet} via {there.address} dev eth0"
            do, undo = (f"ip route {how} {route}" for how in ("add", "del"))
            stack.enter_context(changed(here.node, do, undo))
        yield


@sabotage(UDP, "flannel-udp-path-docker0-to-flannel0")
def routing_costs_no_ttl(lab: LiveLab) -> Iterator[None]:
    """The first host gives what comes from docker0 back the one that routing takes off its TTL."""
    rule = "FORWARD -i docker0 -j TTL --ttl-inc 1"
    do, undo = (f"iptables -t mangle {how} {rule}" for how in ("-I", "-D"))
    with changed(ends(lab)[0].node, do, undo):
        yield


@sabotage(UDP, "flannel-udp-path-docker0-to-flannel0")
def docker0_changes_the_packet(lab: LiveLab) -> Iterator[None]:
    """Packets to the first host's docker0 get another IP id and another TTL."""
    do, undo = nft(
        "filter hook prerouting priority -150\n"
        "iifname docker0 icmp type echo-request ip id set 7 ip ttl set 60"
    )
    with changed(ends(lab)[0].node, do, undo):
        yield


@sabotage(UDP, "flannel-udp-remote-delivery")
def the_packet_is_another_and_not_answered(lab: LiveLab) -> Iterator[None]:
    """Packets from the other host's flannel0 get another IP id, and the container is mute."""
    _, other = ends(lab)
    do, undo = nft(f"filter hook prerouting priority -150\niifname {TUN} ip id set 7")
    rule = "INPUT -p icmp -j DROP"
    with (
        changed(other.node, do, undo),
        changed(other.container, f"iptables -I {rule}", f"iptables -D {rule}"),
    ):
        yield


@sabotage(UDP, "flannel-udp-inner-addresses-kept")
def nothing_is_masqueraded(lab: LiveLab) -> Iterator[None]:
    """`iptables` does not add or delete a masquerade rule."""
    script = 'case "$*" in *MASQUERADE*) exit 0 ;; esac\nexec $real/iptables "$@"'
    with lying(ends(lab)[0].node, iptables=script):
        yield


@sabotage(UDP, "flannel-udp-remote-delivery")
def the_other_host_takes_more_ttl(lab: LiveLab) -> Iterator[None]:
    """The other host takes two more off the TTL of what comes from flannel0."""
    rule = f"FORWARD -i {TUN} -j TTL --ttl-dec 2"
    do, undo = (f"iptables -t mangle {how} {rule}" for how in ("-I", "-D"))
    with changed(ends(lab)[1].node, do, undo):
        yield


@contextlib.contextmanager
def translated(lab: LiveLab, rule: str) -> Iterator[None]:
    """flanneld's datagrams translated on the first host; tracked connections are forgotten."""
    node = ends(lab)[0].node
    do, undo = (f"iptables -t nat {how} {rule}" for how in ("-I", "-D"))
    with changed(node, do, undo):
        node.run(["conntrack", "-D", "-p", "udp"], check=False)
        yield
    node.run(["conntrack", "-D", "-p", "udp"], check=False)


@sabotage(UDP, "flannel-udp-forwards-by-destination")
def datagrams_go_to_another_host(lab: LiveLab) -> Iterator[None]:
    """Packets of the first host's flanneld to the other go to the machine outside."""
    elsewhere = node_address(lab, outside_node(lab))
    rule = f"OUTPUT -p udp --dport {PORT} -d {ends(lab)[1].address} -j DNAT --to {elsewhere}"
    with translated(lab, rule):
        yield


@sabotage(UDP, "flannel-udp-port-8285-destination")
def datagrams_go_to_another_port(lab: LiveLab) -> Iterator[None]:
    """Packets of the first host's flanneld go to port 9999."""
    host = ends(lab)[1].address
    with translated(lab, f"OUTPUT -p udp --dport {PORT} -j DNAT --to {host}:9999"):
        yield


@sabotage(UDP, "flannel-udp-outer-node-addresses")
def datagrams_come_from_another_host(lab: LiveLab) -> Iterator[None]:
    """Packets of the first host's flanneld have the source of a host that does not exist."""
    with translated(lab, f"POSTROUTING -p udp --dport {PORT} -j SNAT --to {OTHER_HOST}:{PORT}"):
        yield


@sabotage(UDP, "flannel-udp-ip-in-udp")
def the_payload_is_changed(lab: LiveLab) -> Iterator[None]:
    """Of each packet that the first host's flanneld wraps, the IP id is overwritten."""
    # @th,96,16: after 8 octets of UDP, octets 4 and 5 of what is in it.
    do, undo = nft(f"filter hook output priority 0\nudp dport {PORT} @th,96,16 set 0x1234")
    with changed(ends(lab)[0].node, do, undo):
        yield


@sabotage(UDP, "flannel-udp-inner-addresses-kept")
def docker_masquerades(lab: LiveLab) -> Iterator[None]:
    """Docker's own masquerade rule is there on the first host."""
    one, _ = ends(lab)
    rule = f"POSTROUTING -s {one.subnet} ! -o docker0 -j MASQUERADE"
    with changed(one.node, f"iptables -t nat -I {rule}", f"iptables -t nat -D {rule}"):
        yield


@sabotage(UDP, "flannel-udp-port-8285-listen")
def another_program_has_the_port(lab: LiveLab) -> Iterator[None]:
    """On the first host another program than flanneld has UDP port 8285, too."""
    script = (
        "import socket, time; s = socket.socket(type=socket.SOCK_DGRAM); "
        f"s.bind(('127.0.0.1', {PORT})); print('ready', flush=True); time.sleep(600)"
    )
    with ends(lab)[0].node.spawn(["python3", "-c", script]) as running:
        await_output(running, READY)
        yield
