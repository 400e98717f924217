"""Fixtures shared by several suites.

A suite that means another node by a name overrides the fixture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from testbed.suites.helpers import docker_node, outside_node

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testbed.labs.live import LiveLab
    from testbed.nodes.base import Node
    from testbed.suites.cluster import Cluster


@pytest.fixture
def node(lab: LiveLab) -> Node:
    """The host: the node with Docker."""
    return docker_node(lab)


@pytest.fixture
def outside(lab: LiveLab) -> Node:
    """The machine outside the host."""
    return outside_node(lab)


@pytest.fixture(scope="session")
def cluster(lab: LiveLab) -> Iterator[Cluster]:
    """The lab's Kubernetes cluster, with the Pods that many checks look at."""
    from testbed.suites.cluster import tenants  # loads TLS and HTTP: only for labs with a cluster

    with tenants(lab) as made:
        yield made
