"""Two PCs, with two routers between them that know each other's subnet from the file."""


def test_the_pcs_reach_each_other_through_both_routers(lab):
    for node, address in (("pc1", "200.1.1.7"), ("pc2", "195.11.14.5")):
        assert "ttl=62" in lab.node(node).run(["ping", "-c1", "-W5", address]).stdout


def test_without_its_route_a_router_answers_that_it_has_none(lab):
    router, route = lab.node("r1"), ["200.1.1.0/24", "via", "100.0.0.10"]
    router.run(["ip", "route", "del", *route])
    try:
        said = lab.node("pc1").run(["ping", "-c1", "-W5", "200.1.1.7"], check=False)
        assert not said.ok
        assert "From 195.11.14.1" in said.stdout
        assert "Unreachable" in said.stdout
    finally:
        router.run(["ip", "route", "add", *route])
