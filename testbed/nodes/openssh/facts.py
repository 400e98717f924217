"""Facts of a machine on which roles are to be installed, and what speaks against it.

One command reads them. Nothing on the machine is changed, and no kernel module is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from testbed.nodes.existing import FIND
from testbed.nodes.openssh import traces
from testbed.spelling import counted

if TYPE_CHECKING:
    from testbed.nodes.footprint import Footprint
    from testbed.nodes.place import Runs

DATA = "/var/lib"  #: folder of the machine that has the lab's folder
OLDEST = (5, 12)  #: release of Linux with mount_setattr(2), which the node's own files need
ROOM = 1 << 30  #: bytes; the programs take a third of it, and images and logs some of the rest
#: Variants of iptables, each with the family of its tables in nftables; empty for those outside.
VARIANTS: Mapping[str, str] = {
    "iptables-nft": "ip",
    "ip6tables-nft": "ip6",
    "iptables-legacy": "",
    "ip6tables-legacy": "",
}
#: Programs that the installation itself runs on the machine, with their Debian packages.
PROGRAMS: Mapping[str, str] = {
    "ip": "iproute2",
    "rm": "coreutils",
    "sed": "sed",
    "find": "findutils",
}
#: Arguments: names of programs, modules, sysctls, daemons, variants of iptables; each in one word.
LOOK = f"""\
find_daemons() {{
{FIND}}}
say() {{ printf '\\n== %s\\n' "$1"; }}
say kernel; uname -r
say boot; cat /proc/sys/kernel/random/boot_id
say mounts; cat /proc/self/mountinfo
say room; df -Pk {DATA} | tail -n 1
say folders; ls -d {DATA}/testbed-*/ 2> /dev/null
say links; ls /sys/class/net
say sockets; for kind in tcp tcp6 udp udp6; do sed "s,^,$kind ," /proc/net/$kind; done 2> /dev/null
say lacking; for name in $1; do command -v "$name" > /dev/null || echo "$name"; done
say modules; for name in $2; do [ -d "/sys/module/$name" ] && echo "$name"; done
say sysctls
for name in $3; do
  file=/proc/sys/$(echo "$name" | tr . /)
  [ -e "$file" ] && echo "$name $(cat "$file")"
done
say daemons; find_daemons $4
say routes; ip route; ip -6 route
say tables; command -v nft > /dev/null && nft list tables
for name in $5; do
  say "$name"; command -v "$name-save" > /dev/null && "$name-save"
done
:
"""
LISTENS = {"tcp": "0A", "udp": "07"}  # states of sockets in /proc/net (linux/net/tcp_states.h)


@dataclass(frozen=True, slots=True)
class Facts:
    """Facts of a machine, each as its command printed them, by the word in :data:`LOOK`."""

    parts: Mapping[str, Sequence[str]]

    @property
    def boot(self) -> str:
        """The ID of the machine's boot."""
        return self.parts["boot"][0]

    @property
    def links(self) -> list[str]:
        return [*self.parts["links"]]

    @property
    def modules(self) -> list[str]:
        """Those of the asked modules that are loaded, or built in with parameters."""
        return [*self.parts["modules"]]

    @property
    def sysctls(self) -> dict[str, str]:
        """The values of those of the asked settings that the kernel has."""
        pairs = (line.partition(" ") for line in self.parts["sysctls"])
        return {name: value for name, _, value in pairs}

    @property
    def routes(self) -> str:
        return _text(self.parts["routes"])

    @property
    def mounts(self) -> str:
        """The text of proc_pid_mountinfo(5)."""
        return _text(self.parts["mounts"])

    def saved(self, variant: str) -> str:
        """Return the rules of a variant of iptables; empty without its programs."""
        return _text(self.parts[variant])

    @property
    def variants(self) -> dict[str, str]:
        """The rules of each variant that has some."""
        return {name: text for name in VARIANTS if (text := self.saved(name)).strip()}

    def tables(self, family: str) -> list[str]:
        """Return the names of the nftables tables of a family."""
        found = (line.split() for line in self.parts["tables"])
        return [words[2] for words in found if len(words) == 3 and words[1] == family]

    @property
    def ports(self) -> set[str]:
        """The ports on which somebody listens, as ``tcp/22``."""
        found = set()
        for line in self.parts["sockets"]:
            words = line.split()
            kind = words[0].rstrip("6")
            if len(words) > 4 and words[4] == LISTENS[kind]:
                found.add(f"{kind}/{int(words[2].rpartition(':')[2], 16)}")
        return found

    @property
    def room(self) -> int:
        """Free bytes of the file system with :data:`DATA`."""
        return int(self.parts["room"][0].split()[3]) << 10

    @property
    def file_system(self) -> tuple[str, Sequence[str]]:
        """The type of the file system with :data:`DATA`, and the options of its mount."""
        found: tuple[str, str, Sequence[str]] = ("", "", ())
        for line in self.parts["mounts"]:
            before, _, after = line.partition(" - ")
            place, options = before.split(" ")[4:6]
            within = f"{DATA}/".startswith(f"{place.rstrip('/')}/")
            if within and len(place) >= len(found[0]):  # a later mount covers an earlier one
                found = (place, after.split(" ")[0], options.split(","))
        return found[1], found[2]


def read(machine: Runs, footprint: Footprint, programs: Iterable[str]) -> Facts:
    """Read the facts of a machine.  ``programs`` are names of programs that it should have."""
    asked = (programs, footprint.modules, footprint.sysctls, footprint.daemons, VARIANTS)
    words = [" ".join(sorted(names)) for names in asked]
    return parse(machine.run(["sh", "-c", LOOK, "sh", *words]).stdout)


def parse(text: str) -> Facts:
    """Return the facts in the output of :data:`LOOK`."""
    parts: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith("== "):
            lines = parts[line.removeprefix("== ")] = []
        elif line:
            lines.append(line)
    return Facts(parts)


def problems(facts: Facts, footprint: Footprint, packages: Mapping[str, str]) -> list[str]:
    """Return why roles cannot be installed on a machine, each with what to do.

    ``packages`` has the Debian package of each program that it should have.
    """
    return [
        *_daemons(facts),
        *_ports(facts, footprint),
        *_network(facts, footprint),
        *_programs(facts, packages),
        *_kernel(facts),
        *_disk(facts),
    ]


def _daemons(facts: Facts) -> Iterable[str]:
    for line in facts.parts["daemons"]:
        name, _, pid = line.partition(" ")
        yield (
            f"{name} runs already (pid {pid}): remove `install` from the node to use it as it is, "
            "or stop it"
        )


def _ports(facts: Facts, footprint: Footprint) -> Iterable[str]:
    for port in sorted(facts.ports & {*footprint.ports}):
        yield f"port {port} is taken: `ss -lnp` shows by whom; stop it"


def _network(facts: Facts, footprint: Footprint) -> Iterable[str]:
    for name in facts.links:
        if footprint.has_link(name):
            yield f"a link {name} exists already: remove what it belongs to, or `ip link del`"
    for variant, saved in facts.variants.items():
        if found := traces.rules(saved, footprint):
            table, _, first = found[0].partition(" ")
            yield (
                f"{variant} has {counted(len(found), 'rule')} of such daemons already, first "
                f"`{first}` in {table}: remove what they belong to, or restart the machine"
            )
    for name in footprint.tables:
        if any(name in facts.tables(family) for family in ("ip", "ip6")):
            yield f"a table {name} of nftables exists already: `nft delete table` removes it"
    for route in traces.routes(facts.routes, footprint):
        yield f"a route to the lab's networks exists already: {route}"


def _programs(facts: Facts, packages: Mapping[str, str]) -> Iterable[str]:
    lacking = facts.parts["lacking"]
    if lacking:
        names = sorted({packages[name] for name in lacking})
        yield f"programs are missing: {', '.join(lacking)}: apt-get install {' '.join(names)}"


def _kernel(facts: Facts) -> Iterable[str]:
    release = facts.parts["kernel"][0]
    found = re.match(r"(\d+)\.(\d+)", release)
    if found and (int(found[1]), int(found[2])) < OLDEST:
        yield f"its kernel is {release}: Linux {'.'.join(map(str, OLDEST))} or later is required"


def _disk(facts: Facts) -> Iterable[str]:
    kind, options = facts.file_system
    if facts.room < ROOM:
        yield (
            f"{DATA} has {facts.room >> 20} MiB of free space, and {ROOM >> 20} MiB are required: "
            "free some"
        )
    if kind == "overlay":
        yield f"{DATA} is on an overlay file system, on which Docker keeps no images: mount another"
    for option in ("noexec", "ro"):
        if option in options:
            yield f"{DATA} is mounted with {option}: mount it without"


def _text(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)
