"""A run of the suite on the control plane's node: start, output, end, clean-up.

It runs on that node because it connects to nodes and Services by their addresses.  A second
run on the same cluster is refused: a lock on the node, which the kernel drops with its holder.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import quote

from testbed.artifacts import e2e
from testbed.conformance import ginkgo
from testbed.conformance.ginkgo import Asked, Cluster, Listener
from testbed.errors import LabBusy, LabError, NothingSelected, TimeoutExpired
from testbed.limits import FILES_PER_NODE, at_once
from testbed.roles.kubernetes import certificates, client, config, runtime
from testbed.signals import held
from testbed.suites.model import Check, Results

if TYPE_CHECKING:
    from collections.abc import Callable

    from testbed.nodes.base import Node, Result, Running
    from testbed.signals import Held
    from testbed.steps.context import Context

FOLDER = "/tmp/testbed-e2e"
LOCK = f"{config.RUN}/e2e.lock"
BUSY = 75  # exit status if the lock is taken: EX_TEMPFAIL of sysexits.h
POLL = 0.5  # seconds
#: Seconds to wait after an interrupt: each running test may clean up, and then write its
#: result.
PATIENCE = 3 * ginkgo.GRACE
CLEANED = 120.0  # seconds for namespaces to go
WHOLE = "the run as a whole"  # the name of the check that stands for no single test
#: The name part of SCTP tests, and code that opens such a socket (sctp(7)).
SCTP = r"\[Feature:SCTPConnectivity\]"
SOCKET = "import socket; socket.socket(socket.AF_INET, socket.SOCK_STREAM, 132)"
RUN_LABEL = "e2e-run"  # of the suite's namespaces (test/e2e/framework/util.go)


def prepare(context: Context, say: Callable[[str], None]) -> None:
    """Provide everything that a run needs: the programs, and the images on each node.

    Artifacts missing from the cache are built first, which takes minutes.  Raises ArtifactError,
    and LabError if the suite requires images other than ours.
    """
    suite = context.store.binary("e2e.test")
    for name in e2e.IMAGES:
        context.store.image(name)
    node = client.control_plane(context)
    listed = node.run([node.provide(suite), "--list-images"], timeout=120).stdout.split()
    if strangers := sorted(set(e2e.IMAGES) - set(listed)):
        raise LabError(
            f"the suite does not ask for {', '.join(strangers)}",
            hint="testbed/artifacts/e2e.py names the images of another version",
        )
    say(f"images: {', '.join(e2e.IMAGES)}")
    members = [context.node(member.name) for member in context.topology.with_role("kubernetes")]
    with ThreadPoolExecutor(at_once(len(members), files=FILES_PER_NODE)) as pool:
        list(pool.map(lambda one: runtime.import_images(context, one, list(e2e.IMAGES)), members))


def run(
    context: Context,
    asked: Asked,
    *,
    told: Callable[[Check], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
) -> Results:
    """Run the selected tests and return their results.

    ``told`` is called with each test as it ends.  SIGINT, SIGTERM and SIGHUP end the run:
    tests clean up, and the results hold the tests that have ended by then.  Raises
    NothingSelected if the selection matches no test, LabBusy if another run is in progress,
    LabError if the suite itself fails.
    """
    node = client.control_plane(context)
    asked = _possible(node, asked, say)
    argv = _words(context, node, asked)
    node.run(["mkdir", "-p", "-m", "700", FOLDER, config.RUN])
    node.run(["rm", "-f", f"{FOLDER}/{ginkgo.REPORT}"])
    with held() as signals:
        listener = Listener(told)
        with node.spawn(argv, env=_environment(context, node)) as running:
            ended, late = _listen(node, running, listener, signals, asked.timeout)
        if ended.status == BUSY and not ended.stdout.strip():
            raise LabBusy(context.lab, "another run of the suite", 0)
        if left := clean(context):
            say(f"namespaces that were not deleted: {', '.join(left)}")
        results = _results(node, ended, listener, late=late)
        results.signum = signals.signum
    if not (results.checks or results.interrupted):
        raise NothingSelected(
            f"no test fits --focus {asked.focus!r}"
            + (f" --skip {asked.skip!r}" * bool(asked.skip)),
            hint="both are regular expressions of Go, and mean the whole name of a test",
        )
    return results


def _possible(node: Node, asked: Asked, say: Callable[[str], None]) -> Asked:
    """Return the selection without tests that this machine's kernel can't support."""
    if node.run(["python3", "-c", SOCKET], check=False).ok:
        return asked
    say("left out, for the kernel has no SCTP (CONFIG_IP_SCTP): [Feature:SCTPConnectivity]")
    return replace(asked, skip="|".join(filter(None, (asked.skip, SCTP))))


def clean(context: Context) -> list[str]:
    """Remove namespaces left by tests; return those that are still there."""
    api = client.api(context)
    path = f"/api/v1/namespaces?labelSelector={quote(RUN_LABEL)}"
    deadline = time.monotonic() + CLEANED
    while True:
        found = [one["metadata"] for one in api.ask("GET", path)["items"]]
        for one in found:
            if "deletionTimestamp" not in one:
                api.ask("DELETE", f"/api/v1/namespaces/{one['name']}")
        if not found or time.monotonic() > deadline:
            return [one["name"] for one in found]
        time.sleep(POLL)


def _words(context: Context, node: Node, asked: Asked) -> list[str]:
    ours, suite, kubectl = (
        node.provide(context.store.binary(name)) for name in ("ginkgo", "e2e.test", "kubectl")
    )
    members = context.topology.with_role("kubernetes")
    cluster = Cluster(certificates.ADMIN, kubectl, len(members))
    lock = ["flock", "--no-fork", "--nonblock", f"--conflict-exit-code={BUSY}", LOCK]
    return [*lock, *ginkgo.words(ours, suite, asked, cluster, FOLDER)]


def _environment(context: Context, node: Node) -> dict[str, str]:
    """Return the environment with kubectl on PATH: some tests run it."""
    folders = [node.provide(folder) for folder in context.store.path_dirs("kubernetes")]
    return {"PATH": ":".join([*folders, "/usr/sbin", "/usr/bin", "/sbin", "/bin"])}


def _listen(
    node: Node,
    running: Running,
    listener: Listener,
    signals: Held,
    timeout: float,
) -> tuple[Result, bool]:
    """Pass on output until the run ends; return its result and whether it was killed."""
    heard = 0
    ends: float | None = None
    deadline = time.monotonic() + timeout + PATIENCE
    while True:
        result = _ended(running)
        text = running.out
        # Whole lines only: the last character may be incomplete.
        until = len(text) if result else text.rfind(b"\n") + 1
        listener.hear(text[heard:until].decode(errors="replace"), last=bool(result))
        heard = max(heard, until)
        if result:
            return result, False
        if signals.signum is not None and ends is None:
            ends = time.monotonic() + PATIENCE
            # To all of its processes: each ends its own test.
            node.run(["kill", "-s", "INT", "--", f"-{running.pid}"], check=False)
        if time.monotonic() > min(deadline, ends or deadline):
            running.kill()
            return running.wait(), True


def _ended(running: Running) -> Result | None:
    try:
        return running.wait(POLL)
    except TimeoutExpired:
        return None


def _results(node: Node, ended: Result, listener: Listener, *, late: bool) -> Results:
    """Return the results from the suite's report; without one, from its output."""
    try:
        report = node.get(f"{FOLDER}/{ginkgo.REPORT}").decode(errors="replace")
        checks, reasons = ginkgo.checks(report), ginkgo.reasons(report)
    except (FileNotFoundError, ValueError):  # it was killed, or ended before writing one
        checks, reasons = listener.ended, []
        if not late and ended.status >= 0 and not checks:
            end = "\n".join([*ended.stdout.splitlines()[-30:], *ended.stderr.splitlines()[-30:]])
            raise LabError(
                f"the suite ended with status {ended.status} and no report\n{end}",
                hint="`testbed status` shows whether the lab is whole",
            ) from None
    finally:
        node.run(["rm", "-rf", FOLDER], check=False)
    failed = any(check.outcome == "failed" for check in checks)
    if ended.status and not (failed or reasons):
        reasons = [f"its status was {ended.status}, and no test has failed"]
    if reasons:  # some tests may not have run
        checks = [*checks, Check(WHOLE, "failed", 0.0, "; ".join(reasons))]
    return Results(checks=checks)


def processes() -> int:
    """Return the number of tests to run at once: they wait more than they compute."""
    return max(2, min(8, 2 * len(os.sched_getaffinity(0))))
