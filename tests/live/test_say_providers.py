"""The keys of nodes on the providers of containers; tests/vm has those of virtual machines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from labs import brought_up
from say_keys import check, spoil_and_mend, text

from testbed.topology import load_text

if TYPE_CHECKING:
    from testbed.labs.lab import Lab


@pytest.fixture(
    scope="module",
    params=["netns", pytest.param("containerlab", marks=pytest.mark.thorough)],
)
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    topology = load_text(text(request.param, "rate: 20mbit"), f"{request.param}.yaml")
    yield from brought_up(topology, tmp_path_factory.mktemp("state"))


def test_nodes_are_as_the_file_says(lab: Lab) -> None:
    check(lab, "tbf")


def test_what_is_lost_comes_back(lab: Lab) -> None:
    spoil_and_mend(lab, "tbf")
