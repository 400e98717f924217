"""A published port of a container on another host, over flannel's VXLAN."""


def reaches(lab, client, server):
    address = lab.container(server).address
    return lab.container(client).run(["curl", "-sSm2", f"http://{address}/"], check=False).ok


def test_docker_drops_what_comes_in_by_flannels_device(lab):
    assert not reaches(lab, "one", "web")
    raw = lab.node("node2").run(["iptables", "-t", "raw", "-S", "PREROUTING"]).stdout
    assert f"-d {lab.container('web').address}/32 ! -i docker0 -j DROP" in raw


def test_the_host_of_the_container_reaches_it(lab):
    address = lab.container("web").address
    assert lab.node("node2").run(["curl", "-sSm9", f"http://{address}/"]).ok


def test_a_network_that_trusts_flannels_device_is_reached(lab):
    assert reaches(lab, "blue-one", "blue-web")
