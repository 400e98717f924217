"""Forms of values that only the options of a container have, in Compose's words."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from testbed.topology import keys, tree
from testbed.topology.families import Plainly, Values
from testbed.topology.settings import Sysctls
from testbed.topology.shapes import Choices, Items, Pattern, Shape, block, whole
from testbed.topology.tree import describe, nearest, quote

if TYPE_CHECKING:
    from testbed.topology.read import Reader
    from testbed.topology.tree import Tree

#: capabilities(7), and Docker's word for all of them.
CAPABILITIES = (
    "ALL", "AUDIT_CONTROL", "AUDIT_READ", "AUDIT_WRITE", "BLOCK_SUSPEND", "BPF",
    "CHECKPOINT_RESTORE", "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID",
    "IPC_LOCK", "IPC_OWNER", "KILL", "LEASE", "LINUX_IMMUTABLE", "MAC_ADMIN", "MAC_OVERRIDE",
    "MKNOD", "NET_ADMIN", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_RAW", "PERFMON", "SETFCAP",
    "SETGID", "SETPCAP", "SETUID", "SYS_ADMIN", "SYS_BOOT", "SYS_CHROOT", "SYS_MODULE",
    "SYS_NICE", "SYS_PACCT", "SYS_PTRACE", "SYS_RAWIO", "SYS_RESOURCE", "SYS_TIME",
    "SYS_TTY_CONFIG", "SYSLOG", "WAKE_ALARM",
)  # fmt: skip
#: Names of limits (docker/go-units, ulimit.go).
LIMITS = (
    "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc",
    "rss", "rtprio", "rttime", "sigpending", "stack",
)  # fmt: skip

CAPS = Choices("a list of capabilities", "capability", CAPABILITIES)
DEVICES = Items(
    Pattern(
        keys.DEVICE,
        "a device, like /dev/net/tun or /dev/a:/dev/b:rw",
        "write the node's path, then the container's, then r, w or m",
    ),
    "a list of devices",
)
VOLUMES = Items(
    Pattern(
        keys.VOLUME,
        "a volume, like data:/var/lib/data, /srv/data:/data or data:/data:ro",
        "write a name or the node's path, a colon, and the path in the container",
    ),
    "a list of volumes",
)
TMPFS = Items(
    Pattern(keys.TMPFS, "a path, like /run or /run:size=64m,mode=755", "begin it with '/'"),
    "a list of paths",
)
EXTRA_HOSTS = Items(
    Pattern(
        keys.EXTRA_HOST,
        "a name and its address, like db:10.0.0.5 or host.docker.internal:host-gateway",
        "write NAME:ADDRESS",
    ),
    "a list of names with addresses",
)
LABELS = Values(
    Pattern(r"(?!testbed\.)[A-Za-z0-9][^\s=]*", "a label's name", "testbed.* are testbed's own"),
    Plainly("a label's value as text or number", "write one value"),
    "a mapping of labels",
)
HOST_NAME = Pattern(keys.HOST_NAME, "a host name", "use letters, digits, '-' and '.'", 63, "a name")
RESTART = Pattern(
    keys.RESTART,
    "no, always, unless-stopped or on-failure, also with the number of tries: on-failure:3",
    'write "no" in quotes',
)
FOLDER = Pattern(r"/[^\x00\n]*", "an absolute path in the container", "begin it with '/'")
USER = Plainly(
    "a user, like 1000, www-data or 1000:1000",
    "write USER or USER:GROUP",
    keys.USER,
    boolean=False,
)


class OwnSysctls(Sysctls):
    """Sysctls that a container has for itself, in its namespaces."""

    def schema(self) -> dict[str, Any]:
        found = super().schema()
        return found | {"propertyNames": {"allOf": [found["propertyNames"], whole(keys.SYSCTL)]}}

    def read(self, read: Reader, at: Tree | None) -> dict[str, str] | None:
        found = super().read(read, at)
        entries = at.entries if isinstance(at, tree.Mapping) else {}
        for name in found or ():
            if not re.fullmatch(keys.SYSCTL, name):
                wanted = "a setting of a container: net.*, fs.mqueue.*, kernel.shm*, kernel.msg*"
                hint = "set it on the node, in its own `sysctls`"
                read.problems.add(entries[name].key, wanted, quote(name), hint)
        return found


class StopSignal(Shape[str]):
    """The name or the number of a signal."""

    def schema(self) -> dict[str, Any]:
        return {
            "anyOf": [whole(keys.STOP_SIGNAL), {"type": "integer", "minimum": 1, "maximum": 64}]
        }

    def read(self, read: Reader, at: Tree | None) -> str | None:
        wanted = "a signal, like SIGTERM or 15"
        hint = "signal(7) lists them"
        value = Plainly(wanted, hint, keys.STOP_SIGNAL, boolean=False).read(read, at)
        if at is None or value is None:
            return None
        known = [one.name for one in signal.Signals]
        name = value if value.startswith("SIG") else f"SIG{value}"
        base = name.partition("+")[0].partition("-")[0]
        if value.isdigit():
            if 1 <= int(value) <= signal.SIGRTMAX:
                return value
        elif base in known:
            return name
        read.problems.add(at, wanted, quote(value), nearest(name, known))
        return None


@dataclass(frozen=True, slots=True)
class Ulimit:
    """A limit of a container's processes; -1 is no limit."""

    soft: int
    hard: int


class Ulimits(Shape[dict[str, Ulimit]]):
    """Limits by name: one number, or both of them."""

    def schema(self) -> dict[str, Any]:
        number = {"type": "integer", "minimum": -1}
        limits = {
            "soft": {"description": "Limit that a process can raise itself.", **number},
            "hard": {"description": "Highest limit for that.", **number},
        }
        both = block(limits, required=list(limits))
        return {
            "type": "object",
            "propertyNames": {"enum": list(LIMITS)},
            "additionalProperties": {"anyOf": [number, both]},
        }

    def read(self, read: Reader, at: Tree | None) -> dict[str, Ulimit] | None:
        found = read.table(at, "a mapping of limits")
        out = {}
        for entry in found.entries.values() if found else ():
            name = read.choice(entry.key, "a limit", LIMITS)
            limit = self._limit(read, entry.value)
            if name is not None and limit is not None:
                out[name] = limit
        return out if found else None

    def _limit(self, read: Reader, at: Tree) -> Ulimit | None:
        if not isinstance(at, tree.Mapping):
            one = self._number(read, at)
            return None if one is None else Ulimit(one, one)
        read.known_only(at, ("soft", "hard"))
        found = {name: self._number(read, at.get(name)) for name in ("soft", "hard")}
        for name in found:
            if name not in at.entries:
                read.problems.add(at, f"the key {name!r}", "none", "write {soft: 1024, hard: 2048}")
        soft, hard = found["soft"], found["hard"]
        if soft is None or hard is None:
            return None
        if hard != -1 and not -1 < soft <= hard:
            hint = "lower it, or raise the hard limit"
            read.problems.add(at, "a soft limit up to the hard one", describe(at), hint)
            return None
        return Ulimit(soft, hard)

    def _number(self, read: Reader, at: Tree | None) -> int | None:
        return read.integer(at, "a limit", -1, (1 << 63) - 1)

    def plain(self, value: Any) -> dict[str, Any]:
        return {
            name: one.soft if one.soft == one.hard else {"soft": one.soft, "hard": one.hard}
            for name, one in value.items()
        }
