"""The way into a Pod: an exec of testbed's agent, which is sent at the first one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.errors import LabError, NoAnswer
from testbed.nodes.kubernetes import CONTAINER, FOLDER
from testbed.nodes.stream.wire import HEADER
from testbed.polling import until

if TYPE_CHECKING:
    from testbed.nodes.kubernetes.channel import ExecChannel
    from testbed.nodes.kubernetes.cluster import Cluster
    from testbed.nodes.kubernetes.pods import Pod

WORDS = "no agent yet"  # as long as the agent's greeting
LACKING = WORDS.encode()
assert len(LACKING) == HEADER.size
ENDING = 5.0  # seconds for the API to tell that a Pod has ended
SENDING = 60.0  # timeout in seconds for the agent to be sent
#: Arguments: the agent's path, its size in bytes, the command that starts it.  The agent comes
#: first on standard input if the Pod lacks it; nothing follows before it has answered.
START = f"""\
[ -x "$1" ] || {{
  printf '%s' '{WORDS}'
  mkdir -p "${{1%/*}}" && head -c "$2" > "$1.$$" && chmod 755 "$1.$$" && mv "$1.$$" "$1" || exit
}}
shift 2
exec "$@"
"""


class Entrance:
    """The way into one Pod.

    ``pod`` is the Pod when it was found, in ``namespace``.  ``now`` returns the Pod as it is now,
    or None.  ``agent`` returns the path of ``testbed-agent`` on this machine, ``ended`` the error
    for a Pod that has ended, from the reason in words.
    """

    def __init__(
        self,
        pod: Pod,
        *,
        namespace: str,
        cluster: Cluster,
        now: Callable[[], Pod | None],
        agent: Callable[[], Path],
        ended: Callable[[str], LabError],
    ) -> None:
        self.pod = pod
        self.namespace = namespace
        self._cluster = cluster
        self._now = now
        self._agent = agent
        self._ended = ended

    def open(self, command: Callable[[str], Sequence[str]]) -> ExecChannel:
        """Start the agent in the Pod, and return the stream to it.

        ``command`` returns the command that starts the agent, from its path in the Pod.  Raises
        LabError, and NoAnswer for an API server that does not answer.
        """
        program = self._agent().read_bytes()
        path = f"{FOLDER}/agent-{hashlib.sha256(program).hexdigest()[:12]}"
        argv = ["sh", "-c", START, "sh", path, str(len(program)), *command(path)]
        try:
            opened = self._cluster.exec(self.namespace, self.pod.name, CONTAINER, argv)
        except NoAnswer:
            raise
        except LabError as error:
            if why := self.why_ended():
                raise self._ended(why) from error
            raise
        try:
            self._greet(opened, program)
        except BaseException:
            opened.close()
            raise
        return opened

    def _greet(self, opened: ExecChannel, program: bytes) -> None:
        """Send the agent if the Pod lacks it."""
        name = self.pod.node
        opened.settimeout(SENDING)
        said = b""
        try:
            while len(said) < len(LACKING):
                data = opened.recv(len(LACKING) - len(said))
                if not data:
                    if why := self.why_ended():
                        raise self._ended(why)
                    raise LabError(
                        f"the agent of {name} does not start: "
                        f"{opened.errors.strip() or opened.failure or 'the channel was closed'}",
                        hint="the image needs sh, mkdir, head, chmod and mv",
                    )
                said += data
            if said != LACKING:
                opened.unread(said)
                return
            while program:
                program = program[opened.send(program) :]
        except TimeoutError as error:
            raise LabError(f"{name} does not answer within {SENDING:g} s") from error
        except OSError as error:
            raise self.lost_error() from error

    def why_ended(self) -> str:
        """Return why the Pod does not run any more; empty for one that runs."""
        there = self._now()
        if there is not None and there.uid == self.pod.uid:
            return "" if there.running else there.ended or "its Pod does not run"
        return "its Pod was deleted"

    def lost_error(self) -> LabError:
        """Return the error for a stream that has ended."""
        # The stream ends with the container, and the kubelet reports that a moment later.
        why = ""

        def told() -> bool:
            nonlocal why
            why = self.why_ended()
            return bool(why)

        if until(told, ENDING):
            return self._ended(why)
        return LabError(
            f"the connection to {self.pod.node} was lost, and its Pod runs",
            hint="run the command again; the next one opens a new connection",
        )
