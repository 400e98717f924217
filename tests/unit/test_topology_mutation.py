"""Random changes to good files: each gives a topology or a TopologyError, nothing else."""

from __future__ import annotations

import contextlib
import os
import random

import pytest

from testbed.errors import TopologyError
from testbed.topology import Topology, load, load_data, load_text, names, source
from testbed.topology.tree import Problems

#: Changes to each file: the same ones each time, and more of them in the long form.
TIMES = 1000 if "TESTBED_LONG" in os.environ else 30
#: Bytes and words that matter to YAML, or to an address, more often than chance would have them.
SPICE = [
    b"\t", b"\n", b"\0", b"\xff", b"\xc3", b"\xef\xbb\xbf", b": ", b"- ", b"? ", b"&a ", b"*a ",
    b"!!str ", b"<<: ", b"---\n", b"...\n", b"{", b"}", b"[", b"]", b'"', b"'", b"|\n", b">\n",
    b"#", b"%", b"@", b"no", b"~", b"010", b"1:30", b"/24", b"0.0.0.0", b"::1", b"999", b"-1",
    b"\\U0010ffff", b"\xe2\x80\xa8", b"\xed\xa0\x80", b"node1", b"flannel", b"container:web",
]  # fmt: skip


def mutate(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        i = rng.randrange(len(out) + 1)
        j = min(len(out), i + rng.randint(0, 12))
        match rng.randrange(5):
            case 0:
                out[i:i] = rng.choice(SPICE)
            case 1:
                del out[i:j]
            case 2:
                out[i:j] = rng.choice(SPICE)
            case 3:
                out[i : i + 1] = bytes([rng.randrange(256)])
            case _:  # a piece of the file, elsewhere
                k = rng.randrange(len(out) + 1)
                out[k:k] = out[i : i + rng.randint(1, 80)]
    return bytes(out)


def attempt(data: bytes) -> Topology | TopologyError:
    problems = Problems("t.yaml")
    try:
        return load_text(source.to_text(data, problems), "t.yaml")
    except TopologyError as error:
        return error


def check(data: bytes) -> bool:
    """Did it load?"""
    found = attempt(data)
    if isinstance(found, Topology):
        assert load_data(found.to_dict(), "t.yaml") == found
        return True
    assert found.problems
    for problem in found.problems:
        assert problem.wanted
        assert problem.seen
        assert problem.hint
        assert "\n" not in problem.format("t.yaml")
    return False


@pytest.mark.parametrize("name", sorted(names()))
def test_bytes(name: str) -> None:
    data = names()[name].read_bytes()
    rng = random.Random(name)
    loaded = sum(check(mutate(data, rng)) for _ in range(TIMES))
    assert 0 < loaded < TIMES


WORDS: list[object] = [
    None, True, 0, -1, 1.5, "", "x", "node1", "lan", "10.168.0.2", "10.168.0.0/24",
    "100.96.1.0/24", "container:web", "docker", [], {}, ["x"], {"x": "y"}, [[]], {"node1": {}},
]  # fmt: skip


def replaced(data: object, rng: random.Random) -> object:
    """The same data with one value, at random, replaced by another."""
    if rng.random() < 0.15:
        return rng.choice(WORDS)
    if isinstance(data, dict) and data:
        key = rng.choice(list(data))
        return data | {key: replaced(data[key], rng)}
    if isinstance(data, list) and data:
        i = rng.randrange(len(data))
        return [*data[:i], replaced(data[i], rng), *data[i + 1 :]]
    return rng.choice(WORDS)


@pytest.mark.parametrize("name", sorted(names()))
def test_values(name: str) -> None:
    rng = random.Random(name)
    data = load(name).to_dict()
    for _ in range(TIMES):
        changed = replaced(replaced(data, rng), rng)
        with contextlib.suppress(TopologyError):
            load_data(changed, "record")  # type: ignore[arg-type]
