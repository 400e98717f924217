"""Images that are neither the user's nor built here: their sources, in order, and what is said."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pwd
import shutil
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import registries
from click.shell_completion import ShellComplete

from testbed import cli, owner
from testbed.artifacts import Store, images, skopeo
from testbed.artifacts import archive as archives
from testbed.artifacts.config import Registry
from testbed.artifacts.images import Facts, entry_name
from testbed.artifacts.inventory import Inventory
from testbed.artifacts.reference import Reference
from testbed.artifacts.store import PULLS
from testbed.errors import ArtifactError, CommandError, Interrupted, TimeoutExpired
from testbed.process import Completed

if TYPE_CHECKING:
    from testbed.artifacts.config import Policy

NAME = "registry.example:5000/team/web:1"


@dataclass
class Machine:
    """A machine with Docker, Podman and skopeo, told by their commands alone."""

    folder: Path
    #: Images of a program, by name: archives.
    has: dict[str, dict[str, Path]] = field(default_factory=dict)
    calls: list[tuple[str, ...]] = field(default_factory=list)
    says: str = "manifest unknown"
    fails_after: int | None = None  # layers that skopeo fetches before its end
    raises: BaseException | None = None
    user: str = ""
    hang: tuple[str, ...] = ()  # programs that never answer
    waits: Callable[[], object] = lambda: None  # called before the layers of an image

    def __call__(
        self, argv: Sequence[str | Path], *, timeout: float | None = None, **_: Any
    ) -> Completed:
        words = tuple(map(str, argv))
        self.calls.append(words)
        if words[0] in self.hang:
            if timeout is None:
                pytest.fail(f"{words} would hang for ever")
            raise TimeoutExpired(f"{words[0]} took longer than {timeout:g} s")
        if words[0] == "skopeo":
            return self.skopeo(words)
        return self.engine(words)

    def engine(self, words: tuple[str, ...]) -> Completed:
        path = self.has.get(words[0], {}).get(words[-1])
        if path is None:
            raise CommandError(words, where="here", status=1, stderr="Error: No such image")
        if words[1] == "save":
            shutil.copyfile(path, words[words.index("-o") + 1])
            return Completed(words, 0, b"", b"")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        said = digest if words[0] == "podman" else f"sha256:{digest}"
        return Completed(words, 0, said.encode(), b"")

    def skopeo(self, words: tuple[str, ...]) -> Completed:
        if "login" in words:
            return Completed(words, 0 if self.user else 1, self.user.encode(), b"")
        (name,) = (w.removeprefix("docker://") for w in words if w.startswith("docker://"))
        if written := [w.partition("=")[2] for w in words if w.startswith("--digestfile=")]:
            return self.push(words, name, Path(written[0]))
        path = self.has.get("skopeo", {}).get(name)
        if "@" in name:  # the fake's only image of the repository
            repository = name.partition("@")[0]
            known = self.has.get("skopeo", {})
            path = next((p for n, p in known.items() if n.rpartition(":")[0] == repository), None)
        if path is None:
            said = f'level=fatal msg="Error parsing image name \\"docker://{name}\\": {self.says}"'
            raise CommandError(words, where="here", status=1, stderr=said)
        manifest, config, layers = described(path)
        if "copy" in words:
            self.waits()
            self.copy(words, layers)
            return Completed(words, 0, b"", b"")
        return Completed(words, 0, config if "--config" in words else manifest, b"")

    def push(self, words: tuple[str, ...], name: str, written: Path) -> Completed:
        if self.says != "manifest unknown":
            said = f'level=fatal msg="{self.says}"'
            raise CommandError(words, where="here", status=1, stderr=said)
        (source,) = (w.partition(":")[2] for w in words if w.startswith("docker-archive:"))
        assert ":" not in source  # it would end the path
        self.has.setdefault("pushed", {})[name] = Path(source).resolve()
        written.write_text(digest(Path(source).read_bytes()) + "\n")
        return Completed(words, 0, b"", b"")

    def copy(self, words: tuple[str, ...], layers: Mapping[str, bytes]) -> None:
        (blobs,) = (w.partition("=")[2] for w in words if w.startswith("--dest-shared-blob-dir"))
        for number, (digest, data) in enumerate(layers.items()):
            if number == self.fails_after:
                if self.raises:
                    raise self.raises
                said = 'level=fatal msg="writing blob: connection reset by peer"'
                raise CommandError(words, where="here", status=1, stderr=said)
            place = Path(blobs, digest.replace(":", "/"))
            if not place.exists():  # as skopeo does
                self.calls.append(("fetched", digest))
                part = Path(words[-1].split(":")[1]).parent / digest.partition(":")[2]
                part.write_bytes(data)
                part.rename(place)

    @property
    def fetched(self) -> list[str]:
        return [words[1] for words in self.calls if words[0] == "fetched"]

    @property
    def asked(self) -> list[str]:
        """The programs that were called, without repetitions."""
        return list(dict.fromkeys(words[0] for words in self.calls if words[0] != "fetched"))


def described(path: Path) -> tuple[bytes, bytes, dict[str, bytes]]:
    """An archive's image as a registry has it: manifest, configuration, layers by digest."""
    import tarfile

    with tarfile.open(path) as tar:
        members = {one.name: tar.extractfile(one).read() for one in tar}  # type: ignore[union-attr]
    (image,) = json.loads(members["manifest.json"])
    config = members[image["Config"]]
    layers = {digest(members[name]): members[name] for name in image["Layers"]}
    manifest = {
        "config": {"mediaType": skopeo.CONFIGS[0], "digest": digest(config)},
        "layers": [{"digest": one, "size": len(data)} for one, data in layers.items()],
    }
    return json.dumps(manifest).encode(), config, layers


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    for module in (images, skopeo):
        monkeypatch.setattr(module, "which", lambda name: f"/usr/bin/{name}")
    return Machine(tmp_path)


def store_of(
    machine: Machine, *sources: str, pull: Policy | None = None, config: str = ""
) -> Store:
    path = machine.folder / "config.toml"
    path.write_text(config)
    return Store(
        machine.folder / "cache", {}, path,
        pull=pull, images_from=sources, runner=machine,
        inventory=Inventory({}, images={}, tools={}, programs={}),
    )  # fmt: skip


def text_of(path: Path) -> str:
    """The text in the last layer of an image."""
    *_, layers = described(path)
    return list(layers.values())[-1][512:].rstrip(b"\0").decode()


def archive(machine: Machine, text: str, *below: str) -> Path:
    return registries.image(machine.folder / f"{text}.tar", *below, text)


# -- the order ------------------------------------------------------------------------------------


def test_the_configuration_comes_before_everything(machine: Machine) -> None:
    own, other = archive(machine, "own"), archive(machine, "other")
    machine.has = {name: {NAME: other} for name in ("docker", "skopeo")}
    found = store_of(machine, "docker", config=f'[images."{NAME}"]\npath = "{own}"').image(NAME)
    assert found == own
    assert machine.calls == []


def test_the_cache_comes_before_all_sources(machine: Machine) -> None:
    machine.has["skopeo"] = {NAME: archive(machine, "first")}
    first = store_of(machine).image(NAME)
    machine.calls.clear()
    machine.has["docker"] = {NAME: archive(machine, "second")}
    store = store_of(machine, "docker")
    assert store.image(NAME) == first
    assert store.lacking_images([NAME]) is None
    assert store.absent_images([NAME, "redis"]) == {
        "redis": ["this machine's docker", "registry docker.io"]
    }
    assert machine.calls == []


@pytest.mark.parametrize("order", [("docker", "podman"), ("podman", "docker")])
def test_sources_are_asked_in_the_order_of_the_user(
    machine: Machine, order: tuple[str, str]
) -> None:
    machine.has = {name: {NAME: archive(machine, name)} for name in ("docker", "podman")}
    assert text_of(store_of(machine, *order).image(NAME)) == order[0]
    assert machine.asked == [order[0]]


def test_a_source_of_the_command_line_comes_before_those_of_the_file(machine: Machine) -> None:
    machine.has = {name: {NAME: archive(machine, name)} for name in ("docker", "podman")}
    store = store_of(machine, "podman", config='[pull]\nfrom = ["docker"]')
    assert text_of(store.image(NAME)) == "podman"


def test_no_engine_is_asked_unless_the_user_says_so(machine: Machine) -> None:
    machine.has = {name: {NAME: archive(machine, name)} for name in ("docker", "podman", "skopeo")}
    assert text_of(store_of(machine).image(NAME)) == "skopeo"
    assert machine.asked == ["skopeo"]


def test_an_engine_that_hangs_is_not_waited_for(machine: Machine) -> None:
    machine.hang, machine.has = ("docker",), {"podman": {NAME: archive(machine, "other")}}
    assert text_of(store_of(machine, "docker", "podman").image(NAME)) == "other"
    shutil.rmtree(machine.folder / "cache")
    with pytest.raises(ArtifactError, match="docker: no answer"):
        store_of(machine, "docker", pull="never").image(NAME)


def test_an_image_of_podmans_own_is_found_by_its_short_name(machine: Machine) -> None:
    machine.has["podman"] = {"web:1": archive(machine, "own")}
    found = store_of(machine, "podman").image("web:1")
    assert archive_names(found) == {"docker.io/library/web:1"}


def archive_names(path: Path) -> frozenset[str]:
    return archives.names(path)


def test_an_archive_or_a_folder_of_archives(machine: Machine) -> None:
    folder = machine.folder / "archives"
    folder.mkdir()
    text = archive(machine, "text")
    archives.convert(text, folder / "b.tar", NAME)
    (folder / "a.tar").write_text("no archive")
    (folder / "notes.txt").write_text("none, too")
    for number, source in enumerate((folder, folder / "b.tar")):
        shutil.rmtree(machine.folder / "cache", ignore_errors=True)
        found = store_of(machine, str(source), pull="never").image(NAME)
        assert archive_names(found) == {NAME}, number
    with pytest.raises(ArtifactError, match="not in it") as caught:
        store_of(machine, str(folder), pull="never").image("other:1")
    assert NAME in caught.value.message
    assert "a.tar" in caught.value.message
    assert machine.calls == []


def test_a_digest_is_found_in_an_oci_layout(machine: Machine) -> None:
    manifest, config, layers = described(archive(machine, "text"))
    folder = machine.folder / "layout"
    (folder / "blobs" / "sha256").mkdir(parents=True)
    for data in (manifest, config, *layers.values()):
        (folder / "blobs" / digest(data).replace(":", "/")).write_bytes(data)
    index = {"manifests": [{"digest": digest(manifest)}]}
    (folder / "index.json").write_text(json.dumps(index))
    name = f"team/web:7@{digest(manifest)}"
    found = store_of(machine, str(folder), pull="never").image(name)
    assert text_of(found) == "text"
    assert archive_names(found) == {f"docker.io/team/web:{digest(manifest).replace(':', '-')}"}
    with pytest.raises(ArtifactError):
        store_of(machine, str(folder), pull="never").image(f"team/web@sha256:{'0' * 64}")


# -- when it is pulled ----------------------------------------------------------------------------


def test_an_image_is_pulled_once(machine: Machine) -> None:
    path = archive(machine, "text", "below")
    machine.has["skopeo"] = {NAME: path}
    store = store_of(machine)
    found = store.image(NAME)
    assert described(found) == described(path)
    assert archive_names(found) == {NAME}
    machine.calls.clear()
    assert store.image(NAME) == store_of(machine, pull="missing").image(NAME) == found
    assert store_of(machine, pull="never").image(NAME) == found
    assert machine.calls == []
    facts = Facts.of(found.parent)
    assert facts is not None
    assert facts.identity == digest(described(path)[0])


def test_always_asks_and_pulls_only_what_has_changed(machine: Machine) -> None:
    machine.has["skopeo"] = {NAME: archive(machine, "first", "below")}
    first = store_of(machine).image(NAME)
    machine.calls.clear()
    store = store_of(machine, pull="always")
    assert store.image(NAME) == first
    assert machine.fetched == []
    assert len(machine.calls) == 1  # the question for the digest
    store.image(NAME)
    assert len(machine.calls) == 1  # once for each `up`

    machine.has["skopeo"] = {NAME: archive(machine, "second", "below")}
    assert text_of(store_of(machine).image(NAME)) == "first"
    second = store_of(machine, pull="always").image(NAME)
    assert text_of(second) == "second"
    assert len(machine.fetched) == 1  # not the layer below
    assert store_of(machine).image(NAME) == second
    assert not first.exists()


def test_a_pull_that_fails_leaves_the_image_that_was_there(machine: Machine) -> None:
    machine.has["skopeo"] = {NAME: archive(machine, "first")}
    first = store_of(machine).image(NAME)
    machine.has["skopeo"] = {NAME: archive(machine, "second")}
    machine.fails_after = 0
    with pytest.raises(ArtifactError):
        store_of(machine, pull="always").image(NAME)
    machine.has["skopeo"] = {}
    with pytest.raises(ArtifactError):
        store_of(machine, pull="always").image(NAME)
    assert store_of(machine).image(NAME) == first


def test_a_digest_is_never_asked_for_again(machine: Machine) -> None:
    path = archive(machine, "text")
    machine.has["skopeo"] = {"docker.io/team/web:1": path}
    name = f"team/web@{digest(described(path)[0])}"
    store_of(machine).image(name)
    machine.calls.clear()
    store_of(machine, pull="always").image(name)
    assert machine.calls == []


def test_a_registry_that_sends_something_else_than_the_digest(machine: Machine) -> None:
    machine.has["skopeo"] = {"docker.io/team/web:1": archive(machine, "text")}
    with pytest.raises(ArtifactError, match="the registry sent sha256"):
        store_of(machine).image(f"team/web@sha256:{'0' * 64}")
    assert not list((machine.folder / "cache").glob("[!.]*"))


def test_layers_that_are_there_are_not_fetched_again(machine: Machine) -> None:
    machine.has["skopeo"] = {NAME: archive(machine, "three", "one", "two")}
    machine.fails_after = 2
    with pytest.raises(ArtifactError, match="cannot be reached"):
        store_of(machine).image(NAME)
    assert not list((machine.folder / "cache").glob("[!.]*"))
    assert not list((machine.folder / "cache").glob(".tmp*"))
    cut = machine.fetched
    assert len(cut) == 2
    machine.fails_after = None
    machine.calls.clear()
    store_of(machine).image(NAME)
    assert len(machine.fetched) == 1
    assert machine.fetched[0] not in cut


def test_a_damaged_layer_is_fetched_again(machine: Machine) -> None:
    machine.has["skopeo"] = {NAME: archive(machine, "three", "one", "two")}
    machine.fails_after = 2
    with pytest.raises(ArtifactError):
        store_of(machine).image(NAME)
    first = machine.fetched[0]
    blob = machine.folder / "cache/.shared/blobs" / first.replace(":", "/")
    blob.write_bytes(blob.read_bytes()[:-1] + b"?")
    machine.fails_after = None
    machine.calls.clear()
    store_of(machine).image(NAME)
    assert first in machine.fetched


def test_ctrl_c_leaves_no_entry(machine: Machine) -> None:
    machine.has["skopeo"] = {NAME: archive(machine, "two", "one")}
    machine.fails_after, machine.raises = 1, Interrupted(2)
    with pytest.raises(Interrupted):
        store_of(machine).image(NAME)
    assert not [one for one in (machine.folder / "cache").iterdir() if one.is_dir()][1:]


def test_threads_pull_an_image_once(machine: Machine) -> None:
    machine.has["skopeo"] = {NAME: archive(machine, "two", "one")}
    stores = [store_of(machine) for _ in range(4)]
    threads = [threading.Thread(target=store.image, args=(NAME,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(machine.fetched) == len(set(machine.fetched)) == 2


def test_images_are_pulled_side_by_side(machine: Machine) -> None:
    names = [f"registry.example:5000/team/web{number}:1" for number in range(PULLS)]
    machine.has["skopeo"] = {
        name: archive(machine, f"own{number}") for number, name in enumerate(names)
    }
    together = threading.Barrier(PULLS)
    machine.waits = lambda: together.wait(60)
    found = store_of(machine).bring(names)
    assert [text_of(found[name]) for name in names] == [f"own{n}" for n in range(PULLS)]


def test_images_at_once_fetch_a_common_layer_once(machine: Machine) -> None:
    names = [f"registry.example:5000/team/web{number}:1" for number in range(5)]
    machine.has["skopeo"] = {
        name: archive(machine, f"own{number}", "common") for number, name in enumerate(names)
    }
    found = store_of(machine).bring(names)
    assert [text_of(found[name]) for name in names] == [f"own{n}" for n in range(5)]
    assert sorted(machine.fetched) == sorted(set(machine.fetched))
    assert len(machine.fetched) == len(names) + 1


def test_one_of_several_pulls_that_fails_leaves_the_others(machine: Machine) -> None:
    names = [f"registry.example:5000/team/web{number}:1" for number in range(3)]
    machine.has["skopeo"] = {name: archive(machine, f"own{name[-3]}") for name in names[1:]}
    store = store_of(machine)
    with pytest.raises(ArtifactError) as caught:
        store.bring(names)
    assert names[0] in caught.value.message
    assert names[1] not in caught.value.message
    machine.calls.clear()
    assert store.bring(names[1:]).keys() == set(names[1:])
    assert machine.fetched == []


# -- what is said ---------------------------------------------------------------------------------


def test_all_missing_images_are_told_with_what_was_tried(machine: Machine) -> None:
    machine.says = "dial tcp: lookup registry-1.docker.io: no such host"
    names = ["redis:7", "alpine:3.20", NAME]
    with pytest.raises(ArtifactError) as caught:
        store_of(machine, "docker", str(archive(machine, "text"))).bring(names)
    for word in (*names, "No such image", "text.tar", "no such host", "registry docker.io"):
        assert word in caught.value.message
    assert "podman: not asked" in caught.value.message
    pasted = str(caught.value.hint).partition("\n")[2]
    assert set(tomllib.loads(pasted)["images"]) == set(names)
    # A registry that does not answer is asked once.
    asked = [words for words in machine.calls if words[0] == "skopeo"]
    assert len([words for words in asked if "library/" in words[-1]]) == 1


def test_never_asks_no_registry(machine: Machine) -> None:
    machine.has["skopeo"] = {NAME: archive(machine, "text")}
    store = store_of(machine, config='[pull]\npolicy = "never"')
    assert "--pull never" in str(store.lacking_images([NAME]))
    with pytest.raises(ArtifactError, match="--pull never"):
        store.image(NAME)
    assert machine.calls == []
    assert text_of(store_of(machine, pull="missing").image(NAME)) == "text"


def test_without_skopeo_the_way_to_it_is_told(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "which", lambda _: None)
    monkeypatch.setattr(skopeo, "which", lambda _: None)
    store = store_of(machine)
    error = store.lacking_images([NAME])
    assert error is not None
    assert "apt-get install skopeo" in str(error.hint)
    assert store.absent_images([NAME]) == {NAME: []}
    with pytest.raises(ArtifactError, match="skopeo is not installed"):
        store.image(NAME)
    # An engine could still have it.
    assert store_of(machine, "docker").lacking_images([NAME]) is None


@pytest.mark.parametrize(("said", "meaning", "hint"), [
    ("invalid username/password: unauthorized: authentication required", "denied", "login"),
    ("requested access to the resource is denied", "denied", "skopeo login registry.example:5000"),
    ("x509: certificate signed by unknown authority", "not trusted", "ca = "),
    ("http: server gave HTTP response to HTTPS client", "plain HTTP", "insecure = true"),
    ("reading manifest 2 in a/b: manifest unknown", "no such image", ""),
    ("toomanyrequests: limit", "too many", "log in"),
    ("dial tcp 127.0.0.1:1: connect: connection refused", "cannot be reached", ""),
    ("write /x: no space left on device", "full", "TESTBED_CACHE"),
    ("open /run/auth.json: permission denied", "cannot be read", "permissions"),
    ("exec: docker-credential-x: executable file not found in $PATH", "failed", "login"),
    ("something new", "something new", ""),
])  # fmt: skip
def test_the_meaning_of_a_failure(machine: Machine, said: str, meaning: str, hint: str) -> None:
    machine.says = said
    with pytest.raises(ArtifactError) as caught:
        store_of(machine).image(NAME)
    assert meaning in caught.value.message
    assert said in caught.value.message
    assert hint in str(caught.value.hint)


def test_an_archive_is_pushed_under_a_name(machine: Machine) -> None:
    path = archive(machine, "text").rename(machine.folder / "a:b.tar")
    name = store_of(machine).push(path, NAME)
    assert name == f"{NAME}@{digest(path.read_bytes())}"
    assert machine.has["pushed"] == {NAME: path}
    assert not any("src-" in word for words in machine.calls for word in words)


@pytest.mark.parametrize(("said", "meaning"), [
    ("requested access to the resource is denied", "no user is logged in"),
    ("dial tcp 127.0.0.1:1: connect: connection refused", "cannot be reached"),
    ("http: server gave HTTP response to HTTPS client", "plain HTTP"),
])  # fmt: skip
def test_a_push_that_fails_has_its_name_and_its_meaning(
    machine: Machine, said: str, meaning: str
) -> None:
    machine.says = said
    with pytest.raises(ArtifactError, match=meaning) as caught:
        store_of(machine).push(archive(machine, "text"), NAME)
    assert NAME in caught.value.message


@pytest.mark.parametrize(("user", "words"), [("me", "user me"), ("", "no user")])
def test_who_was_refused(machine: Machine, user: str, words: str) -> None:
    machine.says, machine.user = "unauthorized", user
    with pytest.raises(ArtifactError, match=words):
        store_of(machine).image(NAME)


@pytest.mark.parametrize(("said", "meant"), [
    (r"a \x1b[1m\u00e9\a\"b\"", 'a \x1b[1m\xe9\a"b"'), (r"cut \xz", r"cut \xz"),
    ("two\nlines", "two"),
])  # fmt: skip
def test_words_with_escapes_of_go(said: str, meant: str) -> None:
    error = CommandError(["skopeo"], where="here", status=1, stderr=f'level=fatal msg="{said}"')
    assert meant in skopeo.explained(error, Reference.parse(NAME)).message


@pytest.mark.parametrize("manifest", [
    {"config": {"digest": "", "mediaType": skopeo.CONFIGS[0]}},
    {"config": {"digest": "", "mediaType": skopeo.CONFIGS[0]}, "layers": [{}]},
    {"config": {"digest": "", "mediaType": skopeo.CONFIGS[0]}, "layers": [{"digest": 1}]},
    {"config": "text"}, {"manifests": 1}, {"manifests": ["text"]}, [],
])  # fmt: skip
def test_a_manifest_that_is_none_is_told(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, manifest: object
) -> None:
    path, data = archive(machine, "text"), json.dumps(manifest).encode()
    machine.has["skopeo"] = {NAME: path}
    rest = described(path)[1:]
    monkeypatch.setattr(sys.modules[__name__], "described", lambda _: (data, *rest))
    with pytest.raises(ArtifactError, match="manifest"):
        store_of(machine).image(NAME)


@pytest.mark.parametrize("config", [[], {}, {"rootfs": {"diff_ids": 1}}, "text"])
def test_a_configuration_that_is_none_is_told(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, config: object
) -> None:
    platform = {"os": "linux", "architecture": archives.processor()}
    config = {**platform, **config} if isinstance(config, dict) else config
    path, data = archive(machine, "text"), json.dumps(config).encode()
    machine.has["skopeo"] = {NAME: path}
    manifest, _, layers = described(path)
    given = json.loads(manifest)
    given["config"]["digest"] = digest(data)
    found = json.dumps(given).encode(), data, layers
    monkeypatch.setattr(sys.modules[__name__], "described", lambda _: found)
    with pytest.raises(ArtifactError, match="damaged") as caught:
        store_of(machine).image(NAME)
    assert "cache" not in (caught.value.hint or "").splitlines()[0]
    assert not list((machine.folder / "cache").glob("[!.]*"))


def test_a_folder_that_cannot_be_read(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = machine.folder / "archives"
    folder.mkdir()
    real = Path.iterdir

    def refuse(path: Path) -> Iterator[Path]:  # root may read every folder
        if path == folder:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(ArtifactError, match=r"archives: cannot be read"):
        store_of(machine, str(folder), pull="never").image(NAME)


@pytest.mark.parametrize("source", ["skopeo", "docker", "other.tar", "."])
def test_an_image_for_another_processor(machine: Machine, source: str) -> None:
    other = registries.image(machine.folder / "m68k.tar", "text", processor="m68k")
    archives.convert(other, machine.folder / "other.tar", NAME)
    machine.has = {source: {NAME: other}}
    path = machine.folder / source
    given = {"skopeo": (), "docker": ("docker",)}.get(source, (str(path),))
    with pytest.raises(ArtifactError, match="linux/m68k"):
        store_of(machine, *given, pull=None if source == "skopeo" else "never").image(NAME)
    if source == ".":  # beside one that fits
        archives.convert(archive(machine, "ours"), machine.folder / "zz.tar", NAME)
        assert text_of(store_of(machine, *given, pull="never").image(NAME)) == "ours"


# -- settings of registries -----------------------------------------------------------------------


def test_settings_of_registries_are_those_of_registries_conf() -> None:
    text = skopeo.registries_conf(
        {
            "docker.io": Registry(("mirror.example:5000/hub", "10.0.0.1")),
            "mirror.example:5000": Registry(insecure=True),
        }
    )
    assert tomllib.loads(text) == {
        "registry": [
            {
                "location": "docker.io",
                "insecure": False,
                "mirror": [
                    {"location": "mirror.example:5000/hub", "insecure": True},
                    {"location": "10.0.0.1", "insecure": False},
                ],
            },
            {"location": "mirror.example:5000", "insecure": True},
        ]
    }


def test_options_are_given_to_each_call(machine: Machine) -> None:
    (machine.folder / "ca.crt").write_text("certificate")
    (machine.folder / "auth.json").write_text("{}")
    machine.has["skopeo"] = {NAME: archive(machine, "text")}
    store_of(
        machine,
        config='[pull]\nauthfile = "auth.json"\n[registries."registry.example:5000"]\n'
        'mirrors = ["mirror.example"]\n[registries."mirror.example"]\nca = "ca.crt"\n'
        '[registries."other.example"]\nca = "ca.crt"\n',
    ).image(NAME)
    calls = [words for words in machine.calls if words[0] == "skopeo"]
    for words in calls:
        assert f"--authfile={machine.folder}/auth.json" in words
        assert any(word.startswith("--registries-conf=") for word in words)
        side = "src-" if "copy" in words else ""
        assert any(word.startswith(f"--{side}cert-dir=") for word in words)
    assert {word for words in calls for word in words if "tls-verify" in word} == set()


def test_passwords_of_the_caller_of_sudo(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.has["skopeo"] = {NAME: archive(machine, "text")}
    user = pwd.getpwuid(os.getuid())
    home = machine.folder / "home"
    caller = pwd.struct_passwd((*user[:5], str(home), user[6]))
    monkeypatch.setattr(pwd, "getpwuid", lambda _: caller)
    monkeypatch.setattr(owner, "caller", lambda: owner.Owner(4242, 4242))
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    for host, used in (("other.example", False), ("registry.example:5000", True)):
        (home / ".docker").mkdir(parents=True, exist_ok=True)
        (home / ".docker/config.json").write_text(json.dumps({"auths": {host: {}}}))
        machine.calls.clear()
        store_of(machine, pull="always").image(NAME)
        option = f"--authfile={home}/.docker/config.json"
        assert all((option in words) == used for words in machine.calls if words[0] == "skopeo")


# -- the cache ------------------------------------------------------------------------------------


def test_a_pulled_image_is_listed_and_removed_by_its_name(machine: Machine) -> None:
    machine.has["skopeo"] = {
        NAME: archive(machine, "text", "below"),
        "docker.io/library/redis:7": archive(machine, "redis", "below"),
    }
    store = store_of(machine)
    store.bring([NAME, "redis:7"])
    (entry,) = (one for one in store.list() if one.name == NAME)
    assert (entry.origin, entry.state) == ("pulled", "cached")
    assert entry.version.startswith("sha256.")
    assert store.versions_of([], images=[NAME]) == {NAME: entry.version}
    blobs = machine.folder / "cache/.shared/blobs/sha256"
    assert len(list(blobs.iterdir())) == 3
    store.remove("docker.io/library/redis:7")
    assert len(list(blobs.iterdir())) == 2  # those of the image that is left
    assert store.remove(NAME) > 0
    assert list(blobs.iterdir()) == []
    assert store.list() == []


def test_an_image_can_be_fetched_ahead(machine: Machine) -> None:
    machine.has["skopeo"] = {"docker.io/library/redis:7": archive(machine, "redis")}
    store_of(machine).fetch("redis:7")
    assert store_of(machine, pull="never").image("redis:7").exists()


def test_names_of_entries_differ() -> None:
    names = ["redis", "redis:7", "a/redis", "A.example/redis", f"redis@sha256:{'0' * 64}", "re-dis"]
    found = {entry_name(Reference.parse(name)) for name in names}
    assert len(found) == len(names)
    assert all("/" not in name and len(name) < 120 for name in found)


def test_a_users_oci_layout_is_made_an_archive_for_every_engine(machine: Machine) -> None:
    manifest, config, layers = described(archive(machine, "text"))
    folder = machine.folder / "layout"
    (folder / "blobs" / "sha256").mkdir(parents=True)
    for data in (manifest, config, *layers.values()):
        (folder / "blobs" / digest(data).replace(":", "/")).write_bytes(data)
    (folder / "index.json").write_text(json.dumps({"manifests": [{"digest": digest(manifest)}]}))
    store = store_of(machine, config=f'[images]\nweb = {{path = "{folder}"}}')
    assert store.lacking_images(["web"]) is None
    found = store.image("web")
    assert archive_names(found) == {"docker.io/library/web:latest"}
    assert text_of(found) == "text"
    pinned = f"web@sha256:{'0' * 64}"  # of a user's archive this is a name only
    found = store_of(machine, config=f'[images]\n"{pinned}" = {{path = "{folder}"}}').image(pinned)
    assert archive_names(found) == {f"docker.io/library/web:sha256-{'0' * 64}"}


@pytest.mark.parametrize("command", [["up"], ["plan"], ["artifacts", "build"]])
@pytest.mark.parametrize(("option", "typed", "values"), [
    ("--pull", "", ["always", "missing", "never"]), ("--pull", "m", ["missing"]),
    ("--images-from", "p", ["podman", "p"]),  # the last is a path that the shell completes
])  # fmt: skip
def test_options_for_images_complete(
    command: list[str], option: str, typed: str, values: list[str]
) -> None:
    shell = ShellComplete(cli.cli, {}, "testbed", "_TESTBED_COMPLETE")
    found = shell.get_completions([*command, option], typed)
    assert [item.value for item in found] == values


def test_a_users_archive_is_copied_into_the_cache_on_request(machine: Machine) -> None:
    path = archive(machine, "own")
    store = store_of(machine, config=f'[images]\nweb = {{path = "{path}"}}')
    found = store.image_in_cache("web")
    assert found.is_relative_to(store.folder)
    assert described(found) == described(path)
    assert store.image("web") == path
    machine.has["skopeo"] = {NAME: path}
    assert store.image_in_cache(NAME) == store.image(NAME)


def test_a_users_archive_is_looked_into_once(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = archive(machine, "own")
    config = f'[images]\nweb = {{path = "{path}"}}'
    assert store_of(machine, config=config).image("web") == path
    with monkeypatch.context() as patch:
        patch.setattr(archives, "read", lambda _: pytest.fail("it was read again"))
        assert store_of(machine, config=config).image("web") == path
    path.write_bytes(path.read_bytes() + bytes(1024))
    assert store_of(machine, config=config).image("web") == path
