"""A run as ``verify --json`` writes it, small, with something of everything that a report shows."""

from __future__ import annotations

import json
from typing import Any

from walks import across

from testbed.claims.model import WALK
from testbed.report.data import VERSION

PATH = across(reply=True)
EVIL = """</script><script>document.title = 'taken'</script><img src=x onerror=alert(1)> & "'"""
CAPTURE = "\n".join([
    "1795296063.504508 02:42:ac:11:00:02 > ff:ff:ff:ff:ff:ff "
    "ARP who-has 172.17.0.3 tell 172.17.0.2",
    "1795296063.504614 02:42:ac:11:00:02 > 02:42:ac:11:00:03 172.17.0.2:46036 > 172.17.0.3:80 "
    "TCP SYN ttl 64 ip-id 14009 length 60",
    "1795296063.505108 172.17.0.3 > 172.17.0.2 ICMP 0/0 id 7 seq 1 ttl 63 ip-id 9 length 84",
])  # fmt: skip


def claim(id: str, document: str, verdict: str | None = "confirmed", **more: Any) -> dict[str, Any]:
    return {
        "id": id,
        "document": document,
        "place": "1.1 Bridges, line 9",
        "claim": f"The statement of {id}.",
        "kind": "state",
        "needs": ["docker"],
        "expect": verdict or "confirmed",
        "check": f"How {id} is checked.",
        "why": "" if verdict == "confirmed" else f"What is so with {id}.",
        "quoted": [],
        "otherwise": [],
        "translations": {},
        "verdict": verdict,
        "as_expected": True,
        **more,
    }


def document(id: str, title: str, **more: Any) -> dict[str, Any]:
    empty: dict[str, Any] = {"titles": {}, "link": ""}
    return {"id": id, "title": title, "language": "en", "claims_in": "en", **empty, **more}


def finding(claim: str, verdict: str | None = "confirmed", **more: Any) -> dict[str, Any]:
    return {
        "claim": claim,
        "verdict": verdict,
        "seconds": 0.012,
        "reason": "",
        "problem": "",
        "evidence": [piece("host# ip -j link", f'[{{"ifname":"docker0-{claim}"}}]')],
        "measurements": [],
        "expected": verdict,
        "why": "" if verdict == "confirmed" else f"What is so with {claim}.",
        "as_expected": True,
        **more,
    }


def piece(what: str, seen: str) -> dict[str, str]:
    return {"what": what, "seen": seen}


def link(name: str, index: int, kind: str = "", *addresses: str, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "index": index,
        "kind": kind,
        "mac": "",
        "mtu": 1500,
        "up": True,
        "master": "",
        "addresses": list(addresses),
        **more,
    }


def node(name: str, **more: Any) -> dict[str, Any]:
    empty: dict[str, Any] = {"links": [], "routes": [], "spaces": [], "pairs": [], "error": ""}
    return {"name": name, "roles": [], "gateway": False, **empty, **more}


def graph() -> dict[str, Any]:
    """A node with Docker, in each mode a container, and one outside."""
    eth0 = link("eth0", 2, "", "172.17.0.2/16")
    host = node(
        "host",
        roles=["docker"],
        links=[
            link("eth0", 2, "veth", "10.168.0.2/24"),
            link("docker0", 3, "bridge", "172.17.0.1/16"),
            link("veth1", 5, "veth", master="docker0"),
        ],
        routes=[{"to": "default", "via": "10.168.0.1", "dev": "eth0"}],
        spaces=[
            {"name": "web", "kind": "container", "mode": "bridge", "links": [eth0],
             "published": ["8080:80/tcp"]},
            {"name": "sidecar", "kind": "container", "mode": "container", "links": [],
             "published": [], "shares": "web"},
            {"name": "alone", "kind": "container", "mode": "none", "links": [], "published": []},
            {"name": "guest", "kind": "container", "mode": "host", "links": [], "published": []},
        ],
        pairs=[[["", "veth1"], ["web", "eth0"]]],
    )  # fmt: skip
    outside = node("outside", gateway=True, links=[link("eth0", 2, "veth", "10.168.0.1/24")])
    return {
        "networks": [{"name": "lan", "subnet": "10.168.0.0/24"}],
        "nodes": [host, outside],
        "overlay": None,
    }


def lab(name: str, findings: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {
        "lab": name,
        "topology": {"name": name, "description": f"What {name} is."},
        "facts": {"docker": "20.10.24", "firewall": "iptables-nft", "provider": "netns"},
        "versions": {"docker": "20.10.24+dfsg1", "etcd": "3.4.23"},
        "picture": {},
        "up": 0.61,
        "seconds": 2.5,
        "down": 0.03,
        "error": "",
        "interrupted": False,
        "findings": findings,
        "checks": [],
        "elsewhere": [],
        "broken": [],
        **more,
    }


def run(**more: Any) -> dict[str, Any]:
    """Eight claims of two documents on two labs, all as expected.

    ``differs`` ends otherwise on the second lab, ``evil`` has a text that
    would be markup, ``same`` has the very same evidence on both.
    """
    measured = {
        "what": "TCP from outside, one stream",
        "unit": "Gbit/s",
        "series": {
            "published port": [9.1, 9.4, 9.0, 9.3, 9.2],
            "host mode": [14.2, 14, 15, 14, 13],
        },
        "better": "higher",
    }
    said = "Since Docker 28 such packets are dropped."
    decided = [
        piece("tcpdump on host:docker0", CAPTURE),
        piece("holds", "docker0 is there"),
        piece("fails when", "the rule is gone"),
    ]
    first = [
        finding("same"),
        finding("differs", evidence=decided),
        finding("evil", evidence=[piece(EVIL, EVIL), piece("holds", EVIL)]),
        finding("wrong", "contradicted"),
        finding("maybe", "conditional", evidence=[piece(f"{WALK}{PATH}", PATH.brief())]),
        finding("fast", measurements=[measured]),
        finding("absent", "skipped", expected="confirmed", reason="Skipped: the lab has no etcd"),
    ]
    second = [
        finding("same"),
        finding("differs", "contradicted", why=said, evidence=[piece("does not hold", "a route")]),
    ]
    new = {"docker": "29.8.1", "firewall": "nftables", "provider": "netns"}
    return {
        "version": VERSION,
        "testbed": "0.1.0",
        "started": "2026-11-21T21:30:00Z",
        "seconds": 58.1,
        "interrupted": False,
        "complete": True,
        "machine": {
            "kernel": "6.18.5",
            "system": "Debian GNU/Linux 12",
            "architecture": "x86_64",
            "cpus": 2,
            "memory": 8 << 30,
        },
        "labs": [
            lab("docker-single", first, picture=graph()),
            lab("docker-single-29", second, facts=new, versions={"docker": "29.8.1"}),
        ],
        "catalogues": [],
        "documents": [
            document("000", "Docker网络", language="zh", titles={"en": "Docker networking"}),
            document("003", "Kubernetes networking", link="https://example.com/003"),
        ],
        "claims": [
            claim("same", "000", quoted=["docker0: <BROADCAST>"]),
            claim("differs", "000", "contradicted"),
            claim("evil", "000", claim=EVIL, why=EVIL, check=EVIL, quoted=[EVIL], place=EVIL),
            claim("wrong", "003", "contradicted", claim="The word is `lladrr`."),
            claim("maybe", "003", "conditional", kind="isolation"),
            claim("fast", "003", kind="perf"),
            claim("absent", "003", "skipped"),
            claim("motive", "003", "not testable", kind="definition"),
        ],
        **more,
    }


def broken_run() -> dict[str, Any]:
    """The same with all that can go wrong."""
    data: dict[str, Any] = json.loads(json.dumps(run(interrupted=True)))
    first, second = data["labs"]
    for entry in (data["claims"][0], first["findings"][0]):
        entry |= {"verdict": "contradicted", "as_expected": False}
    first["findings"][0] |= {"expected": "confirmed", "reason": "expected confirmed: docker0 is up"}
    for entry in (data["claims"][4], first["findings"][4]):
        entry |= {"verdict": None, "as_expected": False}
    first["findings"][4]["problem"] = "LabError: the node is gone"
    failed = {"name": "tests/test_a.py::test_it", "outcome": "failed", "seconds": 0.1}
    first["checks"] = [{**failed, "problem": "assert 1 == 2"}]
    second |= {"error": "node1: dockerd died", "broken": ["test_b.py: SyntaxError"]}
    return data
