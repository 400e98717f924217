"""Measurements of recovery: how soon traffic between two nodes flows after a fault.

Run only by ``testbed verify --recovery``: it breaks the lab, and repairs it.
Requirements are judged with evidence; durations are figures, and never a
reason to fail.  An echo request goes from container to container every
hundredth of a second, and the times of the replies show the outage.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from testbed.claims.model import Measurement
from testbed.roles.etcd import SERVICE as ETCD
from testbed.roles.flannel.role import SERVICE as FLANNELD
from testbed.suites.helpers import observe_until, wait_until
from testbed.suites.overlay import End, ends, etcd_node, keys, leased, overlay

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from testbed.claims.observation import Observation
    from testbed.faults.inflict import Inflict
    from testbed.labs.live import LiveContainer, LiveLab
    from testbed.nodes.base import Node, Running

pytestmark = [
    pytest.mark.testbed_needs("flannel", "docker", "two-docker-nodes"),
    pytest.mark.testbed_alone,
]

ROUNDS = 3
HOLD = 0.6  # seconds that a fault lasts
SETTLE = 0.15  # seconds in which packets sent before the fault may still arrive
CUT = 0.3  # seconds without a reply that a busy machine does not explain
INTERVAL = 0.01  # seconds between two echo requests
REPLY = re.compile(rb"^\[(\d+\.\d+)\] \d+ bytes from ", re.MULTILINE)

AGAIN = "until traffic between containers flows again, from the begin of healing"
SILENCE = f"longest silence between containers, with a fault of {HOLD:g} s"


@dataclass
class Figures:
    """Measurements so far, by fault: seconds of each round."""

    again: dict[str, list[float]] = field(default_factory=dict)
    silence: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, crossing: Crossing) -> None:
        self.again.setdefault(name, []).append(crossing.again)
        self.silence.setdefault(name, []).append(crossing.silence)


@pytest.fixture(scope="module")
def figures() -> Figures:
    return Figures()


@dataclass(frozen=True)
class Crossing:
    """The replies during a fault, and after it.

    ``during`` counts the replies during the fault, of about ``due`` that would
    have come without it; ``again`` is 0 if replies never stopped.
    """

    during: int
    due: int
    again: float
    silence: float

    def __str__(self) -> str:
        return (
            f"{self.during} replies of about {self.due} while it was in force; "
            f"again after {self.again:.3f} s; longest silence {self.silence:.3f} s"
        )


def clock(node: Node) -> float:
    """Return a node's time: a virtual machine has its own clock."""
    return float(node.run(["date", "+%s.%N"]).stdout)


def replies(running: Running) -> list[float]:
    """Return the arrival times of the replies, by the node's clock."""
    return [float(found) for found in REPLY.findall(running.out)]


@contextlib.contextmanager
def echoes(container: LiveContainer, address: str) -> Iterator[Running]:
    """Send echo requests from a container to an address; the first is answered."""
    argv = ["ping", "-n", "-D", "-i", str(INTERVAL), address]
    with container.spawn(argv) as running:
        what = f"an answer of {address} to {container.name}, before any fault"
        wait_until(lambda: replies(running), what)
        yield running


def cross(
    lab: LiveLab, fault: Inflict, words: str, meanwhile: Callable[[], None] = lambda: None
) -> Crossing:
    """Send traffic from end to end, with a fault for some time.

    ``meanwhile`` is called during the fault.  Raises Unsettled if traffic does not flow again.
    """
    one, other = ends(lab)
    target = other.container.address
    with echoes(one.container, target) as running:
        fault(words)
        began = clock(one.node)
        time.sleep(HOLD)
        meanwhile()
        healing = clock(one.node)
        fault.heal()
        healed = clock(one.node)
        now = lab.container(other.container.name).address
        if now == target:
            seen = _await_reply(running, healed, words)
        else:  # it was restarted with another address
            with echoes(one.container, now) as second:
                seen = [*replies(running), *_await_reply(second, healed, words)]
    during = [at for at in seen if began + SETTLE <= at < healing]
    silence, over = max(
        ((later - earlier, later) for earlier, later in itertools.pairwise(seen)),
        default=(0.0, healed),
    )
    ceased = not any(at >= healing - SETTLE for at in during)
    again = next(at for at in seen if at > healing) - healing
    if not ceased:  # unless healing itself interrupts it: starting a daemon stops its containers
        again = max(0.0, over - healing) if silence > CUT else 0.0
    due = round((healing - began - SETTLE) / INTERVAL)
    return Crossing(len(during), due, again, silence)


def _await_reply(running: Running, since: float, words: str) -> list[float]:
    """Wait for a reply after an instant; return all replies."""
    wait_until(lambda: any(at > since for at in replies(running)), f"traffic after {words}")
    return replies(running)


@dataclass(frozen=True)
class Trial:
    """A test's lab, notes and fault, for repeated rounds."""

    lab: LiveLab
    observe: Observation
    fault: Inflict
    figures: Figures

    def rounds(
        self, name: str, words: str, meanwhile: Callable[[], None] = lambda: None
    ) -> list[Crossing]:
        """Run the rounds of a fault; record each, and keep its figures."""
        found = []
        for number in range(1, ROUNDS + 1):
            found.append(cross(self.lab, self.fault, words, meanwhile))
            self.figures.add(name, found[-1])
            self.observe.note(f"round {number}: {words}", str(found[-1]))
        return found


@pytest.fixture
def trial(lab: LiveLab, observe: Observation, fault: Inflict, figures: Figures) -> Trial:
    return Trial(lab, observe, fault, figures)


def carried_by_kernel(lab: LiveLab) -> bool:
    """True if the kernel, without a daemon, carries packets between nodes."""
    return overlay(lab).backend != "udp"


def served(one: End, other: End) -> bool:
    """True if a container gets another's page at once."""
    argv = ["curl", "-s", "-o", "/dev/null", "-m", "0.5", f"http://{other.container.address}/"]
    return one.container.run(argv, check=False).ok


def test_partition(trial: Trial, observe: Observation) -> None:
    one, other = ends(trial.lab)
    words = f"partition {one.name}:{other.name}"
    for found in trial.rounds("link cut, and joined", words):
        observe.holds(not found.during, "nothing passes while the link between the nodes is cut")


def test_lossy_link(trial: Trial, observe: Observation) -> None:
    one, other = ends(trial.lab)
    words = f"loss {one.name}:{other.name} 30%"
    found = trial.rounds("30 % of frames lost each way", words)
    passed, due = (sum(values) for values in zip(*((f.during, f.due) for f in found), strict=True))
    # Half are lost, there or back: of a hundred and more, chance alone never loses all or none.
    observe.holds(0 < passed < due, f"{passed} of {due} came back over the lossy link")


def test_flanneld_killed(trial: Trial, observe: Observation) -> None:
    _, other = ends(trial.lab)
    before = leases(trial, other)
    words = f"kill {other.name}/{FLANNELD}"
    for found in trial.rounds("flanneld killed, and started", words):
        if carried_by_kernel(trial.lab):
            observe.holds(found.during, "the kernel carries packets while flanneld is dead")
        else:
            observe.holds(not found.during, "nothing passes while flanneld is dead, who carried it")
    after = leases(trial, other)
    observe.holds(before == after, f"the leases are as they were: {before} and {after}")


def leases(trial: Trial, end: End) -> dict[str, str]:
    """Return the lease of each subnet in etcd, and flanneld's subnet.env on a node."""
    found = {
        name.rpartition("/")[2]: key.value["PublicIP"] for name, key in keys(trial.lab).items()
    }
    trial.observe.note("subnets in etcd", found)
    return found | leased(trial.observe, end.node)


def test_etcd_killed(trial: Trial, observe: Observation) -> None:
    words = f"kill {etcd_node(trial.lab).name}/{ETCD}"
    for found in trial.rounds("etcd killed, and started", words):
        observe.holds(found.during, "packets pass while etcd is dead, whatever the back end")


def test_dockerd_killed(trial: Trial, observe: Observation) -> None:
    _, other = ends(trial.lab)
    words = f"kill {other.name}/dockerd"
    for found in trial.rounds("dockerd killed, and started", words):
        observe.holds(found.during, "containers live on while dockerd is dead")


def test_node_stopped(trial: Trial, observe: Observation) -> None:
    one, other = ends(trial.lab)
    wait_until(lambda: served(one, other), "the page, before any fault")
    pages: list[bool] = []
    for found in trial.rounds(
        "node stopped, and continued: packets",
        f"stop {other.name}",
        lambda: pages.append(served(one, other)),
    ):
        if carried_by_kernel(trial.lab) and other.node.shares_kernel:
            observe.holds(found.during, "the kernel, which is this machine's, still answers echoes")
        else:
            observe.holds(not found.during, "who would carry or answer packets is stopped")
    observe.holds(not any(pages), "no page comes from a node that is stopped")


def test_pages_of_a_stopped_node(trial: Trial, observe: Observation) -> None:
    one, other = ends(trial.lab)
    name = "node stopped, and continued: pages"
    for number in range(1, ROUNDS + 1):
        trial.fault(f"stop {other.name}")
        time.sleep(HOLD)
        observe.holds(not served(one, other), "no page comes from a node that is stopped")
        began = time.monotonic()
        trial.fault.heal()
        observe.holds(wait_until(lambda: served(one, other), "a page"), "pages come again")
        took = time.monotonic() - began
        trial.figures.again.setdefault(name, []).append(took)
        observe.note(f"round {number}", f"a page {took:.3f} s after the begin of healing")


@pytest.mark.testbed_needs("flannel-host-gw")
def test_deleted_route(trial: Trial, observe: Observation) -> None:
    one, other = ends(trial.lab)
    trial.fault(f"break {one.name} route")
    began = time.monotonic()
    argv = ["ip", "route", "show", str(other.subnet)]

    def back(notes: Observation) -> bool:
        return bool(notes.run(one.node, argv).out.strip())

    found = observe_until(observe, back, f"the route to {other.subnet}, put back by flanneld")
    took = time.monotonic() - began
    observe.holds(found, "flanneld puts the route back by itself")
    name = "route deleted, put back by flanneld"
    trial.figures.again.setdefault(name, []).append(took)  # once: it takes up to ten seconds


def test_figures(observe: Observation, figures: Figures) -> None:
    """Record the figures of all tests before, side by side."""
    if not figures.again:
        pytest.skip("no fault was selected whose figures could be shown")
    for what, series in ((AGAIN, figures.again), (SILENCE, figures.silence)):
        if series:
            rows = {name: tuple(values) for name, values in series.items()}
            observe.measured(Measurement(what, "s", rows, "lower"))
