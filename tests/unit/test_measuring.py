"""Figures of rounds, and what a process has used of a CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from testbed.claims.model import Measurement
from testbed.claims.observation import Observation
from testbed.nodes.fake import Answer, FakeProvider
from testbed.suites.measuring import (
    CPU,
    NOTHING,
    P50,
    CpuTime,
    Rounds,
    Way,
    cpu_time,
    need_iperf3,
    on_one_cpu,
    round_trips,
    stream,
)
from testbed.testing.provider import spec

if TYPE_CHECKING:
    from testbed.nodes.base import Node


@pytest.mark.parametrize(
    ("more", "less", "clear"),
    [
        ((5, 5, 5), (4, 4, 4), True),
        ((4, 4, 4), (5, 5, 5), False),
        ((5, 5, 5), (5, 5, 5), None),
        ((21, 14, 30), (20, 13, 29), True),  # the rounds differ much, the two of a round little
        ((6, 4, 6, 4), (5, 5, 5, 5), None),
        ((9, 8, 8, 5, 7), (5, 5, 5, 5, 5), True),
    ],
)
def test_a_difference_is_clear_when_it_is_larger_than_its_spread(
    more: tuple[float, ...], less: tuple[float, ...], clear: bool | None
) -> None:
    figures = Measurement("speed", "m/s", {"one": more, "other": less}, "higher")
    assert Observation().differ(figures, "one", "other") is clear


def node(program: str, *answers: Answer) -> tuple[Node, FakeProvider]:
    provider = FakeProvider()
    for answer in answers:
        provider.script([program], answer)
    return provider.create_one("lab", spec("node1")), provider


@pytest.mark.parametrize(
    ("mask", "cpu"), [("3", "1"), ("1", "0"), ("ff", "7"), ("1,00000000", "32")]
)
def test_the_last_cpu(mask: str, cpu: str) -> None:
    machine, _ = node("grep", Answer(out=f"Cpus_allowed:\t{mask}\n".encode()))
    assert on_one_cpu(machine) == ("taskset", "--cpu-list", cpu)


PROC = b"""\
7 (a (b) c) S 1 7 7 0 -1 0 0 0 0 0 11 79 0 0 20 0 9 0 0 0 0
1500000000 20 3
500000000 20 3
voluntary_ctxt_switches:\t40
voluntary_ctxt_switches:\t2
"""


def test_cpu_time_of_all_threads() -> None:
    machine, _ = node("sh", Answer(out=PROC))
    used = cpu_time(machine, 7)
    assert used == CpuTime(2.0, 11, 79, 42)
    assert used - used == NOTHING
    assert used + NOTHING == used


IPERF3 = b"""{"end": {
  "sum_sent": {"seconds": 0.5, "bytes": 1000000000},
  "sum_received": {"seconds": 0.5, "bytes": 1000000000, "bits_per_second": 16e9},
  "cpu_utilization_percent": {"host_total": 60.0, "remote_total": 40.0}}}"""


def test_a_stream_and_what_it_costs() -> None:
    machine, provider = node("iperf3", Answer(out=IPERF3))
    sent = stream(Way("way", machine, "192.0.2.1", own="192.0.2.2", segment=1380), 1_000_000_000)
    assert (sent.gbits, sent.octets, sent.cpu) == (16.0, 1_000_000_000, 0.5)
    (argv,) = provider.asked("run")
    assert argv[-4:] == ("--bind", "192.0.2.2", "--set-mss", "1380")


def test_round_trips_in_microseconds() -> None:
    printed = b"30000 12000 99000\n31000 13000 98000\n" * 2
    machine, provider = node("python3", Answer(out=printed))
    ways = [Way(name, machine, f"192.0.2.{number}") for number, name in enumerate("ab")]
    found = round_trips(ways, rounds=2)
    assert [len(one) for one in found] == [2, 2]
    one, other = found[1]
    assert [one.connect, one.p50, one.p99] == pytest.approx([30, 12, 99])
    assert other.p50 == pytest.approx(13)
    (argv,) = provider.asked("run")
    assert argv[-6:] == ("192.0.2.0", "5202", "", "192.0.2.1", "5202", "")


def test_without_iperf3_there_is_no_measurement() -> None:
    machine, _ = node("which", Answer(1))
    with pytest.raises(pytest.skip.Exception, match="no iperf3"):
        need_iperf3(machine)


def test_rounds_by_quantity_and_way() -> None:
    provider = FakeProvider()
    provider.script(["iperf3"], Answer(out=IPERF3))
    machine = provider.create_one("lab", spec("node1"))
    ways = [Way(name, machine, "192.0.2.1") for name in ("slow", "fast")]
    rounds, clock = Rounds(), iter(range(0, 100, 10))
    for took in (20, 12), (21, 14), (19, 11):
        for way, microseconds in zip(ways, took, strict=True):
            printed = f"1000 {microseconds * 1000} 9000"
            provider.script(["python3"], Answer(out=printed.encode()))
            rounds.trips(way)
    rounds.stream(ways[0], 1_000_000_000, lambda: next(clock))
    assert rounds.added(P50, "slow", "fast") == pytest.approx((8, 7, 8))
    assert rounds.measurement(CPU).series == {"slow": pytest.approx((10.5,))}  # 10 s between
    observe = Observation()
    assert rounds.decide(observe, P50, "slow", "fast") is True
    assert rounds.decide(observe, P50, "fast", "slow") is False
    assert observe.evidence == []
    assert rounds.decide(observe, P50, "slow", "slow") is None
    assert observe.verdict == "inconclusive"
    rounds.keep(observe)
    assert {kept.what: kept.better for kept in observe.measurements} == {
        "round trip, p50": "lower",
        "round trip, p99": "lower",
        "opening a connection": "lower",
        "TCP, one stream": "higher",
        "CPU time of all who carry it": "lower",
    }
