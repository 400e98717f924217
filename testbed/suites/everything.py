"""All labs that the catalogue needs, side by side: up, check, down.

Each lab has a process of its own, forked from this one after all modules are
loaded, and as many run at once as keep the machine's CPUs busy.  Checks that
measure wait until every other check has ended, and then have the machine to
themselves, one lab after the other.
"""

from __future__ import annotations

import ctypes
import fnmatch
import multiprocessing
import multiprocessing.connection
import os
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from testbed import signals
from testbed.claims.labs import PREFIX, Wanted
from testbed.claims.model import Finding
from testbed.errors import Interrupted, NothingSelected, TestbedError, UsageError
from testbed.labs.lab import Lab, Settings
from testbed.pytest_checks import features
from testbed.registry import ROLES
from testbed.suites.model import Check, LabRun, Run, Selection
from testbed.suites.runner import QUIET, refuse_unknown, run
from testbed.topology.load import Overrides

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkProcess

    from testbed.artifacts import Store
    from testbed.topology.model import Topology

NO_LAB = "no lab"
PER_CPU = 2  #: labs at work for each CPU: checks spend much time waiting for timeouts
PR_SET_PDEATHSIG = 1  # prctl(2)


def narrowed(selection: Selection, wanted: Wanted) -> Selection:
    """Return the selection narrowed to a lab's part."""
    return replace(selection, of=wanted.documents, only=wanted.only)


#: One lab for each back end, for faults and recovery.
BACKENDS = tuple(
    Wanted("two-node", (), Overrides(backend=backend)) for backend in ("vxlan", "udp", "host-gw")
)


@dataclass(slots=True)
class Watching:
    """Callbacks for progress: a lab's name first, times in seconds."""

    began: Callable[[str], None] = lambda _: None
    up: Callable[[str, float], None] = lambda _name, _seconds: None
    found: Callable[[str, Finding | Check], None] = lambda _name, _found: None
    ended: Callable[[LabRun], None] = lambda _: None


def run_everything(
    settings: Settings,
    selection: Selection,
    watching: Watching | None = None,
    *,
    wanted: Sequence[Wanted] | None = None,
    labs: Sequence[str] = (),
    proving: bool = False,
) -> Run:
    """Run the selection on every lab that can decide any part of it.

    ``wanted`` are the labs, by default those of the selection's catalogue.  ``labs``,
    shell patterns of names, limit them.  Each lab is removed whatever happens to it.
    A lab whose software is missing and takes long to build is left out, and its claims
    are "skipped".  With ``proving`` the labs are broken as the catalogue's sabotages say
    (:func:`testbed.suites.prove.prove`), if any is for a claim that the lab can decide.
    A signal ends the run early, with the results so far.  Raises UsageError, and
    NothingSelected if no lab can decide any part of the selection.
    """
    refuse_unknown(selection)
    watching = watching or Watching()
    wanted = selection.catalogue.labs if wanted is None else wanted
    if not wanted and not _may_decide({"none"}, replace(selection, expression="", paths=())):
        raise UsageError(
            f"catalogue {selection.catalogue.name} names no labs",
            hint="add `labs` to its catalogue.yaml, or run `testbed verify LAB` on a running lab",
        )
    if proving:
        return _prove_everything(settings, selection, watching, _named(wanted, labs))
    began = time.monotonic()
    some = _named(wanted, labs)
    whole = Run(selection, complete=selection.is_by_claims and not labs)
    if not labs and _may_decide({"none"}, selection):
        _without_lab(selection, whole, watching)
    _on_labs(settings, selection, whole, watching, some)
    whole.seconds = time.monotonic() - began
    if not whole.labs and not any(True for _ in whole.meant()):
        raise NothingSelected(
            "the selection has no check for any lab of the catalogue",
            hint="check -k, --claim and --document",
        )
    return whole


def _on_labs(
    settings: Settings,
    selection: Selection,
    whole: Run,
    watching: Watching,
    wanted: Sequence[Wanted],
    *,
    proving: bool = False,
) -> None:
    """Run the selection on those labs that can decide a part of it, and note the others."""
    chosen = [one for one in wanted if _may_decide(features(one.load()), narrowed(selection, one))]
    absent = {one: why for one in chosen if (why := lacking(settings.store, one.load()))}
    if whole.signum is None:
        _preload()
        here = [one for one in chosen if one not in absent]
        _with_labs(settings, selection, whole, watching, here, proving=proving)
    for one, why in absent.items():
        whole.labs.append(_left_out(one, selection, why, proving=proving))
        watching.ended(whole.labs[-1])
    order = {name: index for index, name in enumerate((NO_LAB, *(one.name for one in wanted)))}
    whole.labs.sort(key=lambda lab: order[lab.name])


def _prove_everything(
    settings: Settings, selection: Selection, watching: Watching, wanted: Sequence[Wanted]
) -> Run:
    """Break each lab that can decide a claim with a sabotage.  Raises NothingSelected."""
    from testbed.suites.prove import Proofs, provable

    began = time.monotonic()
    names = provable(selection)
    whole = Run(Selection(tests=("",), catalogue=selection.catalogue))
    without = Proofs()
    for claim in selection.catalogue.claims.values():
        if claim.is_testable and claim.id not in names and selection.has(claim):
            without.tell_without(claim.id)
    whole.labs = [LabRun(NO_LAB, results=without.results, proofs=without.outcomes)]
    narrow = replace(selection, claims=tuple(names))
    _on_labs(settings, narrow, whole, watching, wanted, proving=True)
    whole.labs = [lab for lab in whole.labs if not lab.is_empty]
    whole.seconds = time.monotonic() - began
    return whole


def _named(wanted: Sequence[Wanted], patterns: Sequence[str]) -> list[Wanted]:
    """Return the labs whose names match one of the patterns, by default all."""
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(one.name, pattern) for one in wanted):
            known = ", ".join(one.name for one in wanted)
            raise UsageError(f"no lab matches {pattern!r}", hint=f"labs: {known}")
    return [
        one
        for one in wanted
        if not patterns or any(fnmatch.fnmatchcase(one.name, pattern) for pattern in patterns)
    ]


def lacking(store: Store, topology: Topology) -> str:
    """Return why a lab of this topology can't start: missing or unbuilt software."""
    for role in sorted(topology.roles):
        if why := ROLES[role].lacking(store, topology):
            return why
    for role in sorted(topology.software):
        if unmade := store.unmade(role):
            return (
                f"{role} is not built yet ({', '.join(unmade)}); "
                f"`testbed doctor --role {role} --fix` builds it, which takes long"
            )
    return ""


def _left_out(wanted: Wanted, selection: Selection, why: str, *, proving: bool) -> LabRun:
    """Return the result of a lab that was left out: claims it could have decided."""
    from testbed.suites.prove import Proofs

    proofs = Proofs()
    part = LabRun(wanted.name, results=proofs.results, absent=why, proofs=proofs.outcomes)
    has, narrow = features(wanted.load()), narrowed(selection, wanted)
    for claim in selection.catalogue.claims.values():
        if claim.is_testable and narrow.has(claim) and set(claim.needs) <= has:
            if proving:
                proofs.tell(claim.id, "", "skipped", why)
                continue
            found = Finding(claim.id, "skipped", reason=why, expected=claim.expect, why=claim.why)
            part.results.findings.append(found)
    return part


def _may_decide(has: set[str], selection: Selection) -> bool:
    """Tell whether a lab may decide a chosen claim: if not, it need not start."""
    if not selection.is_by_claims or (selection.tests and has != {"none"}):
        return True
    return any(
        set(claim.needs) <= has and (claim.needs == ("none",)) == (has == {"none"})
        for claim in selection.catalogue.claims.values()
        if claim.is_testable and selection.has(claim)
    )


def _without_lab(selection: Selection, whole: Run, watching: Watching) -> None:
    """Run the checks that need no lab."""
    part = LabRun(NO_LAB)
    began = time.monotonic()
    with suppress(NothingSelected):
        part.results = run(None, selection, told=lambda found: watching.found(NO_LAB, found))
    part.seconds = time.monotonic() - began
    whole.signum = part.results.signum
    if part.is_empty:
        return
    whole.labs.append(part)
    watching.ended(part)


def _with_labs(
    settings: Settings,
    selection: Selection,
    whole: Run,
    watching: Watching,
    chosen: Sequence[Wanted],
    *,
    proving: bool,
) -> None:
    with signals.held() as held:
        crew = _Crew(settings, selection, watching, held, proving=proving)
        try:
            crew.work(chosen, whole)
        except BaseException:  # the watcher's own, such as BrokenPipeError
            crew.give_up(whole)
            raise
    whole.signum = held.signum


def _preload() -> None:
    """Load here, once, the modules that every lab's process would load."""
    import testinfra  # noqa: F401

    import testbed.observe.capture  # noqa: F401
    from testbed.roles.docker.engine import load

    load()


class _Crew:
    """The running processes, and their messages."""

    def __init__(
        self,
        settings: Settings,
        selection: Selection,
        watching: Watching,
        held: signals.Held,
        *,
        proving: bool,
    ) -> None:
        self._settings = settings
        self._selection = selection
        self._watching = watching
        self._held = held
        self._proving = proving
        self._hands: list[_Hand] = []
        held.told = self._pass_on

    def _pass_on(self, signum: int) -> None:
        """Pass a signal on to all processes: each removes its lab and sends its results."""
        for hand in self._hands:
            hand.signal(signum)

    def work(self, wanted: Sequence[Wanted], whole: Run) -> None:
        queue = deque(wanted)
        at_once = PER_CPU * len(os.sched_getaffinity(0))
        while self._hands or queue:
            if self._held.signum is not None:
                queue.clear()
            while queue and sum(not hand.waits for hand in self._hands) < at_once:
                self._start(queue.popleft())
            if not queue:
                self._let_one_measure()
            for hand in self._listen():
                part = self._ended(hand)
                if not part.is_empty:
                    whole.labs.append(part)

    def give_up(self, whole: Run) -> None:
        """End all processes, and wait until their labs are removed; report nothing more."""
        self._watching = Watching()
        self._pass_on(signal.SIGTERM)
        self.work((), whole)

    def _start(self, wanted: Wanted) -> None:
        with signals.blocked():  # the new process receives a signal only once it can act on it
            if self._held.signum is not None:
                return
            hand = _Hand(self._settings, wanted, self._selection, proving=self._proving)
            self._hands.append(hand)
        self._catch_up(hand)
        self._watching.began(wanted.name)

    def _catch_up(self, hand: _Hand) -> None:
        """Signal a new process if a signal came before the process was registered.

        That can happen with another thread, which does not block signals.
        """
        if self._held.signum is not None:
            hand.signal(self._held.signum)

    def _let_one_measure(self) -> None:
        if self._hands and all(hand.waits for hand in self._hands):
            self._hands[0].go_on()

    def _listen(self) -> list[_Hand]:
        """Receive messages; return the processes that have ended."""
        ready = multiprocessing.connection.wait([hand.pipe for hand in self._hands], 1.0)
        ended = []
        for hand in list(self._hands):
            if hand.pipe not in ready:
                continue
            try:
                message, value = hand.pipe.recv()
            except (EOFError, OSError):  # OSError: it ended in the middle of a message
                ended.append(hand)
                self._hands.remove(hand)
                continue
            if message == "up":
                self._watching.up(hand.wanted.name, value)
            elif message == "found":
                hand.heard(value)
                self._watching.found(hand.wanted.name, value)
            elif message == "waits":
                hand.waits = True
            else:
                hand.part = value
        return ended

    def _ended(self, hand: _Hand) -> LabRun:
        hand.process.join()
        how = f"its process ended with status {hand.process.exitcode}"
        part = hand.part or LabRun(hand.wanted.name, error=how, status=1)
        if part.error or part.results.interrupted:
            self._mend(hand, part)
        part.topology = hand.wanted.load()
        self._watching.ended(part)
        return part

    def _mend(self, hand: _Hand, part: LabRun) -> None:
        """Keep the partial results of a broken process, and remove its lab."""
        if not (part.results.findings or part.results.checks):
            part.results.findings = hand.told.results.findings
            part.results.checks = hand.told.results.checks
        try:
            Lab(f"{PREFIX}{hand.wanted.name}", self._settings).down()
        except Interrupted as error:  # the lab is removed, and the signal was for all of us
            self._held.came(error.signum, None)
        except TestbedError as error:
            part.error = "\n".join(filter(None, [part.error, str(error)]))
            part.status = part.status or error.exit_code


class _Hand:
    """A process that runs one lab."""

    def __init__(
        self, settings: Settings, wanted: Wanted, selection: Selection, *, proving: bool
    ) -> None:
        context = multiprocessing.get_context("fork")
        self.wanted = wanted
        self.waits = False
        self._signalled = False
        self.part: LabRun | None = None
        self.told = LabRun(wanted.name)
        self.pipe, theirs = context.Pipe()
        self.process: ForkProcess = context.Process(
            target=_lab_process,
            args=(settings, wanted, selection, theirs, os.getpid()),
            kwargs={"proving": proving},
        )
        self.process.start()
        theirs.close()

    def signal(self, signum: int) -> None:
        """End the process.  It removes its lab once, so later signals are not passed on."""
        if self._signalled:
            return
        self._signalled = True
        with suppress(ProcessLookupError):
            if self.process.pid and self.process.exitcode is None:
                os.kill(self.process.pid, signum)

    def go_on(self) -> None:
        self.waits = False
        with suppress(BrokenPipeError):
            self.pipe.send("go on")

    def heard(self, found: Finding | Check) -> None:
        """Keep a result, in case the process dies before it sends them all."""
        if isinstance(found, Check):
            self.told.results.checks.append(found)
            return
        findings = self.told.results.findings
        if findings and findings[-1].claim == found.claim:  # sent again because its clean-up failed
            findings.pop()
        findings.append(found)


def _lab_process(
    settings: Settings,
    wanted: Wanted,
    selection: Selection,
    pipe: Connection,
    parent: int,
    *,
    proving: bool,
) -> None:
    """Run all of one lab, in its own process."""
    os.setpgid(0, 0)  # the terminal's Ctrl-C reaches the parent, which passes it on once
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        return
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, _end)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    part = LabRun(wanted.name)
    try:
        signals.unblock()
        _one(settings, wanted, selection, pipe, part, proving=proving)
    except KeyboardInterrupt:
        part.results.signum = signal.SIGINT
    except Interrupted as error:
        part.results.signum = error.signum
    except TestbedError as error:
        part.error, part.status = str(error), error.exit_code
    except Exception:  # noqa: BLE001  our own defects are reported with the results
        part.error, part.status = traceback.format_exc(), 1
    with suppress(BrokenPipeError), signals.held():
        _send(pipe, "ended", part)


def _send(pipe: Connection, message: str, value: object) -> None:
    """Send to the parent with signals held back, so that no message is cut in half."""
    with signals.blocked():
        pipe.send((message, value))


def _end(signum: int, _: Any) -> None:
    raise Interrupted(signum)


def _one(
    settings: Settings,
    wanted: Wanted,
    selection: Selection,
    pipe: Connection,
    part: LabRun,
    *,
    proving: bool,
) -> None:
    from testbed.labs.live import LiveLab
    from testbed.suites.prove import Proofs, prove

    def wait_for_quiet() -> None:
        _send(pipe, "waits", None)
        pipe.recv()

    def told(found: Finding | Check) -> None:
        _send(pipe, "found", found)

    topology = wanted.load()
    lab = Lab(topology.name, settings)
    try:
        part.up = lab.up(topology).seconds
        _send(pipe, "up", part.up)
        live = LiveLab(lab.context())
        began = time.monotonic()
        try:
            part.versions = lab.record().versions
            part.look(live)
            checks = partial(
                run,
                before_alone=wait_for_quiet,
                lacks={"none"} if wanted.measures else {"none", QUIET},
            )
            mine = narrowed(selection, wanted)
            with suppress(NothingSelected):  # nothing of the selection is for this lab
                if proving:
                    proofs = Proofs()
                    part.results, part.proofs = proofs.results, proofs.outcomes
                    prove(live, lab, mine, told=told, checks=checks, proofs=proofs)
                else:
                    part.results = checks(live, mine, told=told)
        finally:
            live.close()
            part.seconds = time.monotonic() - began
    finally:
        began = time.monotonic()
        lab.down()
        part.down = time.monotonic() - began
