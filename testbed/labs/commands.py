"""Command lines for a node or a container: as a user, in a folder, with variables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from testbed.errors import CannotRun, UsageError
from testbed.roles.container import enter

if TYPE_CHECKING:
    from testbed.labs.live import LiveContainer
    from testbed.nodes.base import Node

#: Arguments: a folder, then a command.  A shell's status for a command that cannot be run is 126.
NOT_FOUND = 127  # a shell's and nsenter's status for a command that does not exist
NOTHING = "/nonexistent/testbed"
IN_FOLDER = 'cd -- "$1" || exit 126; shift; exec "$@"'


@dataclass(frozen=True, slots=True)
class Login:
    """A user: numeric ids, further groups, and the home folder (empty if it is unknown)."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    home: str = ""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The surroundings of a command.

    ``env`` adds environment variables. ``user`` is ``NAME|UID[:GROUP|GID]``, ``folder`` an
    absolute path; empty means the default.
    """

    env: Mapping[str, str] = field(default_factory=dict)
    user: str = ""
    folder: str = ""


def on_node(node: Node, argv: Sequence[str], given: Surroundings) -> list[str]:
    """Return the command that runs ``argv`` on a node.  Raises UsageError for an unknown user."""
    env, before = {**node.env, **given.env}, []
    if given.user:
        login = _login(node, given.user, "", node.name)
        groups = ",".join(map(str, login.groups))
        before = ["setpriv", f"--reuid={login.uid}", f"--regid={login.gid}"]
        before.append(f"--groups={groups}" if groups else "--clear-groups")
        env = _with_home(env, login)
    if given.folder:
        before += ["sh", "-c", IN_FOLDER, "sh", given.folder]
    return [*before, *_env(env), *argv]


def in_container(
    container: LiveContainer, argv: Sequence[str], given: Surroundings, *, tty: bool
) -> list[str]:
    """Return the command of the node that runs ``argv`` in a container.

    The variables are set on the node: the image need not have env(1). Raises UsageError for an
    unknown user.
    """
    env, options = dict(given.env), []
    if given.user:
        place = f"{container.node.name}/{container.name}"
        login = _login(container.node, given.user, f"/proc/{container.pid}/root", place)
        options += [f"--setuid={login.uid}", f"--setgid={login.gid}"]
        env = _with_home(env, login)
    if given.folder:
        _require_folder(container, given.folder)
        options.append(f"--wdns={given.folder}")
    words = [*enter(container.pid, tty=tty, user=container.state.user), *options, *argv]
    if "PATH" in env:  # that of the container; the programs before it are the node's
        found = container.node.run(["sh", "-c", 'command -v "$1"', "sh", words[0]]).stdout.strip()
        words = [found, *words[1:]]
    return [*_env(env), *words]


def _require_folder(container: LiveContainer, folder: str) -> None:
    """Raise CannotRun unless a container has this folder.

    nsenter(1) would end with 1, as a command could, too. It is asked for a program that no image
    has: it enters the folder first, and its status is then that of a missing program.
    """
    entered = enter(container.pid, user=container.state.user)
    said = container.node.run([*entered, f"--wdns={folder}", NOTHING], check=False)
    if said.status != NOT_FOUND:
        reason = said.stderr.strip().rpartition(": ")[2] or f"nsenter ended with {said.status}"
        raise CannotRun(
            f"{container.node.name}/{container.name} has no folder {folder}: {reason}",
            hint="--workdir is a folder of the container",
        )


def _env(values: Mapping[str, str]) -> list[str]:
    return ["env", *(f"{name}={value}" for name, value in values.items())] if values else []


def _with_home(env: Mapping[str, str], login: Login) -> dict[str, str]:
    return {"HOME": login.home, **env} if login.home else dict(env)


def _login(node: Node, user: str, root: str, place: str) -> Login:
    """Return a user of the files passwd(5) and group(5) below ``root`` on a node.

    A number need not be in them. ``place`` names their owner in errors.
    """
    name, colon, group = user.partition(":")
    users = _entries(node, f"{root}/etc/passwd")
    groups = _entries(node, f"{root}/etc/group")
    found = next((one for one in users if name in (one[0], one[2])), None)
    if found is None and not name.isdecimal():
        known = ", ".join(one[0] for one in users[:12]) or "none"
        raise UsageError(
            f"{place} has no user {name!r}", where="--user", hint=f"users there: {known}"
        )
    uid, gid = (int(found[2]), int(found[3])) if found else (int(name), 0)
    if colon:
        own = next((one for one in groups if group in (one[0], one[2])), None)
        if own is None and not group.isdecimal():
            known = ", ".join(one[0] for one in groups[:12]) or "none"
            raise UsageError(
                f"{place} has no group {group!r}", where="--user", hint=f"groups there: {known}"
            )
        gid = int(own[2]) if own else int(group)
    members = (one for one in groups if found and found[0] in one[3].split(","))
    more = () if colon else tuple(int(one[2]) for one in members)
    return Login(uid, gid, tuple(dict.fromkeys((gid, *more))), found[5] if found else "")


def _entries(node: Node, path: str) -> list[list[str]]:
    """Return the lines of passwd(5) or group(5), each with enough fields and numbers."""
    try:
        text = node.get(path).decode(errors="replace")
    except OSError:  # an image may have neither
        return []
    fields = [line.split(":") for line in text.splitlines()]
    least = 7 if path.endswith("passwd") else 4
    numbers = (2, 3) if least > 4 else (2,)
    return [
        one for one in fields if len(one) >= least and all(one[at].isdecimal() for at in numbers)
    ]
