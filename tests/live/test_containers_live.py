"""Containers that end, that are expected to, and that are waited for, on a real daemon."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from labs import brought_up

from testbed.errors import ContainerError, StepsFailed
from testbed.labs.status import status
from testbed.topology import Topology, load_text

if TYPE_CHECKING:
    from testbed.labs.lab import Lab

HEAD = """
name: ends
networks: {lan: {subnet: 10.168.0.0/24}}
nodes: {host: {networks: {lan: 10.168.0.2}, roles: [docker]}}
containers:
"""
FINE = """\
  job: {node: host, command: [sh, -c, "sleep 0.2; exit 3"], expect: exit 3}
  server: {node: host, healthcheck: {test: curl -sf localhost, interval: 100ms, retries: 50}}
  checked: {node: host, ready: {port: 80, command: [curl, -sf, localhost]}}
  shares: {node: host, network: "container:server", env: {PORT: "81"}}
"""
#: One container more: its exit status, and a word of the error.
BAD = {
    '{node: host, command: ["false"]}': (1, "exit status 1"),
    '{node: host, command: [sh, -c, "echo hello; sleep 2; echo bye >&2; exit 3"]}': (3, "bye"),
    "{node: host, command: [nosuch]}": (127, "nosuch"),
    '{node: host, command: ["/etc"]}': (126, "permission denied"),
    '{node: host, command: ["true"], expect: exit 1}': (0, "not with 1"),
    '{node: host, healthcheck: {test: "echo sick; exit 1", interval: 100ms, retries: 1}}': (
        None,
        "sick",
    ),
    "{node: host, ready: {port: 7, timeout: 300ms}}": (None, "7/tcp"),
    "{node: host, ready: {port: 7/udp, timeout: 300ms}}": (None, "7/udp"),
    '{node: host, ready: {command: ["false"], timeout: 300ms}}': (None, "false"),
}


def topology(containers: str) -> Topology:
    return load_text(HEAD + containers, "ends.yaml")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    yield from brought_up(topology(FINE), tmp_path_factory.mktemp("state"))


def test_all_is_as_the_file_says_and_stays(lab: Lab) -> None:
    assert lab.up(topology(FINE)).changed == []
    found = status(lab.context())
    assert found.ok
    (node,) = found.nodes
    states = {part.name: (part.state, part.ok) for part in node.containers}
    assert states == {
        "job": ("exited", True),
        "server": ("running", True),
        "checked": ("running", True),
        "shares": ("running", True),
    }


@pytest.mark.parametrize("more", BAD)
def test_one_that_is_not_as_the_file_says_fails_up(lab: Lab, more: str) -> None:
    exit_status, words = BAD[more]
    with pytest.raises(StepsFailed) as caught:
        lab.up(topology(f"{FINE}  more: {more}\n"), replace=True)
    ((_, error),) = caught.value.failures
    assert isinstance(error, ContainerError)
    assert (error.container, error.node, error.status) == ("more", "host", exit_status)
    assert words in str(error)
    lab.up(topology(FINE), replace=True)  # which removes it
    assert status(lab.context()).ok
