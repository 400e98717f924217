"""flannel on nodes of different subnets, with a router between them."""

from testbed.observe.capture import capture


def test_a_route_by_the_other_node_needs_it_on_the_same_segment(lab):
    route = ["100.96.2.0/24", "via", "10.2.0.2", "dev", "eth0", "table", "100"]
    done = lab.node("node1").run(["ip", "route", "add", *route], check=False)
    assert not done.ok
    assert "invalid gateway" in done.stderr


def test_vxlan_passes_the_router_as_udp_between_the_nodes(lab):
    one, two = lab.container("one"), lab.container("two")
    with capture(lab.node("router"), "eth1", "udp port 8472") as seen:
        one.run(["ping", "-c1", "-W10", two.address])
    (request,) = [p for p in seen.packets if (p.src, p.dst) == ("10.1.0.2", "10.2.0.2")]
    vni, inner = request.vxlan()
    assert (vni, inner.src, inner.dst) == (1, one.address, two.address)
