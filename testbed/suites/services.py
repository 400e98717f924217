"""Helpers for the checks of Services: kube-proxy's rules, many connections, DNS."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dpkt
import yaml

from testbed.claims.observation import Observation
from testbed.errors import LabError
from testbed.suites import helpers
from testbed.suites.helpers import patient, rules

if TYPE_CHECKING:
    from testbed.nodes.base import Node
    from testbed.nodes.place import Runs
    from testbed.suites.cluster import Cluster
    from testbed.suites.helpers import Rule

CHANCE = 1e-9  #: accepted probability that chance alone leaves out one of a Service's Pods
A, CNAME, SRV = dpkt.dns.DNS_A, dpkt.dns.DNS_CNAME, dpkt.dns.DNS_SRV
#: Maps in which kube-proxy looks up an address or a node port, and iptables' chains for that.
MAPS = ("service-ips", "service-nodeports")
CHAINS = ("KUBE-SERVICES", "KUBE-NODEPORTS")
#: Sends a query (hex) to a server, again each second, and prints the answer in hex.
QUERY = """
import socket, sys, time
end = time.monotonic() + float(sys.argv[2])
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
    asked.settimeout(1)
    asked.connect((sys.argv[1], 53))
    while True:
        try:
            asked.send(bytes.fromhex(sys.argv[3]))
            print(asked.recv(65536).hex())
            break
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)
"""


# -- waiting ----------------------------------------------------------------------


def served(cluster: Cluster, observe: Observation, name: str) -> Mapping[str, Any]:
    """Return a Service's ``spec`` once the rules of every node are complete.

    They are if they lead its first port to its ready Pods, and nowhere else.  Raises Unsettled if
    they never do: until then the Service can't be judged.
    """
    found = cluster.find("Service", name)
    if found is None:
        raise LabError(f"there is no Service {name}", hint="it has been deleted meanwhile")
    spec: Mapping[str, Any] = found["spec"]
    port = spec["ports"][0]["port"]

    def so() -> bool:
        wanted = set(cluster.endpoints(name))
        return bool(wanted) and all(
            set(map(host, destinations(cluster, node, port, spec["clusterIP"]))) == wanted
            for node in cluster.nodes
        )

    cluster.until(so, f"rules of every node that lead the Service {name} to its Pods alone")
    observe.note(f"the Service {name}", spec)
    return spec


def wait_led(cluster: Cluster, node: Node, port: int, address: str = "") -> None:
    """Wait until a node's rules lead a port of an address, or of the node, to any Pod."""
    where = f"{address}:{port}" if address else f"port {port} of {node.name}"
    what = f"rules of {node.name} that lead {where} somewhere"
    cluster.until(lambda: destinations(cluster, node, port, address), what)


# -- kube-proxy's rules -----------------------------------------------------------


def host(destination: str) -> str:
    """Return the address of ADDRESS:PORT."""
    return destination.rpartition(":")[0]


def destinations(cluster: Cluster, node: Node, port: int, address: str = "") -> list[str]:
    """Return the destinations of a node's rules for a TCP port of an address.

    They are ADDRESS:PORT.  Without an address it is a port of the node itself.
    """
    if cluster.spec.proxy == "nftables":
        listed = node.run(["nft", "-j", "list", "table", "ip", "kube-proxy"], check=False)
        return nft_destinations(listed.json()["nftables"] if listed.ok else [], port, address)
    return iptables_destinations(rules(Observation(), node, "nat"), port, address)


def nft_destinations(
    listed: Sequence[Mapping[str, Any]], port: int, address: str = ""
) -> list[str]:
    """Return :func:`destinations` from ``nft -j list table`` (libnftables-json(5))."""
    chains: dict[str, list[Any]] = {}
    start: list[Any] = []
    key = [*([address] if address else []), "tcp", port]
    for item in listed:
        if "rule" in item:
            chains.setdefault(item["rule"]["chain"], []).append(item["rule"]["expr"])
        elif item.get("map", {}).get("name") in MAPS:
            for element, verdict in item["map"].get("elem", ()):
                if element.get("elem", {}).get("val", element).get("concat") == key:
                    start.append(verdict)
    return _follow(start, lambda chain: chains.get(chain, []))


def iptables_destinations(found: Sequence[Rule], port: int, address: str = "") -> list[str]:
    """Return :func:`destinations` from the rules of iptables' table ``nat``."""
    chains: dict[str, list[Any]] = {}
    start: list[Any] = []
    for rule in found:
        step: Any = {"goto": {"target": rule.target}}
        if rule.target == "DNAT":
            to, _, number = rule.get("--to-destination").rpartition(":")
            step = {"dnat": {"addr": to, "port": number}}
        chains.setdefault(rule.chain, []).append(step)
        if (
            rule.chain == CHAINS[not address]
            and rule.get("--dport") == str(port)
            and rule.get("-d") == (f"{address}/32" if address else "")
        ):
            start.append(step)
    return _follow(start, lambda chain: chains.get(chain, []))


def _follow(start: object, chain: Callable[[str], object]) -> list[str]:
    """Return all destinations of expressions, through all chains they lead to, sorted."""
    found: set[str] = set()
    passed: set[str] = set()
    ways = [start]
    while ways:
        for kind, body in _steps(ways.pop()):
            if kind == "dnat":
                found.update(_chosen(body))
            elif body["target"] not in passed:
                passed.add(body["target"])
                ways.append(chain(body["target"]))
    return sorted(found)


def _chosen(body: Mapping[str, Any]) -> Iterator[str]:
    """Yield the destinations of a translation: one Pod, or a map with a random key."""
    address = body["addr"]
    if isinstance(address, Mapping):
        for _, value in address["map"]["data"]["set"]:
            yield ":".join(map(str, value["concat"]))
    else:
        yield f"{address}:{body['port']}"


def _steps(expression: object) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the translations and jumps in an expression, at any depth."""
    if isinstance(expression, Mapping):
        for key, value in expression.items():
            if key in {"goto", "jump", "dnat"}:
                yield key, value
            else:
                yield from _steps(value)
    elif isinstance(expression, list):
        for one in expression:
            yield from _steps(one)


# -- many connections ---------------------------------------------------------------


def enough(pods: int, chance: float = CHANCE) -> int:
    """Return how many connections make it unlikely that chance leaves out a Pod.

    The probability is at most ``chance``.  Each of ``pods`` is left out by n connections with
    probability (1 - 1/pods)**n, so that one of them is with at most ``pods`` times that.

    >>> enough(1), enough(2), enough(3)
    (1, 31, 54)
    """
    if pods < 2:
        return 1
    return math.floor(math.log(chance / pods) / math.log(1 - 1 / pods)) + 1


@dataclass(frozen=True, slots=True)
class Answer:
    """The outcome of one connection; ``name`` is the server's, "" without an answer.

    ``remote`` is the server's address, ``port`` the client's own.
    """

    name: str
    client: str
    remote: str
    port: int


SEEN = '{"remote": "%{remote_ip}", "port": %{local_port}}\\n'


def ask(
    observe: Observation, where: Runs, url: str, *, count: int = 1, seconds: float | None = None
) -> list[Answer]:
    """Fetch the page at ``url`` ``count`` times, each time over a new connection.

    It stops after the first that is not answered within ``seconds``.
    """
    limit = patient(where, helpers.LATE if seconds is None else seconds)
    argv = ["curl", "-sS", "--noproxy", "*", "--max-time", f"{limit:g}", "--fail-early"]
    argv += ["-H", "Connection: close", "-w", SEEN, f"{url}?[1-{count}]"]
    return answers(observe.run(where, argv, check=False).stdout)


def answers(printed: str) -> list[Answer]:
    """Parse curl's output into answers: a page, if one came, and the fields of SEEN."""
    found: list[Answer] = []
    page: dict[str, Any] = {}
    for line in printed.splitlines():
        said = json.loads(line)
        if "remote" in said:
            client = host(page.get("client", ""))
            found.append(Answer(page.get("name", ""), client, said["remote"], said["port"]))
            page = {}
        else:
            page = said
    return found


def names(found: Sequence[Answer]) -> list[str]:
    """Return the servers' names, each once, sorted; "" stands for no answer."""
    return sorted({one.name for one in found}) or [""]


# -- names ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Records:
    """A DNS answer: the response code, and the records of the requested type.

    ``code`` is None without an answer.
    """

    code: int | None
    found: tuple[str, ...] = ()


def lookup(observe: Observation, where: Runs, server: str, name: str, kind: int = A) -> Records:
    """Query a name server; an SRV record is returned as PORT TARGET."""
    query = dpkt.dns.DNS(id=1, op=dpkt.dns.DNS_RD, qd=[dpkt.dns.DNS.Q(name=name, type=kind)])
    limit = f"{patient(where, helpers.LATE):g}"
    result = where.run(["python3", "-c", QUERY, server, limit, bytes(query).hex()], check=False)
    said = records(bytes.fromhex(result.stdout), kind) if result.ok else Records(None)
    observe.note(f"{where.name}: {server} is asked for {name}, type {kind}", repr(said))
    return said


def records(answer: bytes, kind: int) -> Records:
    """Decode a DNS answer."""
    said = dpkt.dns.DNS(answer)
    found = [one for one in said.an if one.type == kind]
    if kind == SRV:
        texts = [f"{one.port} {one.srvname}" for one in found]
    elif kind == CNAME:
        texts = [str(one.cname) for one in found]
    else:
        texts = [".".join(map(str, one.rdata)) for one in found]
    return Records(said.rcode, tuple(sorted(texts)))


def wait_known(cluster: Cluster, where: Runs, name: str, kind: int = A, count: int = 1) -> None:
    """Wait until the cluster's DNS has that many records for a name."""
    server = str(cluster.spec.dns)

    def so() -> bool:
        return len(lookup(Observation(), where, server, name, kind).found) >= count

    cluster.until(so, f"{name} in the cluster's DNS")


# -- manifests -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest of document 004 (its ``lines``); ``corrections`` lists corrections."""

    name: str
    lines: str
    printed: str
    corrected: str
    corrections: tuple[str, ...]


@functools.cache
def manifests() -> tuple[Manifest, ...]:
    """Return the six manifests, in the document's order."""
    path = Path(__file__).parent / "manifests" / "004.yaml"
    found = yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader)
    return tuple(Manifest(**{**one, "corrections": tuple(one["corrections"])}) for one in found)
