"""A user's file of containerlab in a cell: folders, names, addresses, nodes that have exited."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from testbed.errors import CommandError, LabError
from testbed.nodes.base import Result
from testbed.nodes.containerlab import topofile, userfile
from testbed.nodes.containerlab.cell import NODE, Cell, Container
from testbed.nodes.wiring import FORWARDING
from testbed.topology import load_data
from testbed.topology.tree import Problems

if TYPE_CHECKING:
    from collections.abc import Sequence

    from testbed.topology.foreign import Foreign
    from testbed.topology.model import Topology

TEXT = """\
name: Pair
topology:
  nodes:
    a: {kind: linux, image: x}
    b: {kind: linux, image: x}
    s: {kind: nokia_srlinux, image: y}
    br-1: {kind: bridge}
    br-2|a: {kind: bridge}
  links:
    - endpoints: [a:eth1, b:eth1]
      ipv4: [10.9.0.1/24, ""]
    - endpoints: [a:eth2, macvlan:wan0]
    - endpoints: [s:e1-1, br-1:p1]
"""


def topology(text: str, file: Path) -> Topology:
    problems = Problems("x")
    found = topofile.read(text, file, problems)
    assert not problems
    return load_data({**found, "foreign": {**found["foreign"], "format": "containerlab"}}, "x")


def foreign(text: str, file: Path) -> Foreign:
    found = topology(text, file).foreign
    assert found is not None
    return found


@dataclass
class Machine:
    """A cell's node: it notes commands and files."""

    asked: list[tuple[list[str], bytes]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)

    def run(self, argv: Sequence[str], *, input: bytes = b"", **_: object) -> Result:
        self.asked.append(([*argv], input))
        return Result(tuple(argv), 0, b"[]\0[]\0000", b"")

    def put(self, data: bytes, path: str) -> None:
        self.files[path] = data

    def get(self, path: str) -> bytes:
        if path not in self.files:
            raise FileNotFoundError(path)
        return self.files[path]

    def provide(self, path: Path) -> str:
        return f"/seen{path}"


@dataclass
class Containers:
    """A cell with these nodes; of those in ``ended``, the last words."""

    names: Sequence[str]
    ended: dict[str, str] = field(default_factory=dict)
    refusal: str = ""
    node: Machine = field(default_factory=Machine)
    deployed: list[tuple[str, ...]] = field(default_factory=list)

    def deploy(self, path: str, *options: str) -> None:
        self.deployed.append((path, *options))
        if self.refusal:
            raise LabError(self.refusal)

    def containers(self) -> list[Container]:
        return [
            Container(f"clab-{name}", name, pid, {NODE: name}, exit=3)
            for pid, name in enumerate(self.names, 100)
        ]

    def runs(self, container: Container) -> bool:
        return container.node not in self.ended

    def last_words(self, container: Container) -> str:
        return self.ended.get(container.node, "")


def user_file(
    cell: Containers, tmp_path: Path, name: str = "", *, text: str = TEXT
) -> userfile.UserFile:
    found = topology(text, tmp_path / "pair.clab.yml")
    assert found.foreign is not None
    named = replace(found, name=name or found.name)
    return userfile.UserFile(named, found.foreign, cast("Cell", cell))


def test_folders_are_those_of_the_file_and_its_binds(tmp_path: Path) -> None:
    own, other, deep = tmp_path / "own", tmp_path / "other", tmp_path / "own" / "deep"
    for folder in (own, other, deep, tmp_path / "a"):
        folder.mkdir()
    (other / "file").touch()
    text = (
        "name: x\ntopology:\n  nodes:\n    a:\n      kind: linux\n      binds:\n"
        "        - deep:/deep\n        - ../other/file:/file:ro\n        - /etc/hosts:/hosts\n"
        "        - __clabNodeDir__/x:/x\n        - nowhere/x:/x\n"
        "        - ../__clabNodeName__/x:/y\n        - /nowhere/x:/x\n"
        '      startup-config: "hostname a\\nend"\n'
    )
    assert userfile.folders(foreign(text, own / "x.clab.yml")) == [own, other, tmp_path / "a"]


def test_a_file_at_the_top_of_the_machine_hides_nothing_of_the_cell() -> None:
    assert userfile.folders(foreign(TEXT, Path("/x.clab.yml"))) == []
    assert userfile.folders(foreign(TEXT, Path("/etc/x.clab.yml"))) == []


@pytest.mark.parametrize(
    "source",
    ["/var/run/docker.sock", "/run/docker.sock", "/run/netns", "/sys/fs/cgroup", "/dev/net/tun",
     "/proc/sys/net", "/etc/hosts", "/etc/docker/daemon.json", "/var/lib/a", "/var/lib/docker/x",
     "/var/log/a", "/usr/bin/env", "/usr/sbin", "/bin/sh", "/lib", "/usr/local/bin/a", "/a"],
)  # fmt: skip
def test_a_bind_of_the_host_is_one_of_the_cell(tmp_path: Path, source: str) -> None:
    """An overlay there would hide the cell's engine, or show this machine's."""
    text = TEXT.replace("image: y}", f"image: y, binds: ['{source}:/there']}}")
    assert source in text
    assert userfile.folders(foreign(text, tmp_path / "x.clab.yml")) == [tmp_path]


def test_a_folder_below_one_of_the_cells_can_have_a_lab(tmp_path: Path) -> None:
    own = tmp_path.resolve() / "run" / "lab"
    (own.parent / "other").mkdir(parents=True)
    own.mkdir()
    text = TEXT.replace("image: y}", "image: y, binds: ['../other:/there']}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(userfile, "OWN", (str(own.parent),))
        found = userfile.folders(foreign(text, own / "x.clab.yml"))
    assert found == [own, own.parent / "other"]


def test_links_of_the_host() -> None:
    assert topofile.host_links(TEXT) == ["br-1", "wan0"]


def test_a_copy_has_its_own_name(tmp_path: Path) -> None:
    assert user_file(Containers([]), tmp_path).options == []
    assert user_file(Containers([]), tmp_path, "copy").options == ["--name", "copy"]


def test_a_folder_keeps_its_place_when_the_file_has_others(tmp_path: Path) -> None:
    """A place that has been mounted is left alone."""
    (tmp_path / "lab").mkdir()
    places: list[dict[str, str]] = []
    for binds in (["late"], ["early", "late"]):
        cell = Containers([])
        sources = [tmp_path / name for name in binds]
        for source in sources:
            source.mkdir(exist_ok=True)
        text = TEXT.replace("image: y}", f"image: y, binds: {[f'{s}:/x' for s in sources]}}}")
        user_file(cell, tmp_path / "lab", text=text).stage()
        asked = [argv[-2:] for argv, _ in cell.node.asked if userfile.OVERLAY in argv]
        places.append(dict(asked))
    first, second = places
    assert second.items() > first.items()
    assert len(set(second.values())) == len(second) == 3


def test_a_folder_that_a_running_lab_lacks_is_explained(tmp_path: Path) -> None:
    cell = Containers([])

    def fails(argv: Sequence[str], **_: object) -> Result:
        raise CommandError(argv, where="fabric", status=2)

    cell.node.run = fails  # type: ignore[method-assign]
    with pytest.raises(CommandError) as caught:
        user_file(cell, tmp_path).stage()
    assert "testbed down" in (caught.value.hint or "")


@pytest.mark.parametrize("tag", ["", ":3"])
def test_images_by_digest_have_tags_in_the_cell(tag: str, tmp_path: Path) -> None:
    """An engine knows digests only of images that it has pulled."""
    digest = "ab" * 32
    image = f"r.example/x{tag}@sha256:{digest}"
    cell = Containers([])
    user_file(cell, tmp_path, text=TEXT.replace("image: x", f'image: "{image}"')).stage()
    wanted = TEXT.replace("image: x", f'image: "r.example/x:sha256-{digest}"')
    assert cell.node.files[str(tmp_path / "pair.clab.yml")].decode() == wanted


def test_addresses_are_set_on_plain_nodes_alone(tmp_path: Path) -> None:
    cell = Containers(["a", "b", "s"])
    file = user_file(cell, tmp_path)
    file.stage()
    file.deploy()
    assert cell.deployed == [(str(tmp_path / "pair.clab.yml"),)]
    entered: dict[str, list[str]] = {}
    for argv, _ in cell.node.asked:
        if argv[0] == "nsenter":
            entered.setdefault(argv[1], []).extend(argv[2:])
    assert "address replace 10.9.0.1/24 dev eth1" in entered["--net=/proc/100/ns/net"]
    assert not [word for word in entered["--net=/proc/101/ns/net"] if word.startswith("address")]
    assert entered["--net=/proc/102/ns/net"][3:] == ["sh", FORWARDING]
    digests = userfile.digests(cast("Cell", cell))
    assert digests == {name: file.topology.node_digest(name) for name in ("a", "b", "s")}
    assert cell.node.files[file.path].decode() == TEXT


def test_what_the_file_says_about_forwarding_stays(tmp_path: Path) -> None:
    text = TEXT.replace("image: y}", f"image: y, sysctls: {{{FORWARDING}: 0}}}}")
    found = topology(text, tmp_path / "pair.clab.yml")
    cell = Containers(["a", "b", "s"])
    assert found.foreign is not None
    userfile.UserFile(found, found.foreign, cast("Cell", cell)).deploy()
    assert not [argv for argv, _ in cell.node.asked if f"{FORWARDING}=1" in argv]


def test_nodes_that_have_exited_are_told_with_their_last_lines(tmp_path: Path) -> None:
    cell = Containers(["a", "b"], {"a": "no such file", "b": ""})
    with pytest.raises(LabError) as error:
        user_file(cell, tmp_path).deploy()
    words = error.value.message
    assert "a exited with status 3" in words
    assert "no such file" in words
    assert "b exited with status 3" in words
    assert "s: " in words  # it was not created
    assert userfile.digests(cast("Cell", cell)) == {}


def test_a_node_that_exits_while_it_is_set_up_is_told_with_its_last_lines(tmp_path: Path) -> None:
    cell = Containers(["a", "b", "s"])

    def exits(argv: Sequence[str], **_: object) -> Result:
        cell.ended["a"] = "last words"
        raise CommandError(argv, where="fabric", status=1)

    cell.node.run = exits  # type: ignore[method-assign]
    with pytest.raises(LabError) as error:
        user_file(cell, tmp_path).deploy()
    assert "a exited with status 3" in error.value.message
    assert "last words" in error.value.message


def test_a_refusal_comes_with_the_last_lines_of_nodes(tmp_path: Path) -> None:
    cell = Containers(["a", "b"], {"a": "no such file", "b": ""}, refusal="a exited immediately")
    with pytest.raises(LabError) as error:
        user_file(cell, tmp_path).deploy()
    assert error.value.message.startswith("a exited immediately")
    assert "no such file" in error.value.message
    assert "b has" not in error.value.message


@pytest.mark.parametrize(
    ("words", "todo"),
    [
        ('node "a" deploy links: operation not supported', "kernel"),
        ("Failed to find a route to VxLAN remote address 10.0.0.1.", "parent-interface"),
        ("open /dev/kvm: no such file", "/dev/kvm"),
        ("Failed to pull image image=docker.io/library/alpine:3", "--pull"),
        ("anything else", "--keep"),
    ],
)
def test_words_of_containerlab_come_with_what_to_do(words: str, todo: str, tmp_path: Path) -> None:
    with pytest.raises(LabError) as error:
        user_file(Containers([], refusal=words), tmp_path).deploy()
    assert error.value.message == words
    assert todo in (error.value.hint or "")


@pytest.mark.parametrize(
    ("links", "deployments"),
    [([], 1), ([{"ifname": f"eth{n}", "flags": ["UP"]} for n in (1, 2)], 0)],
)
def test_a_lost_link_is_containerlabs_and_an_address_is_ours(
    links: list[dict[str, Any]], deployments: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = Containers(["a", "b", "s"])
    answer = json.dumps(links).encode() + b"\0[]\0000"
    monkeypatch.setattr(cell.node, "run", lambda argv, **_: Result(tuple(argv), 0, answer, b""))
    user_file(cell, tmp_path).restore("a")
    assert len(cell.deployed) == deployments
