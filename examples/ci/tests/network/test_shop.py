"""The network of the shop: who reaches whom, and what happens if a link is cut."""

API = "http://10.168.0.3:8000/"
NO_ANSWER = (7, 28)  # curl(1): failed to connect, timeout


def test_docker_runs(host):
    """On each node of the lab in turn: testinfra's own fixture."""
    assert host.service("docker").is_running


def test_the_front_end_reaches_the_api(lab):
    page = lab.container("web").run(["curl", "-s", API]).json()
    assert page["name"] == "api"
    assert page["client"].startswith("10.168.0.2:")  # Docker translates the container's address


def test_only_the_published_port_of_the_api_is_open(lab):
    back = lab.node("front").host.addr("10.168.0.3")
    assert back.port(8000).is_reachable
    assert not back.port(80).is_reachable


def test_a_cut_link_ends_in_a_timeout(lab, fault):
    fault("cut")  # from lab.yaml; healed at the end of the test
    page = lab.container("web").run(["curl", "-s", "-m1", API], check=False)
    assert page.status in NO_ANSWER
