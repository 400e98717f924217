"""The store: what is asked for by name, from the inventory or from the user."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import pytest

from testbed import owner
from testbed.artifacts import Store
from testbed.artifacts.inventory import INVENTORY, Inventory
from testbed.artifacts.source import Job, Origin, Source
from testbed.errors import ArtifactError, CommandError, Interrupted, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from testbed.artifacts.config import Policy
    from testbed.artifacts.fetch import Sum


@dataclass
class Made(Source):
    """Makes programs out of nothing and counts how often it had to."""

    programs: tuple[str, ...]
    error: Exception | None = None
    times: list[str] = field(default_factory=list)
    origin: ClassVar[Origin] = "debian"

    def recipe(self) -> Mapping[str, object]:
        return {"programs": list(self.programs)}

    def brings(self) -> tuple[str, ...]:
        return self.programs

    def fill(self, job: Job) -> str:
        self.times.append("made")
        if self.error:
            raise self.error
        if job.cancel.is_set():
            raise Interrupted(2)
        (job.into / "bin").mkdir()
        for name in self.programs:
            (job.into / "bin" / name).write_text(f"#!{name}")
        (job.into / "image.tar").write_text("image")
        job.say("made it")
        return "1.0"


class Plant(Made):
    """Something that is made from another entry."""

    def __init__(self, programs: tuple[str, ...], of: str = "") -> None:
        super().__init__(programs)
        self._of = of

    def of(self) -> str:
        return self._of


@dataclass
class House:
    """A store over an inventory of stand-ins."""

    folder: Path
    docker: Made = field(default_factory=lambda: Made(("dockerd", "runc")))
    other: Made = field(default_factory=lambda: Made(("dockerd",)))
    web: Made = field(default_factory=lambda: Made(()))
    kubelet: Made = field(default_factory=lambda: Made(("kubelet",)))
    said: list[tuple[str, str, bool]] = field(default_factory=list)

    def store(
        self, config: str | None = None, *, pull: Policy | None = "never", **overrides: str
    ) -> Store:
        path = self.folder / "config.toml"
        path.write_text(config or "", encoding="utf-8")
        inventory = Inventory(
            {"docker": self.docker, "docker-29": self.other, "nginx": self.web},
            images={"nginx": "nginx"},
            tools={"go": Made(("go",))},
            programs={"docker": "docker"},
            roles={"cluster": {"kubelet": self.kubelet, "kubelet-image": Made(())}},
        )
        return Store(
            self.folder / "cache",
            overrides,
            path,
            self.tell,
            pull=pull,
            inventory=inventory,
        )

    def tell(self, name: str, words: str, /, *, ended: bool = False) -> None:
        self.said.append((name, words, ended))

    def program(self, name: str = "own") -> Path:
        path = self.folder / name
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
        return path


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def test_a_program_is_made_once_and_then_at_hand(house: House) -> None:
    store = house.store()
    path = store.binary("dockerd")
    assert path.read_text() == "#!dockerd"
    assert store.binary("runc").parent == path.parent
    assert house.store().binary("dockerd") == path
    assert house.docker.times == ["made"]
    assert house.said == [("docker", "made it", False), ("docker", "ready, 1.0", True)]


def test_a_program_that_is_still_to_be_made_is_not_made_by_a_look(house: House) -> None:
    store = house.store()
    assert store.made("kubelet") is None
    assert house.kubelet.times == []
    path = store.binary("kubelet")
    assert store.made("kubelet") == house.store().made("kubelet", "docker", "kubelet") == path
    own = house.program()
    assert house.store(kubelet=str(own)).made("kubelet") == own
    with pytest.raises(ArtifactError, match="nothing"):
        store.made("nothing")


def test_a_warm_look_up_takes_no_time(house: House) -> None:
    store = house.store()
    store.binary("dockerd")
    again = house.store()
    again.binary("dockerd")
    begin = time.process_time()
    for _ in range(100):
        again.binary("dockerd")
    assert (time.process_time() - begin) / 100 < 0.002


def test_a_removed_program_is_noticed(house: House) -> None:
    store = house.store()
    store.binary("dockerd").unlink()
    assert store.binary("dockerd").exists()
    assert house.docker.times == ["made", "made"]


def test_a_build_that_fails_comes_with_the_way_to_bring_the_program(house: House) -> None:
    """Unless its own error says what to do."""
    house.kubelet.error = CommandError(["go", "build"], where="this machine", status=1)
    with pytest.raises(ArtifactError) as caught:
        house.store().binary("kubelet")
    lines = str(caught.value.hint).partition("\n")[2]
    assert tomllib.loads(lines)["artifacts"]["kubelet"]["path"]
    house.kubelet.error = ArtifactError("no compiler", hint="install one")
    with pytest.raises(ArtifactError) as caught:
        house.store().binary("kubelet")
    assert caught.value.hint == "install one"


def test_a_program_that_this_systems_package_lacks(house: House) -> None:
    with pytest.raises(ArtifactError, match="docker"):
        house.store().binary("docker")


def test_an_unknown_program_comes_with_the_way_to_bring_it(house: House) -> None:
    with pytest.raises(ArtifactError, match="'containerlab'") as caught:
        house.store().binary("containerlab")
    hint = str(caught.value.hint)
    assert str(house.folder / "config.toml") in hint
    own = tomllib.loads(hint.partition("\n")[2])["artifacts"]["containerlab"]
    assert own["path"].startswith("/")


def test_an_image_with_and_without_its_tag(house: House) -> None:
    store = house.store()
    assert store.image("nginx") == store.image("nginx:latest")
    assert store.image("nginx").read_text() == "image"


MANY = [
    "redis", "alpine:3.20", "localhost:5000/team/web:1.2", f"busybox@sha256:{'0' * 64}", "nginx",
    "docker.io/library/nginx:latest",
]  # fmt: skip


def test_all_unknown_images_come_with_the_way_to_bring_them(house: House) -> None:
    """The way works: the lines are pasted, with files at the paths, and nothing is missing."""
    with pytest.raises(ArtifactError, match="redis") as caught:
        house.store().image("redis")
    error = house.store().lacking_images(MANY)
    assert error is not None
    for name in MANY[:4]:
        assert name in error.message
    lines = str(error.hint).partition("\n")[2]
    assert set(tomllib.loads(lines)["images"]) == set(MANY[:4])
    assert list(tomllib.loads(str(caught.value.hint).partition("\n")[2])["images"]) == ["redis"]
    there = lines.replace("/path/to", str(house.folder))
    for number, one in enumerate(tomllib.loads(there)["images"].values()):
        Path(one["path"]).write_text(f"image {number}")
    store = house.store(there)
    assert store.lacking_images(MANY) is None
    assert len({store.image(name).read_text() for name in MANY[:4]}) == 4
    assert store.image("docker.io/library/redis:latest") == store.image("redis")


def test_an_images_file_that_is_not_there_is_told_with_the_unknown_ones(house: House) -> None:
    store = house.store('[images]\n"a:1" = {path = "/nowhere/a.tar"}\n')
    error = store.lacking_images(["a:1", "b:2"])
    assert error is not None
    assert "/nowhere/a.tar" in error.message
    assert "b:2" in error.message
    assert list(tomllib.loads(str(error.hint).partition("\n")[2])["images"]) == ["b:2"]


def test_a_users_program_wins_and_is_not_copied(house: House) -> None:
    own = house.program()
    assert house.store(dockerd=str(own)).binary("dockerd") == own
    assert house.store(f"[artifacts]\ndockerd = {{path = '{own}'}}").binary("dockerd") == own
    assert house.store(containerlab=str(own)).binary("containerlab") == own
    assert house.docker.times == []


def test_the_command_line_wins_over_the_file(house: House) -> None:
    one, two = house.program("one"), house.program("two")
    store = house.store(f"[artifacts]\nrunc = {{path = '{one}'}}", runc=str(two))
    assert store.binary("runc") == two


def test_a_users_path_that_is_not_there(house: House) -> None:
    with pytest.raises(UsageError, match="/nowhere"):
        house.store(dockerd="/nowhere").binary("dockerd")


def test_a_users_program_that_is_not_executable(house: House) -> None:
    own = house.program()
    own.chmod(0o644)
    with pytest.raises(UsageError, match="not executable") as caught:
        house.store(dockerd=str(own)).binary("dockerd")
    assert caught.value.hint == f"chmod +x {own}"


def test_a_users_image(house: House) -> None:
    own = house.folder / "redis.tar"
    own.write_text("tar")
    assert house.store("[images]\nredis = {path = 'redis.tar'}").image("redis:latest") == own
    assert house.store(nginx=str(own)).image("nginx") == own


def test_a_bad_file_is_told_when_it_is_first_needed(house: House) -> None:
    store = house.store("[artifacts]\nx = 1")
    with pytest.raises(UsageError, match=r"config\.toml:2: artifacts\.x"):
        store.binary("dockerd")


def test_the_path_of_a_part_is_its_folder(house: House) -> None:
    store = house.store()
    assert store.path_dirs("docker") == [store.binary("dockerd").parent]
    with pytest.raises(ArtifactError, match="'nothing'"):
        store.path_dirs("nothing")


def test_the_path_of_a_part_with_a_users_program_holds_no_neighbours(house: House) -> None:
    own = house.program("runc")
    house.program("neighbour")
    store = house.store(runc=str(own))
    (folder,) = store.path_dirs("docker")
    assert sorted(path.name for path in folder.iterdir()) == ["dockerd", "runc"]
    assert (folder / "runc").resolve() == own
    assert store.path_dirs("docker") == [folder]
    store.remove("docker")
    (again,) = store.path_dirs("docker")
    assert (again / "dockerd").read_text() == "#!dockerd"


def test_the_first_of_several_parts_brings_a_program(house: House) -> None:
    store = house.store()
    plain, other = store.binary("dockerd"), store.binary("dockerd", "docker-29", "docker")
    assert plain != other
    assert store.binary("dockerd", "docker", "docker-29") == plain
    assert store.binary("runc", "docker-29", "docker") == plain.parent / "runc"
    (folder,) = store.path_dirs("docker-29", "docker")
    resolved = {path.name: path.resolve() for path in folder.iterdir()}
    assert resolved == {"dockerd": other, "runc": plain.parent / "runc"}
    with pytest.raises(ArtifactError, match="'runc'"):
        store.binary("runc", "docker-29")


def test_a_users_program_wins_over_every_part(house: House) -> None:
    own = house.program("dockerd")
    store = house.store(dockerd=str(own))
    assert store.binary("dockerd", "docker-29", "docker") == own
    (folder,) = store.path_dirs("docker-29", "docker")
    assert (folder / "dockerd").resolve() == own
    assert (folder / "runc").read_text() == "#!runc"
    assert house.other.times == []  # nothing of it is used


def test_a_users_download(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = hashlib.sha256(b"x").hexdigest()

    def fetch(job: Job, url: str, target: Path, wanted: Sum, *, limit: int) -> None:
        assert (url, wanted.digest) == ("https://example.org/weave", digest)
        target.write_bytes(b"x")

    monkeypatch.setattr("testbed.artifacts.url.fetch", fetch)
    store = house.store(
        f"[artifacts]\nweave = {{url = 'https://example.org/weave', sha256 = '{digest}'}}"
    )
    assert [entry.state for entry in store.list() if entry.name == "weave"] == ["missing"]
    assert store.binary("weave").read_bytes() == b"x"
    assert [entry.state for entry in store.list() if entry.name == "weave"] == ["cached"]
    assert store.versions()["weave"] == f"sha256.{digest[:8]}"


def test_a_failed_command_is_an_artifact_error_with_its_output(house: House) -> None:
    house.docker.error = CommandError(["cc"], where="this machine", status=1, stderr="no luck")
    with pytest.raises(ArtifactError, match=r"docker\n.*cc: exit status 1\n +no luck"):
        house.store().binary("dockerd")


def test_the_name_stands_before_a_sources_own_error(house: House) -> None:
    house.docker.error = ArtifactError("no network", hint="plug it in")
    with pytest.raises(ArtifactError, match=r"^docker: no network") as caught:
        house.store().binary("dockerd")
    assert caught.value.hint == "plug it in"


def test_interrupt_ends_what_is_being_made(house: House) -> None:
    store = house.store()
    store.interrupt()
    with pytest.raises(Interrupted):
        store.binary("dockerd")


def test_the_list_tells_what_is_here_missing_old_and_the_users(house: House) -> None:
    house.store().binary("dockerd")
    house.docker.programs = ("dockerd", "runc", "ctr")
    own = house.program()
    store = house.store(own=str(own), lost="/nowhere")
    states = {(entry.name, entry.state, entry.origin) for entry in store.list()}
    assert states == {
        ("docker", "missing", "debian"),
        ("docker", "old", "debian"),
        ("docker-29", "missing", "debian"),
        ("nginx", "missing", "debian"),
        ("kubelet", "missing", "debian"),
        ("kubelet-image", "missing", "debian"),
        ("go", "missing", "debian"),
        ("own", "cached", "path"),
        ("lost", "missing", "path"),
    }
    store.binary("ctr")
    (docker,) = (
        entry for entry in store.list() if (entry.name, entry.state) == ("docker", "cached")
    )
    assert docker.version == "1.0"
    assert docker.path == store.binary("ctr").parent.parent
    assert docker.size > 0
    assert json.loads((docker.path / "artifact.json").read_text())["key"] == docker.key


def test_remove_one_and_all(house: House) -> None:
    store = house.store()
    store.binary("dockerd")
    store.image("nginx")
    assert store.remove("dockerd") > 0  # a program stands for its part
    assert {entry.name for entry in store.list() if entry.state == "cached"} == {"nginx"}
    assert store.remove() > 0
    assert [entry for entry in store.list() if entry.state == "cached"] == []
    assert store.remove() == 0
    assert store.binary("dockerd").exists()


def test_fetch_makes_parts_programs_images_and_the_users(house: House) -> None:
    store = house.store(own=str(house.program()))
    for name in ("docker", "runc", "nginx", "go", "own"):
        store.fetch(name)
    assert {entry.name for entry in store.list() if entry.state == "cached"} == {
        "docker",
        "nginx",
        "go",
        "own",
    }


def test_what_others_make_is_kept_by_its_recipe(house: House) -> None:
    store, one, two = house.store(), Made(("one",)), Made(("two",))
    assert store.kept("seed", one) is None
    folder = store.keep("seed", one)
    assert store.keep("seed", two) != folder
    assert store.keep("seed", one) == store.kept("seed", one) == folder
    assert (one.times, two.times) == (["made"], ["made"])
    assert [entry.state for entry in store.list() if entry.name == "seed"] == ["cached", "cached"]


def test_what_was_made_from_another_goes_with_it(house: House) -> None:
    store, seed = house.store(), Made(("seed",))
    of = store.keep("seed", seed).name.rpartition("-")[2]
    folders = [store.keep("plant", Plant(("plant",), of)), store.keep("plant", Plant(("weed",)))]
    assert [e.state for e in store.list() if e.name == "plant"] == ["cached", "cached"]
    assert {e.of for e in store.list() if e.name == "plant"} == {of, ""}
    store.remove("seed", of)
    assert [folder.exists() for folder in folders] == [False, True]


def test_what_was_made_from_something_that_is_gone_is_old(house: House) -> None:
    store = house.store()
    store.keep("plant", Plant(("plant",), "gone"))
    assert [e.state for e in store.list() if e.name == "plant"] == ["old"]


def test_prune_removes_what_is_old_and_nothing_else(house: House) -> None:
    store = house.store()
    store.binary("dockerd")
    house.docker.programs = ("dockerd", "runc", "ctr")  # another recipe
    store.binary("dockerd")
    gone = store.keep("plant", Plant(("plant",), "gone"))
    kept = store.keep("seed", Made(("seed",)))
    old = [entry for entry in store.list() if entry.state == "old"]
    assert sorted(entry.name for entry in old) == ["docker", "plant"]
    assert store.prune() == sum(entry.size for entry in old)
    assert [entry for entry in store.list() if entry.state == "old"] == []
    assert (gone.exists(), kept.exists()) == (False, True)
    assert [e.name for e in store.list() if e.state == "cached"] == ["docker", "seed"]
    assert store.prune() == 0


@pytest.mark.parametrize("act", [Store.prune, Store.remove, Store.sweep], ids=lambda a: a.__name__)
def test_removal_from_a_cache_that_cannot_be_written(
    house: House, monkeypatch: pytest.MonkeyPatch, act: Callable[[Store], object]
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    house.store().keep("plant", Plant(("plant",), "gone"))
    (house.folder / "cache" / ".tmp-plant-0123.1.2").mkdir()
    monkeypatch.setattr("testbed.owner.create", fail)
    with pytest.raises(ArtifactError, match="Read-only") as caught:
        act(house.store())
    assert "TESTBED_CACHE" in str(caught.value.hint)


def test_a_disk_that_gets_full_is_told_with_the_way_out(house: House) -> None:
    says = "mke2fs: No space left on device"
    house.docker.error = CommandError(["mke2fs"], where="here", status=1, stderr=says)
    with pytest.raises(ArtifactError, match=r"disk of .* is full\n.*No space") as caught:
        house.store().binary("dockerd")
    assert "TESTBED_CACHE" in str(caught.value.hint)
    assert not list(house.folder.glob("cache/.tmp-*"))


def test_a_version_is_known_as_soon_as_it_is_made(house: House) -> None:
    store = house.store()
    assert store.version("docker") == ""
    store.binary("dockerd")
    assert store.version("docker") == "1.0"


def test_versions_of_programs_and_images(house: House) -> None:
    store = house.store()
    for part in ("docker", "docker-29", "kubelet", "go", "nginx"):
        store.fetch(part)
    assert store.versions_of(["dockerd", "runc"]) == {"docker": "1.0"}
    assert store.versions_of(["dockerd", "runc"], "docker-29", "docker") == {
        "docker-29": "1.0",
        "docker": "1.0",
    }
    assert store.versions_of(["runc"], "docker-29") == {}
    assert store.versions_of(["nothing"], images=["nothing:2"]) == {}
    assert store.versions_of([], images=["docker.io/library/nginx:latest"]) == {"nginx": "1.0"}


def test_versions_of_what_is_not_made_or_is_the_users(house: House) -> None:
    own, image = house.program(), house.program("web.tar")
    store = house.store(f'[images]\n"web:1" = {{path = "{image}"}}\n', dockerd=str(own))
    assert store.versions_of(["dockerd", "runc", "kubelet"], images=["web:1", "nginx"]) == {
        "dockerd": f"from {own}",
        "web:1": f"from {image}",
    }


def test_what_takes_long_and_is_not_made_yet(house: House) -> None:
    store = house.store()
    assert store.unmade("cluster") == ["kubelet", "kubelet-image"]
    store.fetch("kubelet")
    assert house.store().unmade("cluster") == ["kubelet-image"]
    assert store.unmade("docker") == []


def test_the_default_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESTBED_CACHE", "/a")
    assert owner.cache() == Path("/a")
    monkeypatch.delenv("TESTBED_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert owner.cache() == Path("/b/testbed")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/c")
    assert owner.cache() == Path("/c/.cache/testbed")


def test_the_inventory_has_what_labs_ask_for() -> None:
    wanted = {
        *("dockerd", "docker-proxy", "docker-init", "containerd", "containerd-shim-runc-v2"),
        *("runc", "etcd", "etcdctl", "flanneld", "testbed-init"),
    }
    assert wanted <= set(INVENTORY.programs)
    assert set(INVENTORY.images.values()) <= set(INVENTORY.parts)
    keys = [source.key() for source in INVENTORY.parts.values()]
    assert len(set(keys)) == len(keys)


@pytest.mark.source
def test_importing_it_loads_nothing_heavy() -> None:
    code = "import sys, testbed.artifacts; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"urllib.request", "tarfile", "tomllib", "http.client"} & set(loaded)
