"""The fuzzer's corpus, and random changes to it, put to every target without the fuzzer."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path
from typing import Any

import pytest

from testbed.errors import LabError
from testbed.nodes.netns.cgroups import hierarchies
from testbed.nodes.ssh import services
from testbed.observe import capture, trace
from testbed.suites.helpers import _rule

FUZZ = Path(__file__).parent.parent / "fuzz" / "fuzz.py"


def load() -> Any:
    spec = importlib.util.spec_from_file_location("fuzz", FUZZ)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fuzz = load()


def test_every_target_has_something_to_begin_with() -> None:
    folders = {path.name for path in fuzz.CORPUS.iterdir()}
    assert folders == set(fuzz.TARGETS)
    size = sum(path.stat().st_size for path in fuzz.CORPUS.glob("*/*"))
    assert size < 64 << 10, "the corpus is to stay small"


@pytest.mark.parametrize("name", sorted(fuzz.TARGETS))
def test_the_corpus(name: str) -> None:
    target = fuzz.TARGETS[name]
    rng = random.Random(name)
    for path in sorted((fuzz.CORPUS / name).iterdir()):
        data = path.read_bytes()
        target(data)
        for cut in range(0, len(data), max(1, len(data) // 40)):  # ended anywhere
            target(data[:cut])
        for _ in range(40):
            changed = bytearray(data)
            for _ in range(rng.randint(1, 3)):
                changed[rng.randrange(len(changed))] = rng.randrange(256)
            target(bytes(changed))


# -- what the fuzzer has found, or would have ----------------------------------------------


def test_no_capture_at_all() -> None:
    with pytest.raises(LabError, match="tcpdump"):
        capture.read(b"tcpdump: no permission to listen on this device\n")


def test_a_line_of_mounts_that_is_cut() -> None:
    assert hierarchies("30 25 0:26 /") == []
    assert hierarchies("30 25 0:26 / /sys/fs/cgroup/cpu rw -") == []


@pytest.mark.parametrize(
    "listed",
    [
        "etcd\0dead\0x12\0\0d\0flanneld\0",  # cut
        "etcd\0ready\0many\0\0d\0",  # no number
        "etcd\0dead\x0012\0killed NOTHING\0d\0",  # no signal
    ],
)
def test_services_that_cannot_be_understood(listed: str) -> None:
    with pytest.raises(LabError, match="services"):
        services.states(listed)


@pytest.mark.parametrize(
    "prefix", ["TRACE: raw:PREROUTING", "TRACE: raw", "TRACE: a:b:rule:x", "TRACE: a:b:other:1"]
)
def test_a_trace_event_of_no_known_kind(prefix: str) -> None:
    with pytest.raises(LabError, match="unknown kind"):
        trace.legacy_event(trace.Logged(prefix=prefix))


def test_a_trace_event_of_nftables_without_its_table() -> None:
    body = bytes(trace.NFGENMSG)
    length = (trace.NLMSGHDR + len(body)).to_bytes(4, "little")
    kind = trace.TRACE_MESSAGE.to_bytes(2, "little")
    with pytest.raises(LabError, match="nftables"):
        trace.nft_events(length + kind + bytes(10) + body, {})


@pytest.mark.parametrize("line", ["[0:0]", "[0:0] POSTROUTING", '[0:0] -A X "', "[x:0] -A X"])
def test_what_is_no_rule(line: str) -> None:
    with pytest.raises(LabError, match="iptables-save"):
        _rule("nat", line)
