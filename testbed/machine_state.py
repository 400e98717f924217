"""Snapshots of this machine, to detect changes that a lab has left behind.

:func:`snapshot` records everything that a lab could change outside its own
namespaces; :func:`differences` compares two snapshots.  Nothing is modified.
"""

from __future__ import annotations

import collections
import json
import os
import re
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from testbed import polling
from testbed.process import run, which
from testbed.registry import PROVIDERS, ROLES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from collections.abc import Set as AbstractSet

    from testbed.leftover import LabPart
    from testbed.nodes.base import Provider
    from testbed.roles.base import Role

#: Programs of labs besides those of providers and roles; one that runs after its lab has ended is
#: a leftover.
PROGRAMS = ("tcpdump",)
SYSCTLS = (
    "net/ipv4/ip_forward", "net/ipv4/conf/all", "net/ipv4/conf/default", "net/ipv6/conf/all",
    "net/bridge", "kernel", "vm",
)  # fmt: skip
#: Settings that count by themselves, or have an effect when read.
RESTLESS = re.compile(
    r"^kernel/(random/|ns_last_pid$|pty/nr$|perf_event_max_sample_rate$|perf_cpu_time_max)"
    r"|^vm/(stat_refresh|drop_caches|compact_memory)$"
)
COUNTERS = re.compile(r"\[\d+:\d+\]|packets \d+ bytes \d+")
FOLDERS = ("/etc", "/run")  # besides those of providers and roles
COMM_MAX = 15  # bytes of a process name (proc_pid_stat(5))
PAUSE = 0.1  # seconds between the first two snapshots
LONGEST = 1.0  # seconds between later ones: each looks at all processes
#: Areas in which a missing item is no difference: it may have belonged to another user's lab.
PART = "part of a lab"
ONLY_NEW = frozenset({"process", PART})


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The recorded state: area (``link``, ``mount``, ...) to item to value."""

    areas: Mapping[str, Mapping[str, str]]


def snapshot(below: Path | None = None) -> Snapshot:
    """Record the state of the machine.

    With ``below``, labs whose state folder is not below it belong to others and are
    ignored.
    """
    parts = [part for provider in PROVIDERS.usable().values() for part in provider.lab_parts()]
    theirs = [part for part in parts if below is not None and _is_theirs(part, below.resolve())]
    foreign = None if below is None else {_pid_namespace(one.pid) for one in theirs if one.pid}
    return Snapshot(
        {
            "named network namespace": dict.fromkeys(_names("/run/netns"), "there"),
            "link": dict(_links()),
            "route": _counted(_routes()),
            "process": dict(_processes(foreign)),
            "mount": _counted(_text("/proc/self/mounts").splitlines()),
            PART: {
                f"{part.kind} {part.name}": "there"
                for part in parts
                if part not in theirs and part.pid is None
            },
            "cgroup controllers": dict(_controllers()),
            "firewall": _counted(_firewall()),
            "sysctl": dict(_sysctls()),
            "file": dict(_files()),
        }
    )


def differences(before: Snapshot, after: Snapshot) -> list[str]:
    """Return new, missing and changed items, one line each."""
    lines = []
    for area, now in after.areas.items():
        then = before.areas.get(area, {})
        lines += [f"new {area}: {key} ({now[key]})" for key in now if key not in then]
        if area not in ONLY_NEW:
            lines += [f"{area} is gone: {key}" for key in then if key not in now]
        lines += [
            f"{area} has changed: {key}: {then[key]} -> {now[key]}"
            for key in now
            if key in then and then[key] != now[key]
        ]
    return lines


def left(before: Snapshot, *, seconds: float = 5.0, below: Path | None = None) -> list[str]:
    """Return the differences that persist for ``seconds``; return early when there are none.

    The kernel may need a moment to remove the parts of a lab, and another's lab that is just
    being created or removed may look like a leftover for a moment.
    """
    deadline = time.monotonic() + seconds
    lines = differences(before, snapshot(below))
    pause = PAUSE
    while lines:
        late = time.monotonic() > deadline
        time.sleep(pause)
        pause = polling.longer(pause, LONGEST)
        now = set(differences(before, snapshot(below)))
        lines = [line for line in lines if line in now]
        if late:
            break
    return lines


def _is_theirs(part: LabPart, below: Path) -> bool:
    return part.state is not None and not part.state.is_relative_to(below)


def _plugins() -> Iterator[Role | type[Provider]]:
    yield from ROLES.usable().values()
    yield from PROVIDERS.usable().values()


def _names(folder: str) -> list[str]:
    try:
        return sorted(path.name for path in Path(folder).iterdir())
    except OSError:
        return []


def _text(path: str) -> str:
    """Return the text of a file of /proc, in which names may have any encoding."""
    return Path(path).read_text(encoding="utf-8", errors="replace")


def _counted(lines: Iterable[str]) -> dict[str, str]:
    return {line: f"{n} of it" for line, n in collections.Counter(lines).items()}


def _ip(*args: str) -> str:
    return run(["ip", *args], check=False, timeout=10).stdout if which("ip") else ""


def _links() -> Iterator[tuple[str, str]]:
    links: list[dict[str, Any]] = json.loads(_ip("-j", "link", "show") or "[]")
    for link in links:
        kept = ("ifindex", "mtu", "master", "operstate", "address")
        yield link["ifname"], " ".join(f"{key} {link[key]}" for key in kept if key in link)


def _routes() -> Iterator[str]:
    for family in ("-4", "-6"):
        for line in _ip(family, "route", "show", "table", "all").splitlines():
            yield re.sub(r" expires \d+sec", "", line).strip()


def _processes(foreign: AbstractSet[str] | None) -> Iterator[tuple[str, str]]:
    """Yield programs of labs.

    Programs in the pid namespaces ``foreign``, and those that others run now, are left out. With
    None all are yielded.
    """
    programs = tuple(
        name[:COMM_MAX] for name in (*PROGRAMS, *(n for one in _plugins() for n in one.processes))
    )
    for entry in filter(str.isdigit, _names("/proc")):
        try:
            name, rest = _text(f"/proc/{entry}/stat").rsplit(")", 1)
            fields = rest.split()
            argv = Path("/proc", entry, "cmdline").read_bytes()
        except OSError:
            continue
        program = name.partition("(")[2]
        if fields[0] in "ZX" or not program.startswith(programs):
            continue
        # Containers have their own namespaces; the node's namespace is one of the parents.
        if foreign and not foreign.isdisjoint(_pid_namespaces(int(entry))):
            continue
        if foreign is not None and _is_of_another(int(entry)):
            continue
        line = argv.replace(b"\0", b" ").decode(errors="replace").strip()
        yield f"{program} pid {entry} since {fields[19]}", line[:200]


def _is_of_another(pid: int) -> bool:
    """Tell whether another user or program runs a process: its parent is not one of ours.

    A leftover process has lost its parent and was given to pid 1 or to a subreaper, which is an
    ancestor of this process (prctl(2), PR_SET_CHILD_SUBREAPER).
    """
    line = list(_ancestors(pid))
    if len(line) < 2 or os.getpid() in line:
        return False
    return line[1] not in _ancestors(os.getpid())


def _ancestors(pid: int) -> Iterator[int]:
    """Yield a process and its ancestors, without pid 1."""
    while pid > 1:
        yield pid
        try:
            fields = _text(f"/proc/{pid}/stat").rsplit(")", 1)[1]
        except OSError:
            return
        pid = int(fields.split()[1])


def _pid_namespace(pid: int) -> str:
    try:
        return str(Path(f"/proc/{pid}/ns/pid").readlink())
    except OSError:
        return ""


def _pid_namespaces(pid: int) -> set[str]:
    """Return the pid namespaces of a process and of all its ancestors."""
    return {_pid_namespace(one) for one in _ancestors(pid)} - {""}


def _controllers() -> Iterator[tuple[str, str]]:
    for line in _text("/proc/self/mounts").splitlines():
        _, place, kind, *_ = line.split()
        file = Path(place, "cgroup.subtree_control")
        if kind == "cgroup2" and file.exists():
            yield place, file.read_text(encoding="utf-8").strip() or "none"


def _firewall() -> Iterator[str]:
    for program in ("iptables-save", "ip6tables-save"):
        if which(program):
            for line in run([program], check=False, timeout=10).stdout.splitlines():
                if not line.startswith("#"):
                    yield f"{program}: {COUNTERS.sub('', line).strip()}"
    if which("nft"):
        for line in run(["nft", "list", "ruleset"], check=False, timeout=10).stdout.splitlines():
            yield f"nft: {COUNTERS.sub('', line)}"


def _sysctls() -> Iterator[tuple[str, str]]:
    root = Path("/proc/sys")
    for name in SYSCTLS:
        top = root / name
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            key = str(path.relative_to(root))
            try:
                readable = stat.S_ISREG(path.stat().st_mode) and path.stat().st_mode & 0o400
                if readable and not RESTLESS.search(key):
                    yield key.replace("/", "."), path.read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError):
                continue


def _files() -> Iterator[tuple[str, str]]:
    for top in sorted({*FOLDERS, *(name for one in _plugins() for name in one.folders)}):
        for path in _two_levels(Path(top)):
            try:
                status = path.lstat()
            except OSError:
                continue
            folder = stat.S_ISDIR(status.st_mode)
            yield str(path), "folder" if folder else f"written at {status.st_mtime_ns}"


def _two_levels(top: Path) -> Iterator[Path]:
    for name in _names(str(top)):
        path = top / name
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from (path / below for below in _names(str(path)))
