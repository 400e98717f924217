"""A lab whose nodes have each key that nodes of every provider can have, and what they then are."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from testbed.labs.live import LiveLab
from testbed.labs.status import status

if TYPE_CHECKING:
    from testbed.labs.lab import Lab
    from testbed.nodes.base import Node

DELAY = 20  #: milliseconds, of a network with a delay

#: ``PROVIDER``, ``NAME`` and ``SHAPING`` are to be replaced.
TEXT = """\
name: NAME
provider: PROVIDER
networks:
  lan: {subnet: 10.1.0.0/24, subnet6: "fd00:1::/64"}
  wire: {}
  slow: {subnet: 10.2.0.0/24, SHAPING}
nodes:
  a:
    networks:
      lan: {addresses: [10.1.0.2, 10.1.0.12/32], name: up0, mac: "02:00:00:00:00:0a", mtu: 1400}
      wire: {name: eth5}
      slow: {address: 10.2.0.2, name: slow0}
    forward: true
    sysctls: {net.ipv4.conf.all.rp_filter: 2}
    routes: [10.9.0.0/16 via 10.1.0.3]
    rules: [from 10.1.0.12 lookup 100]
    files:
      /etc/app.conf: {content: "hi\\n", mode: "0640", owner: "root:adm"}
      /usr/local/bin/hello: {content: "#!/bin/sh\\necho hello $$WORD\\n", mode: "0755"}
    env: {WORD: world}
    run: [{command: ip link add d0 type bridge, done: ip link show d0}]
    services: {beat: {command: [sleep, "100000"]}}
  b: {networks: {lan: 10.1.0.3, wire: {}, slow: {address: 10.2.0.3, name: slow0}}}
"""


def text(provider: str, shaping: str) -> str:
    named = TEXT.replace("PROVIDER", provider).replace("NAME", f"say-{provider}"[:30])
    return named.replace("SHAPING", shaping)


def check(lab: Lab, queue: str) -> None:
    """The nodes are as the file says; ``queue`` is the kind of the queue of the slow links."""
    assert status(lab.context()).ok
    live = LiveLab(lab.context())
    try:
        a, b = live.node("a"), live.node("b")
        _check_ports(a, b, queue)
        _check_settings(a)
        for address in ("10.1.0.2", "10.1.0.12", "fd00:1::2"):
            assert b.run(["ping", "-c3", "-W5", address]).ok
    finally:
        live.close()


def _check_ports(a: Node, b: Node, queue: str) -> None:
    links = {link["ifname"]: link for link in a.run(["ip", "-j", "address"]).json()}
    assert (links["up0"]["address"], links["up0"]["mtu"]) == ("02:00:00:00:00:0a", 1400)
    assert {one["local"] for one in links["up0"]["addr_info"]} >= {"10.1.0.2", "10.1.0.12"}
    assert "eth5" in links
    assert "d0" in links
    assert {"eth0", "eth1"} <= {link["ifname"] for link in b.run(["ip", "-j", "link"]).json()}
    assert links["slow0"]["qdisc"] == queue
    a.run(["ping", "-c1", "-W5", "10.2.0.3"])  # the answer is found, before one is timed
    rtt = b.run(["ping", "-c3", "-W5", "10.2.0.2"]).stdout.rpartition("rtt ")[2]
    least = float(rtt.partition("= ")[2].partition("/")[0])
    assert queue != "netem" or least >= 2 * DELAY, "both send with the delay"


def _check_settings(a: Node) -> None:
    for name, value in (("ip_forward", "1"), ("conf/all/rp_filter", "2")):
        assert a.get(f"/proc/sys/net/ipv4/{name}").decode().strip() == value
    assert "via 10.1.0.3" in a.run(["ip", "route", "show", "10.9.0.0/16"]).stdout
    assert "10.1.0.12 lookup 100" in a.run(["ip", "rule"]).stdout
    assert a.run(["stat", "-c", "%a %U %G", "/etc/app.conf"]).stdout == "640 root adm\n"
    assert a.run(["hello"]).stdout == "hello world\n"
    assert a.services()["beat"].state == "ready"


def spoil_and_mend(lab: Lab, queue: str) -> None:
    """Lose settings of a node: `status` shows each, and the next `up` restores it."""
    node = lab.context().node("a")
    lines = ("link set dev up0 mtu 1300", "route del 10.9.0.0/16", "rule del from 10.1.0.12")
    node.run(["ip", "-batch", "-"], input="\n".join(lines).encode())
    node.run(["tc", "qdisc", "del", "dev", "slow0", "root"])
    node.run(["rm", "/etc/app.conf"])
    node.stop("beat")
    shown = json.dumps(status(lab.context()).to_dict())
    assert not status(lab.context()).ok
    for word in ("1300", "10.9.0.0/16", "/etc/app.conf", "beat", "slow0"):
        assert word in shown
    lab.up(lab.topology(), keep=True)
    check(lab, queue)
