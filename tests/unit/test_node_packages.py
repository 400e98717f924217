"""Debian packages of nodes: the key, the tree in the cache, and what a node gets of it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from testbed.artifacts import Store, debian, package_tree
from testbed.artifacts.maintainer import accounts, alternatives, folders
from testbed.artifacts.package_tree import ABOUT, PackageTree
from testbed.artifacts.source import Job
from testbed.errors import ArtifactError, CommandError, TopologyError
from testbed.labs import packages, plan
from testbed.labs.lab import Lab
from testbed.nodes.base import PACKAGES, NodeSpec
from testbed.nodes.fake import FakeProvider
from testbed.nodes.netns import provider as netns
from testbed.process import Completed
from testbed.testing import Bench
from testbed.topology import Topology, load_text

TEXT = """
name: some
networks: {lan: {subnet: 10.168.0.0/24}}
nodes:
  n1: {networks: {lan: 10.168.0.2}, packages: [tcpdump, frr]}
  n2: {networks: {lan: 10.168.0.3}}
"""
FRR = """\
addgroup --system frrvty
adduser \\
    --system --ingroup frr --home /nonexistent \\
    --gecos "Frr routing suite" frr
usermod -a -G frrvty frr
adduser --system "$NAME"
"""


@pytest.fixture
def topology() -> Topology:
    return load_text(TEXT, "some.yaml")


# -- the key -------------------------------------------------------------------


def test_a_node_without_packages_is_as_before(topology: Topology) -> None:
    without = load_text(TEXT.replace(", packages: [tcpdump, frr]", ""), "some.yaml")
    assert topology.node_digest("n2") == without.node_digest("n2")
    assert topology.node_digest("n1") != without.node_digest("n1")
    assert "packages" not in topology.to_dict()["nodes"]["n2"]
    assert "packages n1" in plan.make(topology).steps
    assert "packages n2" not in plan.make(topology).steps


@pytest.mark.parametrize("name", ["Tcpdump", "x", "frr=8.4", "-frr", "frr frr"])
def test_a_name_that_no_package_has_is_refused(name: str) -> None:
    with pytest.raises(TopologyError) as caught:
        load_text(TEXT.replace("tcpdump", name), "some.yaml")
    assert [problem.line for problem in caught.value.problems] == [5]


@pytest.mark.parametrize("maker", ["qemu", "vagrant", "containerlab"])
def test_a_provider_with_files_of_its_own_is_named(maker: str) -> None:
    with pytest.raises(TopologyError) as caught:
        load_text(TEXT.replace("packages:", f"provider: {maker}, packages:"), "some.yaml")
    assert maker in caught.value.problems[0].seen


# -- maintainer scripts ------------------------------------------------------------


def test_accounts_are_read_from_a_script_that_does_not_run() -> None:
    found = accounts(FRR)
    assert found == ["g frrvty -", "u frr -:frr - /nonexistent", "m frr frrvty"]


def test_links_of_alternatives_are_read_from_a_script() -> None:
    script = "update-alternatives --quiet \\\n --install /bin/nc nc /bin/nc.openbsd 50 \\\n"
    script += (
        " --slave /bin/netcat netcat /bin/nc.openbsd\nupdate-alternatives --remove nc /bin/x\n"
    )
    assert alternatives(script) == [
        ("/bin/nc", "/bin/nc.openbsd"),
        ("/bin/netcat", "/bin/nc.openbsd"),
    ]
    assert alternatives('update-alternatives --install /bin/x x "$DIR/x" 1') == []


def test_folders_are_those_that_a_boot_would_create() -> None:
    text = "# x\nd /run/frr 0755 frr frr\nd! /run/x - - -\nL /run/y - - - - /z\nd /run/%v 0755"
    assert folders(text) == [("/run/frr", 0o755, "frr", "frr"), ("/run/x", 0o755, "root", "root")]


def test_a_node_gets_the_accounts_with_numbers_of_its_own() -> None:
    node = FakeProvider().create_one("lab", NodeSpec("n1", "-"))
    node.put(b"root:x:0:0:root:/root:/bin/bash\nused:x:998:998::/:/bin/sh\n", "/etc/passwd")
    node.put(b"root:x:0:\nused:x:998:\n", "/etc/group")
    packages.add_accounts(node, accounts(FRR))
    rows = dict(line.split(":", 1) for line in node.get("/etc/passwd").decode().splitlines())
    assert rows["frr"] == "x:996:996::/nonexistent:/usr/sbin/nologin"
    assert node.get("/etc/group").decode().splitlines()[2:] == ["frrvty:x:997:frr", "frr:x:996:"]
    before = node.get("/etc/passwd"), node.get("/etc/group")
    packages.add_accounts(node, accounts(FRR))
    assert (node.get("/etc/passwd"), node.get("/etc/group")) == before


# -- the tree ------------------------------------------------------------------


class Apt:
    """Stands for apt and dpkg, with one package to unpack."""

    def __init__(self, stderr: str = "") -> None:
        self.stderr = stderr
        self.calls: list[list[str]] = []

    def __call__(self, argv: Sequence[str | Path], **_: Any) -> Completed:
        words = [str(word) for word in argv]
        self.calls.append(words)
        out = ""
        if "install" in words and "--simulate" not in words:
            if self.stderr:
                raise CommandError(words, where="this machine", status=100, stderr=self.stderr)
            option = next(word for word in words if word.startswith("Dir::Cache::archives="))
            Path(option.partition("=")[2], "tool_1.0_all.deb").touch()
        elif "--simulate" in words:
            out = "Inst libc6 (2.36)\nInst gone (1)\nInst tool (1.0)\n"
        elif "--extract" in words:
            tree = Path(words[-1])
            for place in ("bin/tool.real", "usr/share/man/man1/tool.1", "lib/systemd/x.service"):
                (tree / place).parent.mkdir(parents=True, exist_ok=True)
                (tree / place).touch()
            (tree / "lib/up").symlink_to("../usr/share/x")
        elif "--show" in words:
            out = "tool 1.0"
        elif words[-1] == "postinst":
            out = "update-alternatives --install /bin/tool tool /bin/tool.real 5\n"
        elif words[-1] == "pkgnames":
            out = "tcpdump\ntcpflow\nfrr\n"
        return Completed(tuple(words), 0, out.encode(), b"")


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Apt], Job]:
    monkeypatch.setattr(debian, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(package_tree, "DPKG", tmp_path / "info")
    for name in ("into", "shared", "info"):
        (tmp_path / name).mkdir()
    (tmp_path / "info" / "libc6:amd64.list").touch()

    def make(apt: Apt) -> Job:
        into, shared = tmp_path / "into", tmp_path / "shared"
        return Job(into, shared, lambda _: None, apt, threading.Event(), lambda _: into)

    return make


def test_a_tree_has_the_programs_where_this_machine_has_its_own(
    job: Callable[[Apt], Job], tmp_path: Path
) -> None:
    source, into = PackageTree(("tool",)), tmp_path / "into"
    assert source.fill(job(Apt())) == "1.0"
    assert into.stat().st_mode & 0o777 == 0o700, "its owners are data, also under sudo"
    tree = into / "tree"
    assert sorted(p.name for p in tree.iterdir()) == ["usr"]
    assert (tree / "usr/bin/tool.real").is_file()
    assert str((tree / "usr/bin/tool").readlink()) == "/bin/tool.real"
    assert str((tree / "usr/lib/up").readlink()) == "/usr/share/x"
    assert not (tree / "usr/share/man").exists()
    about = json.loads((into / ABOUT).read_text())
    assert about["versions"] == {"tool": "1.0"}
    assert about["needs"] == ["libc6"]  # not the one that this machine has never had


def test_apt_does_not_wait_for_another_one(
    job: Callable[[Apt], Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Apt locks the folder of the status file, which is that of a dpkg that runs meanwhile."""
    status = tmp_path / "status"
    status.write_text("Package: libc6\n")
    monkeypatch.setattr(debian, "STATUS", status)
    seen: list[tuple[Path, str]] = []

    class Looking(Apt):
        def __call__(self, argv: Sequence[str | Path], **more: Any) -> Completed:
            for word in map(str, argv):
                if word.startswith("Dir::State::status=") and "--simulate" not in argv:
                    path = Path(word.partition("=")[2])
                    seen.append((path.parent, path.read_text()))
            return super().__call__(argv, **more)

    PackageTree(("tool",)).fill(job(Looking()))
    assert seen == [(tmp_path / "into", "Package: libc6\n")]
    assert not (tmp_path / "into" / "status").exists()


def test_a_tree_is_fetched_again_when_this_machine_has_lost_a_library(
    job: Callable[[Apt], Job], tmp_path: Path
) -> None:
    source, into = PackageTree(("tool",)), tmp_path / "into"
    source.fill(job(Apt()))
    assert source.whole(into)
    (tmp_path / "info" / "libc6:amd64.list").unlink()
    assert not source.whole(into)


def test_an_unknown_package_is_told_with_the_closest_one(job: Callable[[Apt], Job]) -> None:
    with pytest.raises(ArtifactError) as caught:
        PackageTree(("tcpdmup",)).fill(job(Apt("E: Unable to locate package tcpdmup")))
    assert "tcpdmup" in caught.value.message
    assert "tcpdump" in (caught.value.hint or "")


def test_a_machine_without_apt_says_so(
    job: Callable[[Apt], Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(debian, "which", lambda _: None)
    with pytest.raises(ArtifactError) as caught:
        PackageTree(("frr",)).fill(job(Apt()))
    assert "apt-get" in caught.value.message
    assert "--artifact" not in (caught.value.hint or "")


def test_without_a_network_the_hint_says_so(job: Callable[[Apt], Job]) -> None:
    error = "E: Failed to fetch http://deb/x.deb  Temporary failure resolving 'deb'"
    with pytest.raises(ArtifactError) as caught:
        PackageTree(("frr",)).fill(job(Apt(error)))
    assert "connect this machine" in (caught.value.hint or "")


def test_packages_of_roles_can_be_fetched_before_a_lab(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled: list[tuple[str, ...]] = []

    def fill(source: PackageTree, job: Job) -> str:
        filled.append(source.packages)
        (job.into / ABOUT).write_text('{"needs": []}')
        return "1.0"

    monkeypatch.setattr(PackageTree, "fill", fill)
    store = Store(tmp_path / "cache")
    states = {entry.name: entry.state for entry in store.list()}
    assert states["packages-frr"] == states["packages-bird2"] == "missing"
    store.fetch("packages-frr")
    node = load_text(TEXT.replace("packages: [tcpdump, frr]", "roles: [frr]"), "some.yaml").nodes[
        "n1"
    ]
    packages.entries(store, node)
    assert filled == [("frr",)]
    assert {entry.name: entry.state for entry in store.list()}["packages-frr"] == "cached"


# -- on nodes --------------------------------------------------------------------


def test_a_lab_fetches_the_packages_before_its_nodes(
    topology: Topology, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path / "state")
    bench.install(monkeypatch)
    bench.store.missing = ArtifactError("no network")
    with pytest.raises(ArtifactError):
        Lab("some", bench.settings).up(topology)
    assert not bench.provider.asked("create")
    bench.store.missing = None
    lab = Lab("some", bench.settings)
    lab.up(topology)
    assert not lab.up(topology).changed


def test_a_node_is_created_again_when_its_packages_were_fetched_again(
    topology: Topology, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path / "state")
    bench.install(monkeypatch)
    lab = Lab("some", bench.settings)
    lab.up(topology)
    monkeypatch.setattr(packages, "stamp", lambda _: "another tree")
    bench.forget()
    lab.up(topology)
    created = [call.node for call in bench.provider.calls if call.what == "create"]
    assert created == ["n1"]


def test_the_version_of_a_package_is_noted_on_its_node(
    topology: Topology, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path / "state")
    bench.install(monkeypatch)
    found = {"versions": {"frr": "8.4"}, "accounts": ["u frr -"], "folders": []}
    monkeypatch.setattr(package_tree, "about", lambda _: found)
    lab = Lab("some", bench.settings)
    lab.up(topology)
    assert lab.node("n1").get(f"{PACKAGES}/frr") == b"8.4"
    assert b"frr:x:" in lab.node("n1").get("/etc/passwd")


def test_what_a_package_of_the_node_has_is_not_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "tool").touch()
    monkeypatch.setattr(netns, "path_folders", lambda: (str(tmp_path / "bin"),))
    layer = tmp_path / "layer"
    place = str(tmp_path / "bin" / "tool")
    assert place in netns.own_programs(["tool"], [layer])
    Path(f"{layer}{place}").parent.mkdir(parents=True)
    Path(f"{layer}{place}").touch()
    assert place not in netns.own_programs(["tool"], [layer])
