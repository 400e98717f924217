"""Verdicts with providers other than the default one are those that are known of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from crash.means import Bed
from verdicts import compare, skipped, verdicts_hold, verified

from testbed.topology import Overrides, load, vary

EXISTING = "ssh"


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[Bed]:
    """A state folder, from which nothing may be left at the end."""
    made = Bed(tmp_path / "state")
    yield made
    made.must("down", "--all")
    assert made.leftovers() == []


@pytest.mark.seconds(60)
@pytest.mark.parametrize(
    ("topology", "options"),
    [
        pytest.param("netns-experiments", (), id="namespaces"),
        *(
            pytest.param(topology, options, id=name, marks=pytest.mark.thorough)
            for name, topology, options in (
                ("vxlan", "two-node", ()),
                ("udp", "two-node", ("--backend", "udp")),
                ("host-gw", "two-node", ("--backend", "host-gw")),
                ("docker", "docker-single", ()),
                ("001", "docker-10-1-27", ()),
                ("ipv6", "two-node-ipv6", ("--docker", "29")),
            )
        ),
    ],
)
def test_containerlab(bed: Bed, tmp_path: Path, topology: str, options: tuple[str, ...]) -> None:
    verdicts_hold(bed, tmp_path, topology, "containerlab", *options)


@pytest.mark.thorough
@pytest.mark.seconds(60)
@pytest.mark.parametrize(
    ("topology", "options"),
    [
        pytest.param("two-node", {}, id="vxlan"),
        pytest.param("two-node", {"backend": "udp"}, id="udp"),
        pytest.param("docker-single", {}, id="docker"),
        pytest.param("docker-10-1-27", {}, id="001"),
        pytest.param("two-node-ipv6", {"docker": "29"}, id="ipv6"),
    ],
)
def test_machines_that_exist(
    bed: Bed, tmp_path: Path, topology: str, options: dict[str, str]
) -> None:
    """They are nodes of a lab, which another lab reaches over ssh."""
    there = vary(load(topology), Overrides(name="there", **options))
    seen = vary(there, Overrides(name="seen", provider=EXISTING)).to_dict()
    seen[EXISTING] = {"config": "ssh_config"}
    file = tmp_path / "seen.yaml"
    file.write_text(json.dumps(seen))
    words = [word for option, value in options.items() for word in (f"--{option}", value)]
    bed.must("up", topology, "--name", "there", *words, "-q")
    bed.must("export", "there", "--to", "ssh-config", "-o", str(tmp_path / "ssh_config"))
    bed.must("up", str(file), "-q")
    doubtful = compare(verified(bed, tmp_path, "seen"), EXISTING)
    assert doubtful - skipped(verified(bed, tmp_path, "there", sorted(doubtful))) == set()
