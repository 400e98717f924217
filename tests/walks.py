"""Walks made by hand, as the kernel would let packets go on labs of the shipped topologies."""

from __future__ import annotations

from dataclasses import replace

from testbed.walk.model import Change, Fact, Hop, Leg, Rule, Spot, View, Walk

STARTED = "2026-03-01T09:30:00.000000Z"
N1, N2, OUT = "10.168.0.2", "10.168.0.3", "10.168.0.1"
C1, C2, C3 = "100.96.1.2", "100.96.2.2", "100.96.1.3"
MACS = {
    "c1": "02:42:64:60:01:02", "c3": "02:42:64:60:01:03", "docker0": "02:42:8a:11:5c:01",
    "c2": "02:42:64:60:02:02", "docker0-2": "02:42:8a:11:5c:02",
    "vtep1": "ba:ef:87:5f:64:c1", "vtep2": "ba:ef:87:5f:64:c2",
    "eth1": "6e:09:00:00:00:02", "eth2": "6e:09:00:00:00:03", "out": "6e:09:00:00:00:01",
}  # fmt: skip
NAMES = {
    N1: "node1", N2: "node2", OUT: "outside", C1: "container-1", C2: "container-2",
    C3: "container-3", "100.96.1.0": "node1", "100.96.2.0": "node2",
    "100.96.1.1": "node1", "100.96.2.1": "node2",
}  # fmt: skip


def _ipv4(view: View) -> bytes:
    """An IPv4 packet with the headers of a view; checksums are right, so that readers are quiet."""
    kind = {"icmp": 1, "tcp": 6, "udp": 17}[view.protocol]
    if view.protocol == "icmp":
        body = bytes([8, 0, 0, 0]) + view.sport.to_bytes(2, "big") + b"\0\1" + bytes(56)
        body = body[:2] + _sum(body).to_bytes(2, "big") + body[4:]
    elif view.protocol == "tcp":
        bits = {"FIN": 1, "SYN": 2, "RST": 4, "PSH": 8, "ACK": 16}
        flags = sum(bits[one] for one in view.flags)
        body = view.sport.to_bytes(2, "big") + view.dport.to_bytes(2, "big") + bytes(8)
        body += bytes([0x50, flags]) + (64240).to_bytes(2, "big") + bytes(4)
    else:
        inner = bytes([8, 0, 0, 0, 0, 0, 1, 0]) + frame(view.inside) if view.inside else b""
        body = view.sport.to_bytes(2, "big") + view.dport.to_bytes(2, "big")
        body += (8 + len(inner)).to_bytes(2, "big") + bytes(2) + inner
    source, target = (bytes(map(int, one.split("."))) for one in (view.src, view.dst))
    head = bytes([0x45, 0]) + (20 + len(body)).to_bytes(2, "big") + view.ip_id.to_bytes(2, "big")
    head += b"\x40\0" + bytes([view.ttl, kind, 0, 0]) + source + target
    if view.protocol == "tcp":
        pseudo = source + target + bytes([0, kind]) + len(body).to_bytes(2, "big")
        body = body[:16] + _sum(pseudo + body).to_bytes(2, "big") + body[18:]
    return head[:10] + _sum(head).to_bytes(2, "big") + head[12:] + body


def _sum(data: bytes) -> int:
    """The checksum of RFC 1071."""
    data += b"\0" * (len(data) % 2)
    total = sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def frame(view: View | None) -> bytes:
    """The frame that a view describes."""
    assert view is not None
    macs = bytes.fromhex((view.dst_mac + view.src_mac).replace(":", ""))
    return macs + b"\x08\0" + _ipv4(view)


def echo(src: str, dst: str, *, by: str = "c1", to: str = "docker0", ttl: int = 64) -> View:
    view = View(
        MACS[by], MACS[to], src, dst, "icmp", 4711, 0, ttl=ttl, ip_id=0x5A1D, length=98
    )  # fmt: skip
    return replace(view, frame=frame(view))


def syn(
    src: str, dst: str, dport: int, *, by: str, to: str, ttl: int = 64, sport: int = 40001
) -> View:
    view = View(
        MACS[by], MACS[to], src, dst, "tcp", sport, dport, ("SYN",), ttl, ip_id=0x77, length=54
    )
    return replace(view, frame=frame(view))


def vxlan(inside: View, *, by: str = "eth1", to: str = "eth2") -> View:
    view = View(
        MACS[by], MACS[to], N1, N2, "udp", 51515, 8472, ttl=64, ip_id=0x100, length=148,
        carrier="vxlan 1", inside=inside,
    )  # fmt: skip
    return replace(view, frame=frame(view))


def rule(
    table: str, chain: str, position: int, text: str, verdict: str, family: str = "ip"
) -> Rule:
    return Rule(family, table, chain, position, text, verdict)


def chain(spot: Spot, point: str, seconds: float, *rules: Rule, **more: object) -> Hop:
    return Hop("chain", spot, point, seconds, rules=rules, **more)  # type: ignore[arg-type]


FORWARD = (
    rule("filter", "FORWARD", 1, "-A FORWARD -j DOCKER-USER", "jump DOCKER-USER"),
    rule("filter", "DOCKER-USER", 1, "-A DOCKER-USER -j RETURN", "return"),
    rule("filter", "FORWARD", 2, "-A FORWARD -j DOCKER-FORWARD", "jump DOCKER-FORWARD"),
    rule(
        "filter", "DOCKER-FORWARD", 4, "-A DOCKER-FORWARD -i docker0 -j ACCEPT", "accept"
    ),
)  # fmt: skip


def same_bridge(veths: tuple[str, str] = ("veth3f9a01b", "vethc07d52e")) -> Walk:
    """Two containers on docker0 of node1, which passes bridged packets to iptables."""
    view = echo(C1, C3, to="c3")
    one, other = Spot("node1", "container-1", "eth0"), Spot("node1", "container-3", "eth0")
    hops = (
        Hop("process", Spot("node1", "container-1"), "", 0.0,
            facts=(Fact("testbed sends an echo request", "seen", "sendto"),)),
        Hop("route", Spot("node1", "container-1"), "output", None,
            facts=(Fact("100.96.1.0/24 is on the link of eth0, from 100.96.1.2", "asked",
                        "ip route get 100.96.1.3 fibmatch"),)),
        Hop("device", one, "out", 0.000012, view),
        Hop("device", Spot("node1", "", veths[0]), "in", 0.000015, view,
            facts=(Fact(f"the peer of eth0 of container-1 is {veths[0]}, a port of docker0",
                        "asked", "ip -d link"),)),
        chain(Spot("node1"), "prerouting", 0.000021,
              rule("nat", "PREROUTING", 1,
                   "-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER", "continue"),
              rule("nat", "PREROUTING", 0, "-P PREROUTING ACCEPT", "policy accept"),
              facts=(Fact("br_netfilter passes bridged packets to iptables", "asked",
                          "sysctl net.bridge.bridge-nf-call-iptables"),)),
        chain(Spot("node1"), "forward", 0.000027, *FORWARD),
        Hop("device", Spot("node1", "", veths[1]), "out", 0.000033, view,
            facts=(Fact(f"02:42:64:60:01:03 is behind {veths[1]}", "asked",
                        "bridge fdb show br docker0"),)),
        Hop("device", other, "in", 0.000036, view),
        Hop("process", Spot("node1", "container-3"), "", 0.000041,
            facts=(Fact("the kernel answers the echo", "seen", "tcpdump"),)),
    )  # fmt: skip
    return Walk(
        "two-node", "node1/container-1", "node1/container-3", "icmp echo", STARTED,
        (Leg("there", hops, arrived=True),), NAMES,
    )  # fmt: skip


def across(*, reply: bool = False) -> Walk:
    """Container to container over flannel's VXLAN."""
    sent, routed = echo(C1, C2), echo(C1, C2, by="vtep1", to="vtep2", ttl=63)
    last = echo(C1, C2, by="docker0-2", to="c2", ttl=62)
    outer = vxlan(routed)
    hops = (
        Hop("process", Spot("node1", "container-1"), "", 0.0),
        Hop("device", Spot("node1", "container-1", "eth0"), "out", 0.000011, sent,
            facts=(Fact("default via 100.96.1.1 dev eth0", "asked",
                        "ip route get 100.96.2.2 fibmatch"),)),
        Hop("device", Spot("node1", "", "veth3f9a01b"), "in", 0.000014, sent),
        Hop("device", Spot("node1", "", "docker0"), "in", 0.000017, sent,
            facts=(Fact("02:42:8a:11:5c:01 is docker0's own address", "asked", "ip link"),)),
        chain(Spot("node1"), "prerouting", 0.000022,
              rule("nat", "PREROUTING", 0, "-P PREROUTING ACCEPT", "policy accept")),
        Hop("route", Spot("node1"), "forward", 0.000025,
            facts=(Fact("100.96.2.0/24 via 100.96.2.0 dev flannel.1 onlink", "asked",
                        "ip route get 100.96.2.2 from 100.96.1.2 iif docker0 fibmatch"),)),
        chain(Spot("node1"), "forward", 0.000029, *FORWARD,
              changes=(Change("ttl", "64", "63"),)),
        chain(Spot("node1"), "postrouting", 0.000034,
              rule("nat", "POSTROUTING", 3, "-A POSTROUTING -s 100.96.0.0/16 -d 100.96.0.0/16 "
                   '-m comment --comment "flanneld masq" -j RETURN', "return")),
        Hop("device", Spot("node1", "", "flannel.1"), "out", 0.000038, routed,
            (Change("src_mac", MACS["c1"], MACS["vtep1"]),
             Change("dst_mac", MACS["docker0"], MACS["vtep2"])),
            facts=(Fact("100.96.2.0 is at ba:ef:87:5f:64:c2, a permanent neighbour", "asked",
                        "ip neigh show dev flannel.1"),)),
        Hop("device", Spot("node1", "", "eth0"), "out", 0.000046, outer,
            (Change("carrier", "", "vxlan 1"), Change("src", C1, N1), Change("dst", C2, N2)),
            facts=(Fact("ba:ef:87:5f:64:c2 is behind 10.168.0.3", "asked",
                        "bridge fdb show dev flannel.1"),)),
        Hop("device", Spot("lan", fabric=True), "", None, outer,
            facts=(Fact("the network lan joins eth0 of node1 and eth0 of node2", "inferred"),)),
        Hop("device", Spot("node2", "", "eth0"), "in", 0.000061, outer),
        Hop("device", Spot("node2", "", "flannel.1"), "in", 0.000069, routed,
            (Change("carrier", "vxlan 1", ""),)),
        Hop("route", Spot("node2"), "forward", 0.000074,
            facts=(Fact("100.96.2.0/24 is on the link of docker0", "asked",
                        "ip route get 100.96.2.2 from 100.96.1.2 iif flannel.1 fibmatch"),)),
        chain(Spot("node2"), "forward", 0.000079,
              rule("filter", "FORWARD", 3, '-A FORWARD -m comment --comment "flanneld forward" '
                   "-j FLANNEL-FWD", "jump FLANNEL-FWD"),
              rule("filter", "FLANNEL-FWD", 1, "-A FLANNEL-FWD -s 100.96.0.0/16 -j ACCEPT",
                   "accept"),
              changes=(Change("ttl", "63", "62"),)),
        Hop("device", Spot("node2", "", "docker0"), "out", 0.000085, last),
        Hop("device", Spot("node2", "", "veth77d01aa"), "out", 0.000088, last),
        Hop("device", Spot("node2", "container-2", "eth0"), "in", 0.000091, last),
        Hop("process", Spot("node2", "container-2"), "", None,
            facts=(Fact("the kernel answers the echo", "inferred"),)),
    )  # fmt: skip
    back = Leg(
        "back",
        (
            Hop("process", Spot("node2", "container-2")),
            Hop("device", Spot("node2", "container-2", "eth0"), "out", 0.0001),
            Hop("device", Spot("node1", "container-1", "eth0"), "in", 0.00019),
        ),
        arrived=True,
    )
    legs = (Leg("there", hops, arrived=True), *([back] if reply else []))
    return Walk(
        "two-node", "node1/container-1", "node2/container-2", "icmp echo", STARTED, legs, NAMES,
        ("node2: tracepoints are unavailable, so the reason of a drop would be unknown",),
    )  # fmt: skip


def published() -> Walk:
    """A published port of container-1, from the node outside."""
    sent = syn(OUT, N1, 8080, by="out", to="eth1")
    inner = syn(OUT, C1, 80, by="docker0", to="c1", ttl=63)
    hops = (
        Hop("process", Spot("outside"), "", 0.0),
        Hop("device", Spot("outside", "", "eth0"), "out", 0.000010, sent),
        Hop("device", Spot("lan", fabric=True), "", None, sent,
            facts=(Fact("the network lan joins eth0 of outside and eth0 of node1", "inferred"),)),
        Hop("device", Spot("node1", "", "eth0"), "in", 0.000021, sent),
        chain(Spot("node1"), "prerouting", 0.000027,
              rule("nat", "PREROUTING", 1,
                   "-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER", "jump DOCKER"),
              rule("nat", "DOCKER", 2, "-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 "
                   "-j DNAT --to-destination 100.96.1.2:80", "DNAT")),
        Hop("conntrack", Spot("node1"), "prerouting", 0.000029,
            changes=(Change("dst", N1, C1), Change("dport", "8080", "80")),
            facts=(Fact("a new connection: answers from 100.96.1.2:80 become 10.168.0.2:8080",
                        "seen", "conntrack -E"),)),
        Hop("route", Spot("node1"), "forward", 0.000032,
            facts=(Fact("100.96.1.0/24 is on the link of docker0", "asked",
                        "ip route get 100.96.1.2 from 10.168.0.1 iif eth0 fibmatch"),)),
        chain(Spot("node1"), "forward", 0.000037,
              rule("filter", "DOCKER", 1, "-A DOCKER -d 100.96.1.2/32 ! -i docker0 -o docker0 "
                   "-p tcp -m tcp --dport 80 -j ACCEPT", "accept"),
              changes=(Change("ttl", "64", "63"),)),
        Hop("device", Spot("node1", "", "docker0"), "out", 0.000042, inner),
        Hop("device", Spot("node1", "", "veth3f9a01b"), "out", 0.000045, inner),
        Hop("device", Spot("node1", "container-1", "eth0"), "in", 0.000048, inner),
        Hop("process", Spot("node1", "container-1"), "", 0.000054,
            facts=(Fact("nginx listens on 0.0.0.0:80", "asked", "ss -ltn"),)),
    )  # fmt: skip
    return Walk(
        "two-node", "outside", "node1:8080", "tcp 8080", STARTED,
        (Leg("there", hops, arrived=True),), NAMES,
    )  # fmt: skip


def masquerade() -> Walk:
    """A container's packet to the node outside, with the address of its node."""
    sent = syn(C1, OUT, 80, by="c1", to="docker0")
    out = syn(N1, OUT, 80, by="eth1", to="out", ttl=63)
    hops = (
        Hop("process", Spot("node1", "container-1"), "", 0.0),
        Hop("device", Spot("node1", "container-1", "eth0"), "out", 0.000010, sent),
        Hop("device", Spot("node1", "", "veth3f9a01b"), "in", 0.000013, sent),
        Hop("device", Spot("node1", "", "docker0"), "in", 0.000015, sent),
        Hop("route", Spot("node1"), "forward", 0.000019,
            facts=(Fact("default via 10.168.0.1 dev eth0", "asked",
                        "ip route get 10.168.0.1 from 100.96.1.2 iif docker0 fibmatch"),)),
        chain(Spot("node1"), "forward", 0.000024, *FORWARD,
              changes=(Change("ttl", "64", "63"),)),
        chain(Spot("node1"), "postrouting", 0.000029,
              rule("nat", "POSTROUTING", 1, "-A POSTROUTING -s 100.96.1.0/24 ! -o docker0 "
                   "-j MASQUERADE", "MASQUERADE")),
        Hop("conntrack", Spot("node1"), "postrouting", 0.000031,
            changes=(Change("src", C1, N1),),
            facts=(Fact("a new connection: answers to 10.168.0.2:40001 become 100.96.1.2:40001",
                        "seen", "conntrack -E"),)),
        Hop("device", Spot("node1", "", "eth0"), "out", 0.000037, out),
        Hop("device", Spot("lan", fabric=True), "", None, out,
            facts=(Fact("the network lan joins eth0 of node1 and eth0 of outside", "inferred"),)),
        Hop("device", Spot("outside", "", "eth0"), "in", 0.000049, out),
        Hop("process", Spot("outside"), "", 0.000055),
    )  # fmt: skip
    return Walk(
        "two-node", "node1/container-1", "outside", "tcp 80", STARTED,
        (Leg("there", hops, arrived=True),), NAMES,
    )  # fmt: skip


def dropped() -> Walk:
    """As :func:`across`, but a rule of node2 drops what is forwarded."""
    walk = across()
    (leg,) = walk.legs
    taken = leg.hops[: next(at for at, hop in enumerate(leg.hops) if hop.spot.machine == "node2")]
    outer = next(hop.view for hop in reversed(leg.hops) if hop.view and hop.view.carrier)
    drop = rule("filter", "FORWARD", 1, "-A FORWARD -s 100.96.1.0/24 -j DROP", "drop")
    hops = (
        *taken,
        Hop("device", Spot("node2", "", "eth0"), "in", 0.000061, outer),
        Hop("device", Spot("node2", "", "flannel.1"), "in", 0.000069, leg.hops[8].view,
            (Change("carrier", "vxlan 1", ""),)),
        Hop("blind", Spot("node2"), "prerouting", None,
            facts=(Fact("nf_tables reports no trace here: the table is owned by another program",
                        "inferred"),)),
        Hop("end", Spot("node2"), "forward", 0.000079, rules=(drop,),
            facts=(Fact("rule 1 of filter FORWARD drops the packet", "seen", "nftrace"),)),
    )  # fmt: skip
    return replace(walk, legs=(Leg("there", hops, arrived=False, copies=2),))


def all_walks() -> dict[str, Walk]:
    return {
        "same-bridge": same_bridge(), "across": across(reply=True), "published": published(),
        "masquerade": masquerade(), "dropped": dropped(),
    }  # fmt: skip
