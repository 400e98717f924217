"""A container on a macvlan network, and its host."""


def answers(place, address):
    return place.run(["ping", "-c1", "-W2", address], check=False).ok


def test_the_host_and_its_container_do_not_reach_each_other(lab):
    assert not answers(lab.node("host"), "172.16.9.149")
    assert not answers(lab.container("tomcat"), "172.16.9.151")


def test_all_other_machines_on_the_segment_reach_both(lab):
    assert answers(lab.node("router"), "172.16.9.149")
    assert answers(lab.node("router"), "172.16.9.151")
    assert answers(lab.container("tomcat"), "172.16.9.1")


def test_a_macvlan_interface_of_the_host_connects_them(lab):
    assert answers(lab.node("mended"), "172.16.9.161")
    assert answers(lab.container("seen"), "172.16.9.153")
