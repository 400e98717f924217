"""A host with two interfaces and one default route, called by its second address."""

FIRST = {"strict": "10.1.0.5", "loose": "10.1.0.6"}
SECOND = {"strict": "10.2.0.5", "loose": "10.2.0.6"}


def answers(lab, address, seconds=10):
    ping = ["ping", "-c1", "-W", str(seconds), address]
    return lab.node("client").run(ping, check=False).ok


def filtered(lab, host):
    counters = lab.node(host).run(["nstat", "-asjz", "TcpExtIPReversePathFilter"]).json()
    return counters["kernel"]["TcpExtIPReversePathFilter"]


def test_the_strict_filter_drops_what_comes_in_by_the_other_interface(lab):
    before = filtered(lab, "strict")
    assert not answers(lab, SECOND["strict"], seconds=2)
    assert filtered(lab, "strict") > before
    assert answers(lab, FIRST["strict"])


def test_the_loose_filter_accepts_a_source_that_any_interface_reaches(lab):
    before = filtered(lab, "loose")
    assert answers(lab, SECOND["loose"])
    assert answers(lab, FIRST["loose"])
    assert filtered(lab, "loose") == before
