"""An overlay whose packets do not fit through a switch between the nodes."""


def sent(lab, source, target, size, seconds=10):
    """Send a packet of ``size`` octets, in one piece, from one container to another."""
    ping = ["ping", "-c1", "-W", str(seconds), "-M", "do", "-s", str(size - 28)]
    return lab.container(source).run([*ping, lab.container(target).address], check=False)


def is_refused(done):
    """Tell whether the kernel refused a packet; releases of ping differ in the first letter."""
    return "message too long" in done.stderr.lower()


def mtu(lab, link):
    (device,) = lab.node("node1").run(["ip", "-j", "link", "show", link]).json()
    return device["mtu"]


def test_flannel_takes_the_mtu_of_the_nodes_link(lab):
    assert (mtu(lab, "eth0"), mtu(lab, "flannel.1")) == (1500, 1450)


def test_packets_that_are_too_large_for_the_switch_are_lost(lab):
    assert sent(lab, "one", "two", 1350).ok
    lost = sent(lab, "one", "two", 1400, seconds=2)
    assert not lost.ok
    assert not is_refused(lost)


def test_with_the_mtu_of_the_switch_no_larger_ones_are_sent(lab):
    assert mtu(lab, "flannel.2") == 1350
    assert sent(lab, "three", "four", 1350).ok
    assert is_refused(sent(lab, "three", "four", 1400))
