"""Three Docker hosts in a swarm, and services on them.

Ports are those of the nodes: the ingress network and virtual addresses need the kernel's IP_VS.
"""

import pytest

from testbed.polling import until

NODES = {"manager1": "192.168.56.111", "worker1": "192.168.56.112", "worker2": "192.168.56.113"}
SECONDS = 120


def docker(lab, *words):
    return lab.node("manager1").run(["docker", *words]).stdout


@pytest.fixture(scope="module")
def web(lab):
    docker(
        lab, "service", "create", "--detach", "--quiet", "--name", "web", "--mode", "global",
        "--endpoint-mode", "dnsrr", "--publish", "mode=host,target=80,published=8080", "nginx",
    )  # fmt: skip
    yield
    docker(lab, "service", "rm", "web")


def tasks(lab):
    listed = docker(lab, "service", "ps", "web", "--format", "{{.Node}} {{.CurrentState}}")
    return {line.split()[0] for line in listed.splitlines() if " Running" in line}


def test_all_nodes_are_in_the_swarm(lab):
    listed = docker(lab, "node", "ls", "--format", "{{.Hostname}} {{.Status}} {{.ManagerStatus}}")
    found = [line.split() for line in listed.splitlines()]
    assert {line[0]: line[1:] for line in found} == {
        "manager1": ["Ready", "Leader"],
        "worker1": ["Ready"],
        "worker2": ["Ready"],
    }


def test_the_service_answers_on_each_node(lab, web):
    assert until(lambda: tasks(lab) == NODES.keys(), SECONDS), tasks(lab)
    for node in NODES:
        for address in NODES.values():
            page = lab.node(node).run(["curl", "-fsS", "-m", "10", f"http://{address}:8080/"])
            assert page.json()["server"]


def test_a_drained_node_has_no_task(lab, web):
    docker(lab, "node", "update", "--availability", "drain", "worker2")
    try:
        assert until(lambda: tasks(lab) == {"manager1", "worker1"}, SECONDS), tasks(lab)
    finally:
        docker(lab, "node", "update", "--availability", "active", "worker2")
    assert until(lambda: tasks(lab) == NODES.keys(), SECONDS), tasks(lab)
