"""OpenSSH's client with testbed's agent at the other end.

The user's own ssh_config(5) holds, with all that it can say.  Nothing is asked: a key that needs a
passphrase must be in an agent, and an unknown host key is refused.

The agent is sent to the machine at each connection.  Its file has no name any more before the first
byte arrives, so nothing is left of it, whoever dies.
"""

from __future__ import annotations

import platform
import re
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING

from testbed import owner
from testbed.errors import LabError, NodeNotRunning
from testbed.process import Duplex

if TYPE_CHECKING:
    from testbed.nodes.openssh.section import WayToNode

PATIENCE = 60.0  # seconds until a login has succeeded; a machine that is away may not refuse it
ENDING = 5.0  # seconds from the end of ssh's output to its own end
CHUNK = 1 << 16
TICK = 0.5  # seconds between two looks at the clock
MAX_WORDS = 1 << 16  # bytes that a login may print before the machine's answer
#: What a user's file may say for other uses of the same host would get in the way.
OPTIONS = (
    "BatchMode=yes", "ClearAllForwardings=yes", "ControlMaster=no", "ForwardAgent=no",
    "ForwardX11=no", "LogLevel=ERROR", "PermitLocalCommand=no", "RemoteCommand=none",
    "RequestTTY=no", "ServerAliveInterval=15", "ServerAliveCountMax=3", "Tunnel=no",
)  # fmt: skip
READY = re.compile(rb"^testbed-ready (\S+)\r?$", re.MULTILINE)
#: Exit statuses of the scripts below.
NO_SUDO, ASKS, NO_PLACE, NO_SPACE, NO_LINUX, NO_NODE = 91, 92, 93, 94, 95, 96
RECEIVED = b"testbed-received\n"
INIT = "testbed-init"  #: pid 1 of a node that is installed, in its folder on the machine
#: The agent runs as root.  Login shells differ: a script has no single quote, backslash, newline.
AS_ROOT = (
    'if test $(id -u) = 0; then exec sh -c "$0"; fi; '
    f"command -v sudo > /dev/null || exit {NO_SUDO}; "
    f"sudo -n true 2> /dev/null || exit {ASKS}; "
    'exec sudo -n sh -c "$0"'
)
#: The first folder in which a program may run holds it; as an open file it needs no name.
#: The last `exit` keeps this shell, whose file the agent is started from.
RECEIVE = (
    f"test -e /proc/$$/fd || exit {NO_LINUX}; {{find}}"
    "for d in /dev/shm /run /tmp /var/tmp /root; do "
    'f=$(mktemp "$d/.testbed-XXXXXX" 2> /dev/null) || continue; '
    'chmod 700 "$f"; if test -x "$f"; then exec 8> "$f" 9< "$f"; fi; rm -f "$f"; '
    f"test -e /proc/$$/fd/9 && break; done; test -e /proc/$$/fd/9 || exit {NO_PLACE}; "
    "echo; echo testbed-ready $(uname -m); head -c {size} >&8; exec 8>&-; "
    "test $(wc -c < /proc/$$/fd/9) = {size} || "
    f"exit {NO_SPACE}; echo {RECEIVED.decode().strip()}; "
    "(exec 9<&-; exec /proc/$$/fd/9 $n); exit $?"
)
#: Finds pid 1 of a node that is installed, by the program that it runs: the number alone may be
#: another process's by now.
INSIDE = (
    "n=$(cat {folder}/pid 2> /dev/null); "
    f"test $(readlink /proc/$n/exe) = {{folder}}/{INIT} 2> /dev/null || exit {NO_NODE}; "
)


def arguments(way: WayToNode, folder: Path) -> list[str]:
    """Return ssh's command line for a machine, without a command.

    ``folder`` is the one that relative paths of the way begin at.
    """
    argv = ["ssh"]
    if way.config:
        argv += ["-F", str(folder / way.config)]
    if way.key_file:
        argv += ["-i", str(folder / way.key_file), "-o", "IdentitiesOnly=yes"]
    if way.port:
        argv += ["-p", str(way.port)]
    if way.user:
        argv += ["-l", way.user]
    if way.jump:
        argv += ["-J", way.jump]
    return [*argv, way.address]


def as_caller() -> list[str]:
    """Return the command line that runs a program as the user who called sudo.

    The keys, the agent, the known hosts and the ssh_config are that user's.  ssh finds them
    without HOME, but programs that it runs (ProxyCommand, Match exec) do not.
    """
    who = owner.caller()
    if who is None:
        return []
    change = ["setpriv", f"--reuid={who.uid}", f"--regid={who.gid}", "--init-groups", "--"]
    return [*change, "env", f"HOME={owner.login_home()}"]


def connect(node: str, argv: list[str], agent: Path, inside: str = "") -> Duplex:
    """Log in to a machine and start the agent there; return the stream to it.

    ``argv`` is from :func:`arguments`. ``inside`` is the folder on the machine of a node that is
    installed, which the agent then enters. Raises LabError with the reason, NodeNotRunning without
    that node, CommandError without ssh.
    """
    data = agent.read_bytes()
    find = INSIDE.format(folder=inside) if inside else "n=; "
    command = shlex.join(["sh", "-c", AS_ROOT, RECEIVE.format(size=len(data), find=find)])
    *before, address = argv
    options = [word for one in OPTIONS for word in ("-o", one)]
    stream = Duplex([*as_caller(), *before, *options, "--", address, f"exec {command}"])
    try:
        stream.settimeout(TICK)
        _refuse_other(node, _answer(node, argv, stream))
        _send(node, argv, stream, data)
    except BaseException:
        stream.close()
        raise
    return stream


def _answer(node: str, argv: list[str], stream: Duplex) -> str:
    """Return the processor architecture of the machine, when it waits for the agent."""
    said, deadline = b"", time.monotonic() + PATIENCE
    while (found := READY.search(said)) is None or not said.endswith(b"\n"):
        if time.monotonic() > deadline:
            raise _failed(node, argv, f"no answer within {PATIENCE:g} s", "")
        try:
            data = stream.recv(1 << 12)
        except TimeoutError:
            continue
        if not data or len(said) > MAX_WORDS:
            raise _reason(node, argv, stream.errors, stream.status(ENDING), said)
        said += data
    return found[1].decode()


def _refuse_other(node: str, machine: str) -> None:
    """Raise LabError for a machine of another processor architecture."""
    if machine != platform.machine():
        raise LabError(
            f"{node} has the processor architecture {machine}, and testbed's agent is built for "
            f"{platform.machine()}",
            hint=f"run testbed on a machine with the architecture {machine}",
        )


def _send(node: str, argv: list[str], stream: Duplex, data: bytes) -> None:
    """Send the agent, and wait until the machine has all of it."""
    sent, said, deadline = 0, b"", time.monotonic() + PATIENCE
    while said != RECEIVED:
        try:
            if sent < len(data):
                sent += stream.send(data[sent : sent + CHUNK])
                deadline = time.monotonic() + PATIENCE
                continue
            # Not a byte more: the agent's own follow.
            more = stream.recv(len(RECEIVED) - len(said))
        except TimeoutError:
            if time.monotonic() > deadline:
                raise _failed(node, argv, f"no answer within {PATIENCE:g} s", "") from None
            continue
        except OSError:
            more = b""
        if not more:
            raise _reason(node, argv, stream.errors, stream.status(ENDING), said)
        said += more


def _reason(node: str, argv: list[str], errors: str, status: int | None, said: bytes) -> LabError:
    """Return the error for a login that failed, from ssh's own words and exit status."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    last = "; ".join(lines[-3:]) or said.decode(errors="replace").strip()[-200:]
    by_hand = shlex.join(argv)
    if "REMOTE HOST IDENTIFICATION HAS CHANGED" in errors:
        known = re.search(r"Offending .* key in (.+):(\d+)", errors)
        where = f", line {known[2]} of {known[1]}" if known else ""
        return _failed(
            node, argv, "the machine shows another host key than the known one",
            "another machine may answer in its place. If it was installed again, compare its "
            f"fingerprint, remove the old key (ssh-keygen -R{where}), and log in once: {by_hand}",
        )  # fmt: skip
    if "Host key verification failed" in errors or "host key is known for" in errors:
        return _failed(
            node, argv, "the host key of the machine is not known here",
            f"log in once by hand and compare the fingerprint: {by_hand}",
        )  # fmt: skip
    if "Permission denied" in errors:
        return _failed(
            node, argv, f"the login was refused: {last}",
            "give `user` and `key`, or add the key to the agent (ssh-add); to see more: "
            f"{by_hand} -v",
        )  # fmt: skip
    if status == NO_NODE:
        return NodeNotRunning(
            f"node {node} does not run on {argv[-1]}",
            name=node,
            hint="`testbed up -l LAB` installs and starts it",
        )
    if status == NO_SUDO:
        what, hint = "the user is not root, and the machine has no sudo", "log in as root"
    elif status == ASKS:
        what = "sudo asks the user for a password"
        hint = "permit it without one (NOPASSWD: ALL in sudoers(5)), or log in as root"
    elif status == NO_PLACE:
        what = "no folder in which a program may run (/dev/shm, /run, /tmp, /var/tmp, /root)"
        hint = "mount one of them without noexec"
    elif status == NO_LINUX:
        what, hint = "it has no /proc, so it does not run Linux", "leave it out"
    elif status == NO_SPACE:
        what, hint = f"no space for testbed's agent: {last}", "free some memory or disk space"
    else:
        what = last or f"ssh ended with exit status {status}"
        hint = f"try it by hand: {by_hand}"
    return _failed(node, argv, what, hint)


def _failed(node: str, argv: list[str], what: str, hint: str) -> LabError:
    hint = hint or f"try it by hand: {shlex.join(argv)}"
    return LabError(f"{node} cannot be reached ({argv[-1]}): {what}", hint=hint)
