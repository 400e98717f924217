"""Downloads by a container of an engine that runs in a pod."""


def mtu(place):
    (link,) = place.run(["ip", "-j", "link", "show", "eth0"]).json()
    return link["mtu"]


def loads(lab, container, page, seconds=30):
    command = ["curl", "-sSo", "/dev/null", "-m", str(seconds), f"http://192.0.2.9/{page}"]
    return lab.container(container).run(command, check=False).ok


def test_the_inner_engine_takes_1500_although_the_pod_has_1450(lab):
    assert mtu(lab.node("pod")) == 1450
    assert mtu(lab.container("build")) == 1500


def test_its_large_downloads_hang(lab):
    assert loads(lab, "build", "small")
    assert not loads(lab, "build", "large", seconds=3)


def test_with_the_mtu_of_the_pod_they_arrive(lab):
    assert mtu(lab.container("build-fixed")) == 1450
    assert loads(lab, "build-fixed", "small")
    assert loads(lab, "build-fixed", "large")
