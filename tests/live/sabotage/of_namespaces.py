"""Namespaces, veth pairs and a bridge by hand, made wrong, or by an ``ip`` that lies."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from sabotage.means import changed, lying, sh
from sabotage.trials import sabotage

if TYPE_CHECKING:
    from testbed.labs.live import LiveLab
    from testbed.nodes.base import Node

LAB = "netns-experiments"


def host(lab: LiveLab) -> Node:
    return lab.node("host")


def ip_lies(lab: LiveLab, script: str) -> contextlib.AbstractContextManager[None]:
    """An ``ip`` that does what the script says, and all else as the real one does."""
    return lying(host(lab), ip=f'{script}\nexec $real/ip "$@"')


# -- ip netns --------------------------------------------------------------------


@sabotage(
    LAB,
    "netns-cannot-communicate",
    "netns-own-routing-table",
    "netns-own-netfilter",
    "netns-kernel-globals-moved",
    "netns-add-command",
    "netns-exec-command",
    "netns-exec-shell",
    "veth-move-to-netns",
    "veth-must-be-set-up",
)
def a_new_namespace_is_the_old_one(lab: LiveLab) -> Iterator[None]:
    """`ip netns add` gives a name to the namespace that it runs in, and makes none."""
    script = """
    if [ "$1 $2" = "netns add" ]; then
        mkdir -p /run/netns && : > /run/netns/$3
        exec mount --bind /proc/self/ns/net /run/netns/$3
    fi"""
    with ip_lies(lab, script):
        yield


@sabotage(LAB, "netns-create-ns1-ns2")
def a_namespace_has_another_name(lab: LiveLab) -> Iterator[None]:
    """`ip netns add` makes a namespace under another name."""
    with ip_lies(lab, '[ "$1 $2" = "netns add" ] && exec $real/ip netns add "$3-other"'):
        yield


@sabotage(LAB, "netns-add-command")
def a_name_is_but_a_file(lab: LiveLab) -> Iterator[None]:
    """`ip netns add` makes a file of the name, and no namespace."""
    script = """
    if [ "$1 $2" = "netns add" ]; then mkdir -p /run/netns && : > /run/netns/$3; exit; fi"""
    with ip_lies(lab, script):
        yield


@sabotage(LAB, "netns-independent-stacks")
def a_device_is_made_twice(lab: LiveLab) -> Iterator[None]:
    """A device that is made in ns1 is made in ns2, too."""
    script = '[ "$3" = only-in-ns1 ] && $real/ip -n ns2 "$@"'
    with ip_lies(lab, script):
        yield


@sabotage(LAB, "netns-exec-command", "netns-exec-shell")
def exec_stays_outside(lab: LiveLab) -> Iterator[None]:
    """`ip netns exec` runs the command where it was called, not in the namespace."""
    with ip_lies(lab, 'if [ "$1 $2" = "netns exec" ]; then shift 3; exec "$@"; fi'):
        yield


@sabotage(LAB, "netns-independent-stacks", "netns-kernel-globals-moved")
def settings_are_the_machines(lab: LiveLab) -> Iterator[None]:
    """`sysctl` sets and reads the settings of the whole machine, in whatever namespace."""
    names = ("net.ipv4.ip_forward", "net.ipv4.ip_default_ttl")
    before = [host(lab).run(["sysctl", "-n", name]).stdout.strip() for name in names]
    restore = "\n".join(
        f"sysctl -q -w {name}={value}" for name, value in zip(names, before, strict=True)
    )
    script = 'exec nsenter --target=1 --net $real/sysctl "$@"'
    with changed(host(lab), "", restore), lying(host(lab), sysctl=script):
        yield


@sabotage(LAB, "bridge-netns-ping")
def bridged_packets_never_pass_iptables(lab: LiveLab) -> Iterator[None]:
    """`sysctl` sets bridge-nf-call-iptables to 0 whatever is asked for."""
    script = """
    for last; do :; done
    case "$last" in
        *bridge-nf-call-iptables=*) exec $real/sysctl -q -w "${last%=*}=0" ;;
    esac
    exec $real/sysctl "$@" """
    with lying(host(lab), sysctl=script):
        yield


@sabotage(LAB, "bridge-netns-ping")
def the_filter_comes_with_a_drop(lab: LiveLab) -> Iterator[None]:
    """`sysctl` sets FORWARD's policy to DROP together with bridge-nf-call-iptables."""
    script = """
    case "$*" in *bridge-nf-call-iptables=1*) $real/iptables -P FORWARD DROP ;; esac
    exec $real/sysctl "$@" """
    policy = "iptables -P FORWARD ACCEPT"
    with changed(host(lab), "", policy), lying(host(lab), sysctl=script):
        yield


@sabotage(LAB, "bridge-netns-ping")
def bridged_packets_always_pass_iptables_here(lab: LiveLab) -> Iterator[None]:
    """`sysctl` does not set bridge-nf-call-iptables to 0."""
    script = 'case "$*" in *bridge-nf-call-iptables=0*) exit 0 ;; esac\nexec $real/sysctl "$@"'
    with lying(host(lab), sysctl=script):
        yield


# -- ip link ---------------------------------------------------------------------


@sabotage(LAB, "veth-created-in-pairs", "veth-add-named-pair", "veth-ends-join-stack-and-peer")
def pairs_are_not_joined(lab: LiveLab) -> Iterator[None]:
    """For a veth pair, `ip link add` makes bridges of the same names, which nothing joins."""
    script = """
    case "$*" in
        "link add one type veth") exec $real/ip link add one type bridge ;;
        *"type veth peer name"*)
            $real/ip link add "$3" type bridge && exec $real/ip link add "$8" type bridge ;;
    esac"""
    with ip_lies(lab, script):
        yield


@sabotage(LAB, "veth-visible-after-create")
def the_second_end_is_hidden(lab: LiveLab) -> Iterator[None]:
    """`ip link add` puts the second end of a pair into a namespace of its own."""
    script = """
    case "$*" in *"type veth peer name"*)
        $real/ip netns add hidden
        exec $real/ip "$@" netns hidden ;;
    esac"""
    with ip_lies(lab, script):
        yield


@sabotage(LAB, "veth-created-in-pairs", "veth-crosses-namespaces")
def links_are_not_deleted(lab: LiveLab) -> Iterator[None]:
    """`ip link delete` deletes nothing."""
    with ip_lies(lab, 'case "$*" in *"link delete"*) exit 0 ;; esac'):
        yield


@sabotage(
    LAB,
    "netns-cannot-communicate",
    "veth-must-be-set-up",
    "veth-crosses-namespaces",
    "bridge-port-must-be-up",
)
def nothing_comes_up(lab: LiveLab) -> Iterator[None]:
    """`ip link set DEV up` does nothing, but for the loopback device."""
    script = """
    for last; do :; done
    case "$last $*" in "up "*" lo "*) ;; "up "*) exit 0 ;; esac"""
    with ip_lies(lab, script):
        yield


@sabotage(LAB, "veth-must-be-set-up")
def what_moves_comes_up(lab: LiveLab) -> Iterator[None]:
    """`ip link set DEV netns NS` sets the device up, too."""
    script = """
    if [ "$1 $2 $4" = "link set netns" ]; then
        $real/ip "$@" && exec $real/ip -n "$5" link set "$3" up
    fi"""
    with ip_lies(lab, script):
        yield


@sabotage(LAB, "ip-addr-add-local-keyword")
def the_word_local_is_refused(lab: LiveLab) -> Iterator[None]:
    """`ip addr add` does not know the word local."""
    with ip_lies(lab, '[ "$1 $2 $3" = "addr add local" ] && exit 255'):
        yield


@sabotage(LAB, "ip-ifname-15-chars")
def a_name_is_cut_to_14_characters(lab: LiveLab) -> Iterator[None]:
    """A name of 15 characters loses its last one."""
    script = """
    if [ "$8" = brvethotherend0 ]; then
        exec $real/ip l a "$3" type veth peer name brvethotherend
    fi"""
    with ip_lies(lab, script):
        yield


@sabotage(LAB, "bridge-acts-as-switch")
def the_bridge_is_a_hub(lab: LiveLab) -> Iterator[None]:
    """A new bridge forgets at once where it has seen an address, and floods every frame."""
    script = """
    if [ "$*" = "l a br0 type bridge" ]; then exec $real/ip "$@" ageing_time 0; fi"""
    with ip_lies(lab, script):
        yield


@sabotage(LAB, "bridge-acts-as-switch")
def broadcasts_are_kept_from_a_port(lab: LiveLab) -> Iterator[None]:
    """The bridge sends no broadcast to the port of ns3."""
    script = """
    if [ "$3 $4" = "brvethotherend2 master" ]; then
        $real/ip "$@" && exec bridge link set dev "$3" bcast_flood off
    fi"""
    with ip_lies(lab, script):
        yield


@sabotage(LAB, "bridge-attach-veth-master")
def master_is_ignored(lab: LiveLab) -> Iterator[None]:
    """`ip link set DEV master BRIDGE` attaches nothing."""
    with ip_lies(lab, '[ "$4" = master ] && exit 0'):
        yield


@sabotage(LAB, "bridge-port-must-be-up")
def a_port_comes_up_when_it_is_attached(lab: LiveLab) -> Iterator[None]:
    """`ip link set DEV master BRIDGE` sets the port up, too."""
    with ip_lies(lab, '[ "$4" = master ] && exec $real/ip "$@" up'):
        yield


# -- the lab's own namespaces ------------------------------------------------------


@sabotage(LAB, "netns-create-ns1-ns2")
def ns2_has_another_name(lab: LiveLab) -> Iterator[None]:
    """The lab's namespace ns2 is called ns3."""
    there, away = "/run/netns/ns2", "/run/netns/ns3"
    with changed(
        host(lab),
        f"touch {away}\nmount --bind {there} {away}\numount {there}\nrm {there}",
        f"touch {there}\nmount --bind {away} {there}\numount {away}\nrm {away}",
    ):
        yield


@sabotage(LAB, "ip-direct-pair-same-subnet")
def veth1_has_another_address(lab: LiveLab) -> Iterator[None]:
    """veth1 has 192.168.10.202 instead of 192.168.10.201."""
    ours, others = "192.168.10.201/24 dev veth1", "192.168.10.202/24 dev veth1"
    with changed(
        host(lab),
        f"ip -n ns2 addr del {ours}\nip -n ns2 addr add {others}",
        f"ip -n ns2 addr del {others}\nip -n ns2 addr add {ours}",
    ):
        yield


@sabotage(LAB, "ip-direct-pair-same-subnet")
def veth1_is_in_another_subnet(lab: LiveLab) -> Iterator[None]:
    """veth1 has 192.168.12.201 instead of 192.168.10.201."""
    ours, others = "192.168.10.201/24 dev veth1", "192.168.12.201/24 dev veth1"
    with changed(
        host(lab),
        f"ip -n ns2 addr del {ours}\nip -n ns2 addr add {others}",
        f"ip -n ns2 addr del {others}\nip -n ns2 addr add {ours}",
    ):
        yield


@sabotage(LAB, "bridge-second-pair", ruins=True)
def the_second_pair_is_two(lab: LiveLab) -> Iterator[None]:
    """br-veth1 and brvethotherend1 are ends of two pairs, whose other ends nobody uses."""
    sh(
        host(lab),
        "ip link delete brvethotherend1",
        "ip link add brvethotherend1 type veth peer name loose0",
        "ip link set brvethotherend1 master br0 up",
        "ip -n ns2 link add br-veth1 type veth peer name loose1",
        "ip -n ns2 addr add 192.168.11.201/24 dev br-veth1",
        "ip -n ns2 link set br-veth1 up",
    )
    yield


@sabotage(LAB, "veth-direct-ping", "bridge-needs-no-address", "ip-two-subnets-coexist")
def ns2_drops_icmp(lab: LiveLab) -> Iterator[None]:
    """ns2's firewall drops every ICMP packet that comes."""
    rule = "INPUT -p icmp -j DROP"
    with changed(
        host(lab),
        f"ip netns exec ns2 iptables -I {rule}",
        f"ip netns exec ns2 iptables -D {rule}",
    ):
        yield


@sabotage(LAB, "bridge-create-br0")
def br0_is_a_veth_device(lab: LiveLab) -> Iterator[None]:
    """The lab's bridge has another name, and a veth device is called br0."""
    with changed(
        host(lab),
        """
        ip link set br0 down
        ip link set br0 name other0
        ip link set other0 up
        ip link add br0 type veth peer name br0-peer
        ip link set br0-peer up
        ip link set br0 up
        """,
        """
        ip link delete br0
        ip link set other0 down
        ip link set other0 name br0
        ip link set br0 up
        """,
    ):
        yield


@sabotage(LAB, "bridge-create-br0")
def br0_is_down(lab: LiveLab) -> Iterator[None]:
    """The lab's bridge is set down."""
    with changed(host(lab), "ip link set br0 down", "ip link set br0 up"):
        yield


@sabotage(LAB, "veth-br-veth0-in-ns1", ruins=True)
def br_veth0_stays_outside(lab: LiveLab) -> Iterator[None]:
    """br-veth0 is moved out of ns1 to the machine itself."""
    host(lab).run(["ip", "-n", "ns1", "link", "set", "br-veth0", "netns", "1"])
    yield


@sabotage(LAB, "bridge-attach-veth-master", "bridge-second-pair")
def the_ports_are_detached(lab: LiveLab) -> Iterator[None]:
    """br0 has no ports any more."""
    pair = ("brvethotherend0", "brvethotherend1")
    with changed(
        host(lab),
        "\n".join(f"ip link set {name} nomaster" for name in pair),
        "\n".join(f"ip link set {name} master br0" for name in pair),
    ):
        yield


@sabotage(LAB, "ip-bridge-pair-same-subnet", "bridge-second-pair")
def br_veth1_is_in_another_subnet(lab: LiveLab) -> Iterator[None]:
    """br-veth1 has 192.168.12.201 instead of 192.168.11.201."""
    ours, others = "192.168.11.201/24 dev br-veth1", "192.168.12.201/24 dev br-veth1"
    with changed(
        host(lab),
        f"ip -n ns2 addr del {ours}\nip -n ns2 addr add {others}",
        f"ip -n ns2 addr del {others}\nip -n ns2 addr add {ours}",
    ):
        yield


@sabotage(LAB, "ip-bridge-pair-same-subnet")
def br_veth0_has_another_address(lab: LiveLab) -> Iterator[None]:
    """br-veth0 has 192.168.11.210 instead of 192.168.11.200."""
    ours, others = "192.168.11.200/24 dev br-veth0", "192.168.11.210/24 dev br-veth0"
    with changed(
        host(lab),
        f"ip -n ns1 addr del {ours}\nip -n ns1 addr add {others}",
        f"ip -n ns1 addr del {others}\nip -n ns1 addr add {ours}",
    ):
        yield


@sabotage(LAB, "bridge-needs-no-address")
def br0_has_an_address(lab: LiveLab) -> Iterator[None]:
    """br0 has the address 192.168.11.1."""
    address = "192.168.11.1/24 dev br0"
    with changed(host(lab), f"ip addr add {address}", f"ip addr del {address}"):
        yield


@sabotage(LAB, "ip-two-subnets-coexist")
def both_subnets_go_to_the_bridge(lab: LiveLab) -> Iterator[None]:
    """ns1 routes the subnet of the direct pair to the bridge, too."""
    subnet = "192.168.10.0/24"
    kernels = f"{subnet} dev veth0 proto kernel scope link src 192.168.10.200"
    with changed(
        host(lab),
        f"ip -n ns1 route del {subnet}\nip -n ns1 route add {subnet} dev br-veth0",
        f"ip -n ns1 route del {subnet}\nip -n ns1 route add {kernels}",
    ):
        yield
