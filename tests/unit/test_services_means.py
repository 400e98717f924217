"""Helpers of the suite of Services: rules followed, answers decoded, manifests read."""

from __future__ import annotations

import math
import random
from typing import Any

import dpkt
import pytest
import yaml

from testbed.suites import cluster, helpers, services
from testbed.suites.services import Answer, Records

# -- rules ------------------------------------------------------------------------


def goto(chain: str) -> dict[str, Any]:
    return {"goto": {"target": chain}}


def nft_rule(chain: str, *expressions: Any) -> dict[str, Any]:
    return {"rule": {"chain": chain, "expr": list(expressions)}}


def dnat(address: str, port: int) -> dict[str, Any]:
    return {"dnat": {"addr": address, "port": port}}


def any_of(*pods: int) -> dict[str, Any]:
    """One of some Pods at random."""
    ends = [[at, {"concat": [f"10.1.0.{pod}", 8]}] for at, pod in enumerate(pods)]
    key = {"numgen": {"mode": "random", "mod": len(pods), "offset": 0}}
    return {"dnat": {"family": "ip", "addr": {"map": {"key": key, "data": {"set": ends}}}}}


#: As nft 1.0.6 prints kube-proxy's table: one Service with two Pods, with one port of the nodes.
LISTED: list[dict[str, Any]] = [
    {"metainfo": {"version": "1.0.6"}},
    {"table": {"family": "ip", "name": "kube-proxy"}},
    {
        "map": {
            "name": "service-ips",
            "elem": [
                [
                    {
                        "elem": {
                            "val": {"concat": ["10.97.1.1", "tcp", 80]},
                            "comment": "checks/web:",
                        }
                    },
                    goto("service-web"),
                ],
                [{"concat": ["10.97.1.1", "tcp", 81]}, goto("endpoint-2")],
                [{"concat": ["10.97.1.1", "tcp", 83]}, goto("sticky-web")],
            ],
        }
    },
    {
        "map": {
            "name": "service-nodeports",
            "elem": [[{"concat": ["tcp", 30080]}, goto("external-web")]],
        }
    },
    {"map": {"name": "no-endpoint-services"}},
    {"chain": {"name": "service-web"}},
    nft_rule("external-web", {"jump": {"target": "mark-for-masquerade"}}),
    nft_rule("external-web", goto("service-web")),
    nft_rule("mark-for-masquerade", {"mangle": {"key": {"meta": {"key": "mark"}}, "value": 1}}),
    nft_rule("service-web", {"match": {"op": "==", "left": {}, "right": "tcp"}}, any_of(1, 2)),
    nft_rule(
        "sticky-web",
        {
            "vmap": {
                "key": {"numgen": {"mode": "random", "mod": 2, "offset": 0}},
                "data": {"set": [[0, goto("endpoint-1")], [1, goto("endpoint-2")]]},
            }
        },
    ),
    nft_rule(
        "endpoint-1", {"match": {"op": "==", "left": {}, "right": "tcp"}}, dnat("10.1.0.1", 8)
    ),
    nft_rule("endpoint-2", dnat("10.1.0.2", 8)),
    nft_rule("endpoint-3", dnat("10.1.0.3", 8)),
]
BOTH = ["10.1.0.1:8", "10.1.0.2:8"]


@pytest.mark.parametrize(
    ("port", "address", "wanted"),
    [
        (80, "10.97.1.1", BOTH),
        (81, "10.97.1.1", BOTH[1:]),
        (82, "10.97.1.1", []),
        (83, "10.97.1.1", BOTH),
        (80, "10.97.1.2", []),
        (30080, "", BOTH),
        (80, "", []),
    ],
)
def test_nftables_leads_from_an_address_to_pods(port: int, address: str, wanted: list[str]) -> None:
    assert services.nft_destinations(LISTED, port, address) == wanted


IPTABLES = """\
[0:0] -A KUBE-SERVICES -d 10.97.1.1/32 -p tcp -m comment --comment "checks/web cluster IP" -m tcp --dport 80 -j KUBE-SVC-WEB
[0:0] -A KUBE-SERVICES -m comment --comment "node ports" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
[0:0] -A KUBE-NODEPORTS -d 127.0.0.0/8 -p tcp -m tcp --dport 30081 -j KUBE-EXT-WEB
[0:0] -A KUBE-NODEPORTS -p tcp -m comment --comment "checks/web" -m tcp --dport 30080 -j KUBE-EXT-WEB
[0:0] -A KUBE-EXT-WEB -m comment --comment "masquerade" -j KUBE-MARK-MASQ
[0:0] -A KUBE-EXT-WEB -j KUBE-SVC-WEB
[0:0] -A KUBE-SVC-WEB ! -s 10.1.0.0/16 -d 10.97.1.1/32 -p tcp -m tcp --dport 80 -j KUBE-MARK-MASQ
[0:0] -A KUBE-SVC-WEB -m statistic --mode random --probability 0.50000000000 -j KUBE-SEP-1
[0:0] -A KUBE-SVC-WEB -m comment --comment "checks/web -> 10.1.0.2:8" -j KUBE-SEP-2
[0:0] -A KUBE-SEP-1 -s 10.1.0.1/32 -j KUBE-MARK-MASQ
[0:0] -A KUBE-SEP-1 -p tcp -m tcp -j DNAT --to-destination 10.1.0.1:8
[0:0] -A KUBE-SEP-2 -p tcp -m tcp -j DNAT --to-destination 10.1.0.2:8
[0:0] -A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
"""  # noqa: E501  as it is printed


@pytest.mark.parametrize(
    ("port", "address", "wanted"),
    [
        (80, "10.97.1.1", BOTH),
        (81, "10.97.1.1", []),
        (80, "10.97.1.2", []),
        (30080, "", BOTH),
        (30081, "", []),  # of the loopback address alone
        (80, "", []),
    ],
)
def test_iptables_leads_from_an_address_to_pods(port: int, address: str, wanted: list[str]) -> None:
    found = [helpers._rule("nat", line) for line in IPTABLES.splitlines()]
    assert services.iptables_destinations(found, port, address) == wanted


def test_chains_that_lead_round_have_an_end() -> None:
    listed = [*LISTED, nft_rule("endpoint-2", goto("service-web"))]
    assert services.nft_destinations(listed, 80, "10.97.1.1") == BOTH


# -- connections --------------------------------------------------------------------


@pytest.mark.parametrize("pods", [1, 2, 3, 10])
def test_as_many_connections_as_chance_asks_for_and_no_more(pods: int) -> None:
    count = services.enough(pods)

    def left_out(connections: int) -> float:
        return pods * (1 - 1 / pods) ** connections

    assert left_out(count) < services.CHANCE
    assert pods == 1 or left_out(count - 1) >= services.CHANCE


def test_fewer_are_enough_where_more_is_left_to_chance() -> None:
    seed = random.Random(4)
    count = services.enough(2, 0.1)
    missed = sum(len({seed.random() < 0.5 for _ in range(count)}) == 1 for _ in range(1000))
    assert count == math.ceil(math.log2(2 / 0.1))
    assert missed < 100


def test_what_curl_prints_of_several_connections() -> None:
    printed = (
        '{"name": "web-1", "server": "10.1.0.1:80", "client": "10.1.0.9:40000"}\n'
        '{"remote": "10.97.1.1", "port": 40000}\n'
        '{"remote": "", "port": -1}\n'
    )
    found = services.answers(printed)
    assert found == [Answer("web-1", "10.1.0.9", "10.97.1.1", 40000), Answer("", "", "", -1)]
    assert services.names(found) == ["", "web-1"]
    assert services.names(services.answers("")) == [""]


# -- names --------------------------------------------------------------------------


def answer(*found: dpkt.dns.DNS.RR, code: int = 0) -> bytes:
    said = dpkt.dns.DNS(id=1, qr=1, an=list(found))
    said.rcode = code
    return bytes(said)


def test_addresses_and_other_names_are_decoded() -> None:
    name = "web.checks.svc.cluster.local"
    alias = dpkt.dns.DNS.RR(name=name, type=services.CNAME, cname="example.org")
    one, two = (
        dpkt.dns.DNS.RR(name=name, type=services.A, ip=bytes([10, 1, 0, last])) for last in (2, 1)
    )
    both = Records(0, ("10.1.0.1", "10.1.0.2"))
    assert services.records(answer(alias, one, two), services.A) == both
    assert services.records(answer(alias, one), services.CNAME) == Records(0, ("example.org",))


def test_a_port_is_told_with_where_it_is() -> None:
    name = "_http._tcp.web.checks.svc.cluster.local"
    found = dpkt.dns.DNS.RR(
        name=name, type=services.SRV, srvname="web.checks", priority=0, weight=100, port=80
    )
    assert services.records(answer(found), services.SRV) == Records(0, ("80 web.checks",))


def test_there_may_be_no_such_name() -> None:
    said = services.records(answer(code=dpkt.dns.DNS_RCODE_NXDOMAIN), services.A)
    assert said == Records(3)


# -- manifests ------------------------------------------------------------------------


def test_mended_manifests_are_objects_of_the_names_that_are_printed() -> None:
    found = services.manifests()
    kinds = [yaml.safe_load(one.corrected)["kind"] for one in found]
    assert kinds == ["Deployment", "Service", "Pod"] * 2
    for one in found:
        assert yaml.safe_load(one.corrected)["metadata"]["name"] == one.name
        assert f"name:{one.name}\n" in one.printed
        assert one.corrections


def test_mended_manifests_say_what_is_printed_and_what_was_added() -> None:
    added = {"imagePullPolicy:IfNotPresent"}

    def words(text: str) -> set[str]:
        """Return the lines without the blanks and signs of YAML and of a shell."""
        lines = (line.partition("#")[0] for line in text.splitlines())
        bare = (line.replace(" ", "").removeprefix("|-").strip("-'").rstrip("'{") for line in lines)
        return {line for line in bare if line not in {"", "|", "}"}}

    for one in services.manifests():
        assert words(one.corrected) - words(one.printed) <= added, one.name
        assert words(one.printed) <= words(one.corrected), one.name


# -- Pods --------------------------------------------------------------------------


def test_the_ports_that_a_pods_own_servers_listen_on() -> None:
    assert cluster.servers(cluster.pod("plain")) == [80]
    both = [cluster.web("a"), cluster.sleeper(), cluster.web("b", 8080)]
    assert cluster.servers(cluster.pod("both", containers=both)) == [80, 8080]
    other = {"name": "c", "image": "other", "args": ["serve"]}
    assert cluster.servers(cluster.pod("other", containers=[other])) == []
