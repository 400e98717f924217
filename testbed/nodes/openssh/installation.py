"""The installation of one node on a machine that exists already, and its removal.

A folder of the machine has all of it: a record, the program ``testbed-init``, and the files of the
node. The record is written first, and removed last. It has the state of the machine from before,
as far as daemons change it, so that every step of a removal can be repeated, by whichever process
comes after one that was killed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Self

from testbed.errors import CommandError, LabError
from testbed.nodes.footprint import Footprint
from testbed.nodes.netns import cgroups
from testbed.nodes.openssh import facts, traces
from testbed.nodes.openssh.client import INIT
from testbed.nodes.openssh.facts import DATA, Facts

if TYPE_CHECKING:
    from pathlib import Path

    from testbed.nodes.base import NodeSpec
    from testbed.nodes.existing import ExistingNode

KIND = "installed"  # of the node, to its pid 1; other kinds are nodes of labs on that machine
RECORD = "record.json"
FAMILIES = {"ip": "iptables-nft", "ip6": "ip6tables-nft"}
#: Folder of the node's programs, which can be added to them: in an overlay, in memory.
PROGRAMS = "/usr"
SENDING = 60.0  # timeout in seconds for a program of a megabyte to be sent
#: Argument: the folder. Another installation has it if it is there.
MAKE = 'mkdir -m 700 "$1" && cat > "$1/part" && mv "$1/part" "$1/record.json"'
#: Arguments: a path, and permission bits.
WRITE = 'cat > "$1.part" && chmod "$2" "$1.part" && mv "$1.part" "$1"'
#: Arguments: folders of cgroups. An empty set of version 1 refuses processes.
GROUPS = """\
for folder; do
  mkdir -p "$folder"
  for file in cpuset.cpus cpuset.mems; do
    above=${folder%/*}/$file
    [ -e "$folder/$file" ] && [ -e "$above" ] || continue
    [ -n "$(cat "$folder/$file")" ] || cat "$above" > "$folder/$file"
  done
done
"""
#: Arguments: the folder, and the command that starts pid 1 and prints its number.
START = """\
folder=$1
shift
mkdir -p "$folder/lib"
pid=$("$@")
echo "$pid" > "$folder/pid"
"""
#: Arguments: the folder, and the name of the program. Ends what runs that program, with all
#: processes of the node. The kernel ends these before pid 1 becomes a zombie.
END = r"""
list() { ls -l /proc/[0-9]*/exe 2> /dev/null | sed -n "s,.* /proc/\([0-9]*\)/exe -> $1\$,\1,p"; }
pids=$(list "$1/$2")
[ -n "$pids" ] || exit 0
kill -9 $pids 2> /dev/null || :
tries=300
for pid in $pids; do
  while [ -e "/proc/$pid" ] && ! grep -q '^State:.*Z' "/proc/$pid/status" 2> /dev/null; do
    tries=$((tries - 1))
    [ $tries -gt 0 ] || { echo "process $pid does not end" >&2; exit 1; }
    sleep 0.1
  done
done
"""
#: Arguments: folders of cgroups. The kernel still counts processes that have just ended.
UNGROUP = r"""
for folder; do
  tries=100
  while [ -d "$folder" ]; do
    find "$folder" -depth -type d -exec rmdir {} \; 2> /dev/null || :
    tries=$((tries - 1))
    [ $tries -gt 0 ] || { echo "cannot remove the cgroup $folder" >&2; exit 1; }
    [ ! -d "$folder" ] || sleep 0.1
  done
done
"""
#: Argument: the folder. Nothing but the folder is made before the record is in it.
DROP = '[ ! -d "$1" ] || { rm -f "$1/part" && rmdir "$1"; }'
#: Argument: the folder.
FORGET = """\
rm -rf "$1/lib" "$1/testbed-init" "$1"/*part "$1/pid"
rm -f "$1/record.json"
rmdir "$1"
"""
SET = 'printf "%s\\n" "$2" > "$1"'
SHOWN = ("linkdown", "dead")  # states of routes, which `ip route del` does not take


@dataclass(frozen=True, slots=True)
class Record:
    """The record on the machine: whose the installation is, and how the machine was before.

    ``owner`` tells the state folder that it belongs to, and ``boot`` is the ID of the machine's
    boot. ``policies`` are those of the chain FORWARD by table, by variant of iptables; ``tables``
    the tables of nftables by family.
    """

    lab: str
    node: str
    owner: str
    boot: str
    footprint: Footprint
    policies: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    tables: Mapping[str, list[str]] = field(default_factory=dict)
    links: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    sysctls: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, seen: Facts, footprint: Footprint, *, lab: str, node: str, owner: str) -> Self:
        """Return the record of a machine with these facts, before anything is installed."""
        return cls(
            lab,
            node,
            owner,
            seen.boot,
            footprint,
            policies={name: traces.policies(text) for name, text in seen.variants.items()},
            tables={family: seen.tables(family) for family in FAMILIES},
            links=tuple(seen.links),
            modules=tuple(seen.modules),
            sysctls=seen.sysctls,
        )

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read the record.  Raises ValueError for another file."""
        plain: dict[str, Any] = json.loads(data)
        try:
            plain["footprint"] = Footprint.of_dict(plain["footprint"])
            known = {one.name: plain[one.name] for one in fields(cls) if one.name in plain}
            return cls(**known)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no record of an installation: {error}") from error

    def dump(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode()


class Installation:
    """The installation for one node of a lab; it need not exist.

    ``machine`` is the machine itself, ``owner`` as in :class:`Record`, ``footprint`` that of the
    node's roles.  ``programs`` are those that the roles run on the machine, with their Debian
    packages.
    """

    def __init__(
        self,
        machine: ExistingNode,
        lab: str,
        owner: str,
        footprint: Footprint,
        programs: Mapping[str, str],
    ) -> None:
        self._machine = machine
        self._lab = lab
        self._owner = owner
        self._footprint = footprint
        self._packages = {**programs, **facts.PROGRAMS}
        self.folder = folder_of(lab)

    def record(self) -> Record | None:
        """Return the record on the machine; None without one.  Raises LabError."""
        try:
            return Record.parse(self._machine.get(f"{self.folder}/{RECORD}"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValueError as error:
            raise LabError(
                f"{self.folder}/{RECORD} on {self._machine.name} cannot be read: {error}",
                hint="look at it, and remove the folder if it is no lab's",
            ) from error

    def is_ours(self) -> bool:
        """Tell whether the machine has an installation for this node, whole or not."""
        record = self.record()
        return record is not None and self._has_made(record)

    def _has_made(self, record: Record) -> bool:
        mine = (self._lab, self._machine.name, self._owner)
        return (record.lab, record.node, record.owner) == mine

    def check(self) -> Facts:
        """Return the facts of the machine.  Raises LabError with all that speaks against it."""
        seen = facts.read(self._machine, self._footprint, self._packages)
        found = facts.problems(seen, self._footprint, self._packages)
        for folder in seen.parts["folders"]:
            found.insert(0, self._taken(folder.rstrip("/")))
        if found:
            lines = "".join(f"\n    {line}" for line in found)
            raise LabError(
                f"roles cannot be installed on {self._machine.name}:{lines}",
                hint="nothing was changed; correct this, and repeat the `up`",
            )
        return seen

    def _taken(self, folder: str) -> str:
        """Return the words for a folder of an installation on the machine, which is not ours."""
        whose = "another lab"
        try:
            record = Record.parse(self._machine.get(f"{folder}/{RECORD}"))
            whose = f"node {record.node} of lab {record.lab} of {record.owner}"
        except (OSError, ValueError):
            pass
        return f"{folder} belongs to {whose}: `testbed down` there removes it"

    def create(self, spec: NodeSpec, state: Path, init: bytes) -> None:
        """Install the node and start it.

        ``init`` is the program ``testbed-init``.  Raises LabError, and then leaves what
        :meth:`remove` removes.
        """
        seen = self.check()
        mine = {"lab": self._lab, "node": spec.name, "owner": self._owner}
        record = Record.of(seen, self._footprint, **mine)
        self._do(["sh", "-ec", MAKE, "sh", self.folder], input=record.dump())
        for module in record.footprint.modules:
            # A kernel may have it built in, and then knows nothing of it.
            self._machine.run(["modprobe", "-q", module], check=False)
        self._do(["sh", "-ec", WRITE, "sh", f"{self.folder}/{INIT}", "755"], input=init)
        hierarchies = cgroups.hierarchies(seen.mounts)
        groups = [str(one.mount / self._group) for one in hierarchies]
        self._do(["sh", "-ec", GROUPS, "sh", *groups])
        argv = [f"{self.folder}/{INIT}", KIND, self._lab, spec.name, spec.digest, str(state)]
        argv += ["network", "machine", "data", f"{self.folder}/lib", "tree", PROGRAMS]
        for one, group in zip(hierarchies, groups, strict=True):
            argv += ["cgroup", group, *one.option]
        self._do(["sh", "-ec", START, "sh", self.folder, *argv])

    @property
    def _group(self) -> str:
        """The name of the node's cgroups."""
        return f"testbed-{self._lab}"

    def _do(self, argv: Sequence[str], *, input: bytes | None = None) -> None:
        """Run a part of the installation.  Raises LabError with what the machine said."""
        try:
            self._machine.run(argv, input=input, timeout=SENDING)
        except CommandError as error:
            raise LabError(
                f"{self._machine.name}: {error.stderr.strip() or error}",
                hint="the machine needs Linux 5.12 or later, root, and no container around it",
            ) from error

    # -- removing -------------------------------------------------------------

    def remove(self) -> bool:
        """Remove the installation; return False if there was none of ours.

        Raises LabError if a part cannot be removed; the record then stays.
        """
        record = self.record()
        if record is None:
            self._do(["sh", "-ec", DROP, "sh", self.folder])
            return False
        if not self._has_made(record):
            return False
        # A later `up` may have added more, such as a network of Docker with a bridge of its own.
        both = Footprint.of_all((record.footprint, self._footprint))
        record = replace(record, footprint=both)
        self._do(["sh", "-ec", END, "sh", self.folder, INIT])
        seen = facts.read(self._machine, record.footprint, ())
        if seen.boot == record.boot:  # what is not a file has ended with the boot
            self._restore(record, seen)
        groups = [str(one.mount / self._group) for one in cgroups.hierarchies(seen.mounts)]
        self._do(["sh", "-ec", UNGROUP, "sh", *groups])
        self._do(["sh", "-ec", FORGET, "sh", self.folder])
        return True

    def _restore(self, record: Record, seen: Facts) -> None:
        """Undo the changes to the network and the kernel's modules."""
        footprint = record.footprint

        for link in traces.links(seen.links, footprint, record.links):
            # The second end of a link goes with the first.
            self._machine.run(["ip", "link", "del", link], check=False)
        for variant, saved in seen.variants.items():
            text = traces.restored(saved, footprint, record.policies.get(variant, {}))
            if text:
                argv = [f"{variant}-restore", "--noflush", "-w", "5"]
                self._machine.run(argv, input=text.encode())
        seen = facts.read(self._machine, footprint, ())
        for family, variant in FAMILIES.items():
            before = record.tables.get(family, [])
            mine = [one for one in seen.tables(family) if one in footprint.tables]
            left = traces.left_tables(seen.saved(variant), seen.tables(family), before)
            for table in (*mine, *left):
                self._machine.run(["nft", "delete", "table", family, table])
        for route in traces.routes(seen.routes, footprint):
            words = [word for word in route.split() if word not in SHOWN]
            family = "-6" if ":" in route.split()[0] else "-4"
            self._machine.run(["ip", family, "route", "del", *words])
        for name, value in record.sysctls.items():
            if seen.sysctls.get(name, value) != value:
                self._do(["sh", "-ec", SET, "sh", f"/proc/sys/{name.replace('.', '/')}", value])
        for module in footprint.filters:
            if module in seen.modules and module not in record.modules:
                # Not modprobe, which would unload the module below it, with the links of others.
                self._machine.run(["rmmod", module], check=False)
        self._require_gone(record)

    def _require_gone(self, record: Record) -> None:
        """Raise LabError if a link or a rule is still there."""
        seen = facts.read(self._machine, record.footprint, ())
        left = traces.links(seen.links, record.footprint, record.links)
        for variant, saved in seen.variants.items():
            left += [f"{variant}: {rule}" for rule in traces.rules(saved, record.footprint)]
        if left:
            raise LabError(
                f"{self._machine.name} still has {', '.join(left)}",
                hint=f"remove what uses them, and repeat `testbed down {self._lab}`",
            )


def folder_of(lab: str) -> str:
    """Return the folder on a machine for its node of a lab."""
    return f"{DATA}/testbed-{lab}"
