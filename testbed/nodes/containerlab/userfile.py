"""Deploy a user's own topology file in a cell.

containerlab gets the file as it is, with variables filled in, at its path on this machine: binds
and other files are relative to its folder. The folder in the cell is an overlay over the user's, so
nothing that containerlab or a node writes there reaches this machine.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.artifacts.reference import local_name
from testbed.errors import CommandError, LabError, NoSuchNode
from testbed.nodes import engine, wiring
from testbed.nodes.containerlab import FOLDER, topofile
from testbed.nodes.containerlab.cell import exited
from testbed.nodes.containerlab.entered import Entered
from testbed.nodes.netns.node import program_folders
from testbed.nodes.wiring import FORWARDING
from testbed.topology.tree import Problems

if TYPE_CHECKING:
    from testbed.nodes.containerlab.cell import Cell, Container
    from testbed.topology.foreign import Foreign
    from testbed.topology.model import Topology

#: The overlay's own folders, and the digests of the nodes, in the cell.
OVERLAYS = "/run/testbed/overlays"
DIGESTS = f"{FOLDER}/digests.json"
#: Folders that a cell has of its own: those of the kernel, of its engine and of its services.
OWN = (
    "/dev", "/proc", "/run", "/sys", "/etc/docker", engine.DATA, "/var/lib/testbed",
    "/var/log/testbed",
)  # fmt: skip
#: Folders with programs and their libraries, which a cell has, too.
PROGRAMS = (*program_folders(), "/lib", "/usr/lib")

# Arguments: a folder as the cell sees it, the same folder by its path on this machine, a folder for
# what is written.  Paths in options of overlay would need escapes, so the lower one is relative.
OVERLAY = """\
mkdir -p "$2" "$3"
mountpoint -q "$3" || mount -t tmpfs -o mode=755 tmpfs "$3"
test -e "$3/mounted" && exit
mkdir -p "$3/upper" "$3/work"
chmod --reference="$1" "$3/upper"
cd "$1"
mount -t overlay -o "lowerdir=.,upperdir=$3/upper,workdir=$3/work" overlay "$2"
: > "$3/mounted"
"""
# Arguments: names of links.  A bridge can be a parent of macvlan links, too.
HOST_LINKS = """\
for name; do
    ip link show dev "$name" > /dev/null 2>&1 || ip link add name "$name" type bridge
    ip link set dev "$name" up
done
"""


def folders(foreign: Foreign) -> list[Path]:
    """Return the folders of this machine that a file needs: its own, and those of its binds.

    An absolute source below :data:`OWN`, such as /var/run/docker.sock, is the cell's own, as is
    one right in a folder that has parts of the cell.
    """
    own = Path(foreign.file).parent
    found = [own]
    definitions = topofile.Definitions(topofile.parse(foreign.text, Problems(foreign.file)))
    for name in definitions.nodes:
        for bind in (*definitions.lists(name, "binds"), definitions.startup_config(name)):
            source = os.path.expanduser(bind.partition(":")[0])  # noqa: PTH111  it may be no path
            source = source.replace("__clabNodeName__", name)
            if not source or source.startswith("__") or "\n" in source:
                continue  # a folder of containerlab's, which is in the file's own
            path = Path(os.path.normpath(own / source))
            folder = path if path.is_dir() else path.parent
            if Path(source).is_absolute() and any(map(folder.resolve().is_relative_to, OWN)):
                continue
            if folder.is_dir() and not any(map(folder.is_relative_to, found)):
                found.append(folder)
    return [folder for folder in found if not _hides(folder.resolve())]


def _hides(folder: Path) -> bool:
    """Tell whether an overlay at a folder would hide parts of the cell."""
    return any(Path(part).is_relative_to(folder) for part in (*OWN, *PROGRAMS))


# Arguments: a setting to switch on, or an empty one; lines for ``ip -batch``.
SET_UP = """\
test -z "$1" || sysctl -q -w "$1=1"
shift
test $# = 0 || printf '%s\\n' "$@" | ip -batch -
"""
KEEP = "correct the file; `testbed up --keep` keeps the lab for a look"
#: What to do, by a part of containerlab's words in lower case.
HINTS = {
    "operation not supported": "the kernel of this machine lacks a kind of link that the file has, "
    "such as dummy: remove the link, or use another kernel",
    "route to vxlan": "add `parent-interface` to the link: containerlab looks for the route before "
    "it has created its management network",
    "kvm": "the image is a virtual machine, which needs /dev/kvm in the lab: use another image",
    "failed to pull image": "a cell has no network. Remove `image-pull-policy` from the file; "
    "`testbed up --pull always` looks for newer images",
    "license": "add the file of the vendor's licence as `license` of the node",
    "does not exist": "write the file beside the topology file: the lab sees what is there now",
}


@dataclass(frozen=True, slots=True)
class UserFile:
    """A topology that came from a user's file, in its cell."""

    topology: Topology
    foreign: Foreign
    cell: Cell

    @property
    def path(self) -> str:
        """The path of the file, in the cell as on this machine."""
        return self.foreign.file

    @property
    def options(self) -> list[str]:
        """Options of containerlab: the name of a copy of the lab."""
        own = topofile.lab_name(self.foreign.lab)
        return [] if own == self.topology.name else ["--name", self.topology.name]

    def stage(self) -> None:
        """Make the user's folders and the host's links in the cell, and write the file."""
        node = self.cell.node
        for folder in folders(self.foreign):
            # A later file may have other folders: each keeps its own place.
            place = f"{OVERLAYS}/{sha256(bytes(folder)).hexdigest()[:16]}"
            argv = [node.provide(folder), str(folder), place]
            try:
                node.run(["sh", "-ec", OVERLAY, "sh", *argv])
            except CommandError as error:
                error.hint = (
                    f"if {folder} is new in the file, `testbed down {self.topology.name}` first: "
                    "a running lab has the folders that it was created with"
                )
                raise
        links = topofile.host_links(self.foreign.text)
        node.run(["sh", "-ec", HOST_LINKS, "sh", *links])
        node.put(self._text().encode(), self.path)

    def _text(self) -> str:
        """Return the file with tags in the place of digests of images.

        An engine knows a registry's digest only of images that it pulled.
        """
        text = self.foreign.text
        for image in self.foreign.images:
            text = text.replace(image, local_name(image)) if "@" in image else text
        return text

    def deploy(self) -> None:
        """Deploy the lab, or what of it is missing or different, and set addresses of links.

        Raises LabError with containerlab's own words, and one for nodes that have exited.
        """
        self._deploy()
        there = self._containers()
        self._require(there)
        try:
            for name in self.topology.nodes:
                self._set_up(there[name])
        except CommandError:
            self._require(self._containers())  # a node may have exited in between
            raise
        digests = {name: self.topology.node_digest(name) for name in self.topology.nodes}
        self.cell.node.put(json.dumps(digests).encode(), DIGESTS)

    def restore(self, name: str) -> None:
        """Restore missing links and addresses of a running node."""
        container = self._containers()[name]
        place = Entered(self.cell.node, name, container.pid)
        lost = wiring.foreign_differences(self.foreign, name, wiring.look(place))
        if any(one.kind == "link" for one in lost):
            self._deploy()
            container = self._containers()[name]
        self._set_up(container)

    def _deploy(self) -> None:
        try:
            self.cell.deploy(self.path, *self.options)
        except LabError as error:
            error.hint = error.hint or hint(error.message)
            for name, one in self._containers().items():
                if not self.cell.runs(one) and (words := self.cell.last_words(one)):
                    error.message += f"\n{name} has exited:\n{words}"
            raise

    def _containers(self) -> dict[str, Container]:
        return {one.node: one for one in self.cell.containers() if one.node}

    def _require(self, there: Mapping[str, Container]) -> None:
        """Raise LabError if a node has exited, with its last lines."""
        said = []
        for name in self.topology.nodes:
            one = there.get(name)
            if one is None:
                said.append(f"{name}: containerlab has not created it")
            elif not self.cell.runs(one):
                said.append(exited(name, one.exit, self.cell.last_words(one)))
        if said:
            raise LabError(
                "\n".join(said),
                hint="correct `cmd`, `entrypoint` or the image of the node; "
                "`testbed up --keep` keeps the lab for a look",
            )

    def _set_up(self, container: Container) -> None:
        """Set the addresses that the file gives the links of a node; containerlab does not.

        A node forwards packets, as it does on a host with Docker: a new network namespace has the
        setting of the machine's first one (ip-sysctl.rst, devconf_inherit_init_net), not of the
        cell, where Docker has set it.
        """
        lines = []
        for end, _ in self.foreign.ends_of(container.node):
            if end.interface and self.foreign.nodes[container.node].kind == topofile.PLAIN:
                lines += [f"address replace {one} dev {end.interface}" for one in end.addresses]
                lines.append(f"link set dev {end.interface} up")
        forwards = FORWARDING not in self.foreign.text
        if lines or forwards:
            network = Entered(self.cell.node, container.node, container.pid)
            network.run(["sh", "-ec", SET_UP, "sh", FORWARDING if forwards else "", *lines])


def ports(foreign: Foreign, node: str) -> list[str]:
    """Return the names of a node's ports on the bridges that the file names."""
    networks = foreign.nodes[node].networks
    return [peer.interface for _, peer in foreign.ends_of(node) if peer.at in networks]


def management_ports(foreign: Foreign, cell: Cell, container: Container) -> list[str]:
    """Return the name of a running node's port on the management network, if it is on that."""
    if topofile.MANAGEMENT not in foreign.nodes[container.node].networks:
        return []
    network = Entered(cell.node, container.node, container.pid)
    shown = network.run(["ip", "-j", "link", "show", "dev", topofile.MANAGED], check=False)
    if not shown.ok:  # somebody has removed it
        return []
    far = json.loads(shown.stdout)[0].get("link_index")
    links = json.loads(cell.node.run(["ip", "-j", "link"]).stdout)
    return [link["ifname"] for link in links if link["ifindex"] == far]


def direct(foreign: Foreign, node: str) -> dict[str, str]:
    """Return the interfaces of a node that are joined to another node, with that node's name.

    A bridge in a node is a part of that node.
    """
    found = {}
    for link in foreign.links:
        for end, peer in (link.ends, link.ends[::-1]):
            here, there = (topofile.owner(one.at) or one.at for one in (end, peer))
            if here == node != there and there in foreign.nodes and end.interface:
                found[end.interface] = there
    return found


def hint(words: str) -> str:
    """Return what to do about words with which containerlab has refused a file."""
    return next((todo for part, todo in HINTS.items() if part in words.lower()), KEEP)


def digests(cell: Cell) -> dict[str, str]:
    """Return the digests of the nodes that were deployed from a user's file, by name."""
    try:
        found = json.loads(cell.node.get(DIGESTS))
        return {str(name): str(digest) for name, digest in found.items()}
    except (OSError, ValueError, AttributeError, NoSuchNode):  # the cell may have just ended
        return {}
