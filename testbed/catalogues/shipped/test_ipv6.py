"""IPv6 of containers (document ipv6): flannel and Docker with both IP families.

For the lab two-node-ipv6.
"""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING, Any

import pytest

from testbed.suites.helpers import client_of, fetch, link, published
from testbed.suites.overlay import End, ends

if TYPE_CHECKING:
    from testbed.claims.observation import Observation
    from testbed.labs.live import LiveContainer, LiveLab

FIRST, SECOND = "flannel.1", "flannel-v6.1"


def host_address(lab: LiveLab, end: End) -> str:
    """Return the IPv6 address of a host on the lab's network."""
    (address,) = lab.topology.nodes[end.name].addresses6
    return str(address)


def own_address(observe: Observation, container: LiveContainer) -> str:
    """Return the IPv6 address of a container that is not link-local."""
    argv = ["ip", "-j", "-6", "addr", "show", "dev", "eth0", "scope", "global"]
    shown = observe.json(container, argv) or []
    found = [one for each in shown for one in each["addr_info"] if one]  # {} for one left out
    assert len(found) == 1, f"{container.name} has {len(found)} addresses of IPv6"
    return str(found[0]["local"])


def page(
    observe: Observation, where: LiveContainer | End, address: str, port: int
) -> dict[str, Any] | None:
    """Fetch the page of a server at an IPv6 address; None if none comes."""
    place = where.node if isinstance(where, End) else where
    return fetch(observe, place, f"http://[{address}]:{port}/")


def sees(answer: dict[str, Any] | None, client: str) -> bool:
    """Tell whether the server saw this address of its client."""
    if not answer:
        return False
    seen = ip_address(client_of(answer).strip("[]"))
    # A server whose socket is for both families sees a client of IPv4 as a mapped address.
    mapped = seen.ipv4_mapped if isinstance(seen, IPv6Address) else None
    return (mapped or seen) == ip_address(client)


@pytest.mark.testbed_claim("ipv6-second-vxlan-device")
@pytest.mark.testbed_needs("flannel-vxlan", "flannel-ipv6")
def test_a_second_device_has_the_settings_of_the_first(lab: LiveLab, observe: Observation) -> None:
    for end in ends(lab):
        four, six = (
            link(observe, end.node, name).get("linkinfo", {}).get("info_data", {})
            for name in (FIRST, SECOND)
        )
        same = bool(four) and all(four[key] == six.get(key) for key in ("id", "port"))
        observe.holds(same, f"{SECOND} of {end.name} has the VNI and the port of {FIRST}")
        own = host_address(lab, end)
        observe.holds(six.get("local6") == own, f"and sends from the host's address {own}")


@pytest.mark.testbed_claim("ipv6-route-to-other-host")
@pytest.mark.testbed_needs("flannel-vxlan", "flannel-ipv6")
def test_the_other_subnet_is_behind_the_second_device(lab: LiveLab, observe: Observation) -> None:
    for here, there in (ends(lab), ends(lab)[::-1]):
        target = own_address(observe, there.container)
        route = observe.json(here.node, ["ip", "-j", "-6", "route", "get", target])[0]
        observe.holds(route["dev"] == SECOND, f"{here.name} reaches {target} by {SECOND}")
        entries = observe.json(here.node, ["bridge", "-j", "fdb", "show", "dev", SECOND]) or []
        far = host_address(lab, there)
        known = any(entry.get("dst") == far for entry in entries)
        observe.holds(known, f"an entry of {SECOND} sends frames to {far}")


@pytest.mark.testbed_claim("ipv6-containers-reach-each-other")
@pytest.mark.testbed_needs("docker", "flannel-ipv6")
def test_containers_reach_each_other_with_their_addresses(
    lab: LiveLab, observe: Observation
) -> None:
    for here, there in (ends(lab), ends(lab)[::-1]):
        client, server = here.container, there.container
        mine, theirs = own_address(observe, client), own_address(observe, server)
        answer = page(observe, client, theirs, 80)
        observe.holds(
            answer and answer["name"] == server.name, f"{client.name} fetches {server.name}'s page"
        )
        observe.holds(sees(answer, mine), f"the server sees {mine}")


@pytest.mark.testbed_claim("ipv6-published-port")
@pytest.mark.testbed_needs("docker", "flannel-ipv6")
def test_a_published_port_answers_over_ipv6(lab: LiveLab, observe: Observation) -> None:
    client, server = ends(lab)
    container, port = published(lab, server.node)
    answer = page(observe, client, host_address(lab, server), port.host_port)
    observe.holds(answer and answer["name"] == container.name, "the published port answers")
    own = host_address(lab, client)
    observe.holds(sees(answer, own), f"the container sees the client's address {own}")


@pytest.mark.testbed_claim("ipv6-masquerade-to-hosts")
@pytest.mark.testbed_needs("docker", "flannel-ipv6")
def test_packets_to_a_host_have_the_address_of_the_own_host(
    lab: LiveLab, observe: Observation
) -> None:
    client, server = ends(lab)
    _, port = published(lab, server.node)
    answer = page(observe, client.container, host_address(lab, server), port.host_port)
    own = host_address(lab, client)
    observe.holds(sees(answer, own), f"the server sees {own}, the address of {client.name}")
