"""The keys of nodes on virtual machines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from labs import brought_up
from say_keys import check, spoil_and_mend, text

from testbed.topology import load_text

if TYPE_CHECKING:
    from testbed.labs.lab import Lab

#: Both providers' machines are of the same box; Vagrant takes a minute to bring them up.
PROVIDERS = ["qemu", pytest.param("vagrant", marks=pytest.mark.long)]


@pytest.fixture(scope="module", params=PROVIDERS)
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    topology = load_text(text(request.param), f"{request.param}.yaml")
    yield from brought_up(topology, tmp_path_factory.mktemp("state"))


def test_nodes_are_as_the_file_says(lab: Lab) -> None:
    check(lab)


def test_what_is_lost_comes_back(lab: Lab) -> None:
    spoil_and_mend(lab)
