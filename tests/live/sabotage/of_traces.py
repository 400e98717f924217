"""Falsified output of TRACE and behaviour of programs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sabotage.means import changed, first, forget, in_place_of, lying, nft, sh, veth
from sabotage.trials import LEGACY, sabotage

if TYPE_CHECKING:
    from testbed.labs.live import LiveContainer, LiveLab
    from testbed.nodes.base import Node

LAB = "docker-single"


def host(lab: LiveLab) -> Node:
    return lab.node("host")


def pair(lab: LiveLab) -> tuple[LiveContainer, LiveContainer]:
    """Return the client and the server of the sample: 172.17.0.3 and .4."""
    return first(lab, 1), first(lab, 2)


# -- TRACE -----------------------------------------------------------------------------


@sabotage(LAB, "trace-shows-packet-path")
def the_trace_is_logged_too(lab: LiveLab) -> Iterator[None]:
    """iptables-nft adds a rule that logs what it is asked to trace."""
    script = """
    case "$*" in *"-t raw -A PREROUTING "*TRACE)
        $real/iptables-nft -t raw -A PREROUTING -p icmp -j NFLOG --nflog-threshold 1 ;;
    esac
    exec $real/iptables-nft "$@" """
    with lying(host(lab), **{"iptables-nft": script}):
        yield


@sabotage(LAB, "trace-bridged-traffic-hits-iptables")
def bridged_packets_always_pass_iptables(lab: LiveLab) -> Iterator[None]:
    """`sysctl` does not set bridge-nf-call-iptables to 0."""
    script = 'case "$*" in *bridge-nf-call-iptables=0*) exit 0 ;; esac\nexec $real/sysctl "$@"'
    with lying(host(lab), sysctl=script):
        yield


@sabotage(LAB, "trace-bridged-traffic-hits-iptables")
def bridged_packets_pass_no_iptables(lab: LiveLab) -> Iterator[None]:
    """`sysctl` sets bridge-nf-call-iptables to 0 whatever is asked for."""
    script = """
    for last; do :; done
    case "$last" in
        *bridge-nf-call-iptables=*) exec $real/sysctl -q -w "${last%=*}=0" ;;
    esac
    exec $real/sysctl "$@" """
    with (
        changed(host(lab), "", "sysctl -q -w net.bridge.bridge-nf-call-iptables=1"),
        lying(host(lab), sysctl=script),
    ):
        yield


@sabotage(LAB, "trace-physin-physout")
def replies_take_another_link(lab: LiveLab) -> Iterator[None]:
    """The container that answers has a second link to docker0, and sends by that one."""
    asker, answerer = pair(lab)
    make = f"ip link add beside type veth peer name eth1 netns {answerer.pid}"
    with changed(
        host(lab), f"{make}\nip link set beside master docker0 up", "ip link delete beside"
    ):
        sh(
            answerer,
            "ip link set eth1 up",
            f"ip route add {asker.address}/32 dev eth1 src {answerer.address}",
        )
        yield


@sabotage(LEGACY, "trace-raw-prerouting-then-forward")
def the_mangle_table_comes_between(lab: LiveLab) -> Iterator[None]:
    """The mangle table has a rule in PREROUTING."""
    rule = "PREROUTING -p icmp -j ACCEPT"
    do, undo = (f"iptables -t mangle {how} {rule}" for how in ("-A", "-D"))
    with changed(host(lab), do, undo):
        yield


@sabotage(LEGACY, "trace-raw-policy-2")
def the_raw_table_has_another_rule(lab: LiveLab) -> Iterator[None]:
    """raw PREROUTING has a rule already, which matches nothing."""
    rule = "PREROUTING -p icmp --icmp-type timestamp-request -j ACCEPT"
    with changed(host(lab), f"iptables -t raw -A {rule}", f"iptables -t raw -D {rule}"):
        yield


@sabotage(LEGACY, "trace-forward-rule-1")
def forwards_first_rule_is_another(lab: LiveLab) -> Iterator[None]:
    """FORWARD begins with a rule that does not match."""
    rule = "FORWARD -p icmp --icmp-type timestamp-request -j ACCEPT"
    with changed(host(lab), f"iptables -I {rule}", f"iptables -D {rule}"):
        yield


@sabotage(
    LEGACY,
    "trace-in-and-out-docker0",
    "trace-physin-physout",
    "trace-mac-field-layout",
    "trace-ttl-stays-64",
)
def a_container_is_routed_to(lab: LiveLab) -> Iterator[None]:
    """The container that answers is not on docker0: the host routes between it and the others."""
    _, answerer = pair(lab)
    name = veth(answerer)
    route = f"{answerer.address}/32 dev {name} src 172.17.0.1"
    untouched = f"POSTROUTING -d {answerer.address} -j ACCEPT"  # Docker would masquerade it
    with changed(
        host(lab),
        f"""
        ip link set {name} nomaster
        ip route add {route}
        iptables -t nat -I {untouched}
        sysctl -qw net.ipv4.conf.{name}.proxy_arp=1
        sysctl -qw net.ipv4.conf.docker0.proxy_arp=1
        """,
        f"""
        sysctl -qw net.ipv4.conf.docker0.proxy_arp=0
        sysctl -qw net.ipv4.conf.{name}.proxy_arp=0
        iptables -t nat -D {untouched}
        ip route del {route}
        ip link set {name} master docker0
        """,
    ):
        forget(lab)
        yield


@sabotage(LAB, "trace-mac-from-ip")
def a_mac_is_not_made_of_the_address(lab: LiveLab) -> Iterator[None]:
    """The container that answers has another MAC than Docker gave it."""
    _, answerer = pair(lab)
    macs = ("02:42:00:00:53:01", f"02:42:{bytes(map(int, answerer.address.split('.'))).hex(':')}")
    do, undo = (f"ip link set eth0 address {mac}" for mac in macs)
    with changed(answerer, do, undo):
        forget(lab)
        yield


@sabotage(LEGACY, "trace-length-84")
def pings_are_longer(lab: LiveLab) -> Iterator[None]:
    """`ping` sends 100 octets of data."""
    with lying(host(lab), ping='exec /usr/bin/ping -s 100 "$@"'):
        yield


@sabotage(LEGACY, "trace-is-echo-reply")
def pings_have_another_identifier(lab: LiveLab) -> Iterator[None]:
    """`ping` sends another identifier than it is asked for."""
    script = """
    for word do
        shift
        case "$word" in -e*) word=-e4 ;; esac
        set -- "$@" "$word"
    done
    exec /usr/bin/ping "$@" """
    with lying(host(lab), ping=script):
        yield


@sabotage(LEGACY, "trace-same-ip-id")
def the_ip_id_changes_on_the_way(lab: LiveLab) -> Iterator[None]:
    """Between raw PREROUTING and FORWARD every echo reply gets the IP id 7."""
    do, undo = nft("filter hook prerouting priority -150\nicmp type echo-reply ip id set 7")
    with changed(host(lab), do, undo):
        yield


@sabotage(LEGACY, "trace-same-ip-id")
def all_packets_have_one_ip_id(lab: LiveLab) -> Iterator[None]:
    """Before anything else, every echo reply gets the IP id 7."""
    do, undo = nft("filter hook prerouting priority -400\nicmp type echo-reply ip id set 7")
    with changed(host(lab), do, undo):
        yield


@sabotage(LEGACY, "trace-reply-skips-nat")
def the_second_request_is_a_new_connection(lab: LiveLab) -> Iterator[None]:
    """The second echo request is tracked apart from the first, in a zone of its own."""
    do, undo = nft(
        "filter hook prerouting priority -300\nicmp type echo-request icmp sequence 2 ct zone set 7"
    )
    with changed(host(lab), do, undo):
        yield


@sabotage(LAB, "trace-hook-time-5us")
def no_rules_come_between(lab: LiveLab) -> Iterator[None]:
    """iptables-nft-restore, which is to put thousands of rules in between, does nothing."""
    with lying(host(lab), **{"iptables-nft-restore": "cat > /dev/null"}):
        # The block that follows deletes the table if it was not there before.
        host(lab).run(["nft", "add", "table", "ip", "raw"])
        yield
    host(lab).run(["nft", "delete", "table", "ip", "raw"], check=False)


# -- programs ----------------------------------------------------------------------------


#: The container's namespace is made by clone(2), and runc is told to join that one.
CLONING_RUNC = r"""
case " $* " in *" create "*) ;; *) exec $real "$@" ;; esac
exec python3 -c '
import ctypes, json, os, pathlib, signal, subprocess, sys
bundle = pathlib.Path(sys.argv[sys.argv.index("--bundle") + 1], "config.json")
before = bundle.read_bytes()
config = json.loads(before)
for one in config["linux"]["namespaces"]:
    if one["type"] == "network" and not one.get("path"):
        libc = ctypes.CDLL(None)
        child = libc.syscall(56, 0x40000000 | signal.SIGCHLD, 0, 0, 0, 0)  # clone(CLONE_NEWNET)
        if child == 0:
            signal.pause()
        one["path"] = "/proc/%d/ns/net" % child
bundle.write_text(json.dumps(config))
done = subprocess.run(sys.argv[1:], pass_fds=())
bundle.write_bytes(before)
if "child" in globals():
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
sys.exit(done.returncode)
' $real "$@"
"""


@sabotage(LAB, "mode-bridge-clone-newnet")
def runc_clones(lab: LiveLab) -> Iterator[None]:
    """runc is given a network namespace that was made by clone(2)."""
    runc = host(lab).provide(lab.context.store.binary("runc"))
    with in_place_of(host(lab), runc, CLONING_RUNC):
        yield


@sabotage(LAB, "netns-enter-with-debug-tool")
def the_host_has_kube_debug(lab: LiveLab) -> Iterator[None]:
    """There is a program kube-debug on the host."""
    with lying(host(lab), **{"kube-debug": "exit 0"}):
        yield


@sabotage(LAB, "netns-enter-with-debug-tool")
def nsenter_stays_outside(lab: LiveLab) -> Iterator[None]:
    """`nsenter` runs the command where it was called."""
    with lying(host(lab), nsenter='while [ "${1#-}" != "$1" ]; do shift; done\nexec "$@"'):
        yield


@sabotage("netns-experiments", "veth-ifconfig-up")
def ifconfig_does_nothing(lab: LiveLab) -> Iterator[None]:
    """`ifconfig` leaves every device as it is."""
    with lying(host(lab), ifconfig="exit 0"):
        yield
