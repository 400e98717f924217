"""Archives of images: what is in them by their own words."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import lzma
import os
import tarfile
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pytest

from testbed.artifacts import archive
from testbed.artifacts.archive import Archived
from testbed.errors import ArtifactError
from testbed.process import run, which

if TYPE_CHECKING:
    from collections.abc import Callable


def write(path: Path, files: dict[str, Any], *, packed: bool = False) -> Path:
    out = BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, value in files.items():
            data = value if isinstance(value, bytes) else json.dumps(value).encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, BytesIO(data))
    path.write_bytes(gzip.compress(out.getvalue()) if packed else out.getvalue())
    return path


DOCKER: dict[str, Any] = {
    "manifest.json": [
        {"Config": "1.json", "RepoTags": ["nginx:latest", "quay.io/a/b:1"], "Layers": []},
        {"Config": "2.json", "RepoTags": None, "Layers": []},
    ],
    "1.json": {"architecture": "amd64"},
    "2.json": {},
}
OCI = "org.opencontainers.image.ref.name"


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("before", ["", "./"])
def test_what_docker_save_writes(tmp_path: Path, packed: bool, before: str) -> None:
    files = {f"{before}{name}": value for name, value in DOCKER.items()}
    path = write(tmp_path / "a.tar", files, packed=packed)
    assert archive.read(path) == (
        Archived(("docker.io/library/nginx:latest", "quay.io/a/b:1"), "amd64", "1.json"),
        Archived((), config="2.json"),
    )
    assert archive.names(path) == {"docker.io/library/nginx:latest", "quay.io/a/b:1"}


@pytest.mark.parametrize(("noted", "names"), [
    ({"io.containerd.image.name": "quay.io/a/b:1", OCI: "1"}, ("quay.io/a/b:1",)),
    ({OCI: "quay.io/a/b:1"}, ("quay.io/a/b:1",)),
    # containerd takes these for half a name, and for a name that nobody asks by.
    ({OCI: "1"}, ()), ({OCI: "a/b:1"}, ()), (None, ()),
])  # fmt: skip
def test_the_oci_layout(
    tmp_path: Path, noted: dict[str, str] | None, names: tuple[str, ...]
) -> None:
    index = {"manifests": [{"annotations": noted, "platform": {"architecture": "arm64"}}]}
    path = write(tmp_path / "a.tar", {"oci-layout": {}, "index.json": index})
    assert archive.read(path) == (Archived(names, "arm64"),)


@pytest.mark.parametrize("files", [
    {"etc/passwd": b""}, {"manifest.json": b"{"}, {"manifest.json": {"a": 1}},
    {"manifest.json": [{"RepoTags": ["a:1"]}]}, {"index.json": []},
    {"manifest.json": [{"Config": "gone.json", "RepoTags": ["a:1"]}]},
])  # fmt: skip
def test_what_is_no_archive_of_an_image_is_told(tmp_path: Path, files: dict[str, Any]) -> None:
    path = write(tmp_path / "a.tar", files)
    with pytest.raises(ArtifactError, match=r"a\.tar"):
        archive.read(path)


@pytest.mark.parametrize(
    "data", [b"", b"text", gzip.compress(b"text", mtime=0), b"\x1f\x8b\x08cut"]
)
def test_what_is_no_archive_at_all_is_told(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"a\.tar"):
        archive.read(path)
    with pytest.raises(ArtifactError, match=r"gone\.tar"):
        archive.read(tmp_path / "gone.tar")


@pytest.mark.parametrize("pack", [lzma.compress, bz2.compress])
@pytest.mark.parametrize("read", [
    archive.read, lambda path: archive.convert(path, path.with_name("image.tar"), NAME),
], ids=["read", "convert"])  # fmt: skip
def test_an_archive_with_a_damaged_compression_is_told(
    tmp_path: Path, pack: Callable[[bytes], bytes], read: Callable[[Path], object]
) -> None:
    numbers = b" ".join(b"%d" % (number * number) for number in range(30_000))
    path = write(tmp_path / "a.tar", {"numbers": numbers, **layout(name=NAME)})
    packed = bytearray(pack(path.read_bytes()))
    packed[len(packed) // 2 : len(packed) // 2 + 64] = bytes(64)
    path.write_bytes(packed)
    with pytest.raises(ArtifactError, match=r"a\.tar"):
        read(path)


def test_members_that_nothing_can_be_read_from_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        link = tarfile.TarInfo("manifest.json")
        link.type, link.linkname = tarfile.SYMTYPE, "manifest.json"
        tar.addfile(link)
    with pytest.raises(ArtifactError, match=r"a\.tar"):
        archive.read(path)
    deep = write(tmp_path / "b.tar", {"manifest.json": b"[" * 100_000})
    with pytest.raises(ArtifactError, match=r"b\.tar"):
        archive.read(deep)


def test_a_manifest_is_not_read_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.tar", DOCKER | {"2.json": {"large": "x" * 1000}})
    assert archive.read(path)
    monkeypatch.setattr(archive, "JSON_MAX", 1000)
    os.utime(path, ns=(1, 1))
    with pytest.raises(ArtifactError, match=r"2\.json is larger"):
        archive.read(path)


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ArtifactError, match="neither a file nor a folder"):
        archive.read(tmp_path / "fifo")


def test_a_file_that_has_changed_is_read_again(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", DOCKER)
    assert len(archive.names(path)) == 2
    other = DOCKER | {"manifest.json": [DOCKER["manifest.json"][0] | {"RepoTags": ["x/y:2"]}]}
    write(path, other)
    os.utime(path, ns=(1, 1))
    assert archive.names(path) == {"docker.io/x/y:2"}


# -- archives for every engine -----------------------------------------------------------------


def blob(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


LAYERS = (b"one layer", b"another layer")
CONFIG = json.dumps(
    {
        "architecture": archive.processor(),
        "config": {"Healthcheck": {"Test": ["NONE"]}},  # a key of Docker's alone
        "rootfs": {"diff_ids": [blob(data) for data in LAYERS]},
    }
).encode()
PACKED = [gzip.compress(LAYERS[0], mtime=0), LAYERS[1]]
MANIFEST = json.dumps(
    {
        "config": {"digest": blob(CONFIG)},
        "layers": [{"digest": blob(data)} for data in PACKED],
    }
).encode()


def index_of(manifest: bytes, name: str = "") -> dict[str, Any]:
    entry = {"digest": blob(manifest), "annotations": {OCI: name}}
    return {"manifests": [entry]}


def layout(manifest: bytes = MANIFEST, name: str = "", *more: bytes) -> dict[str, Any]:
    """The files of an OCI layout."""
    blobs = {f"blobs/{blob(one).replace(':', '/')}": one for one in (CONFIG, *PACKED, *more)}
    blobs[f"blobs/{blob(manifest).replace(':', '/')}"] = manifest
    return {"oci-layout": {}, "index.json": index_of(manifest, name), **blobs}


def spread(folder: Path, files: dict[str, Any]) -> Path:
    for name, value in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        (folder / name).write_bytes(data)
    return folder


def content(path: Path) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """The manifest of a written archive, and all its members."""
    with tarfile.open(path) as tar:
        members = {one.name: tar.extractfile(one).read() for one in tar}  # type: ignore[union-attr]
    return json.loads(members["manifest.json"]), members


def is_ours(path: Path, *names: str) -> bool:
    """The image of this file, with its configuration as it is and its layers unpacked."""
    (image,), members = content(path)
    assert image["RepoTags"] == list(names)
    assert members[image["Config"]] == CONFIG
    assert image["Config"] == f"{hashlib.sha256(CONFIG).hexdigest()}.json"
    return [members[layer] for layer in image["Layers"]] == list(LAYERS)


NAME = "quay.io/a/b:1"


@pytest.mark.parametrize("name", ["", NAME])
@pytest.mark.parametrize("as_folder", [False, True])
def test_an_oci_layout_becomes_an_archive_for_every_engine(
    tmp_path: Path, name: str, as_folder: bool
) -> None:
    files = layout(name=name)
    path = (
        spread(tmp_path / "layout", files) if as_folder else write(tmp_path / "layout.tar", files)
    )
    assert not archive.is_docker(path)
    archive.convert(path, tmp_path / "image.tar", NAME)
    assert is_ours(tmp_path / "image.tar", NAME)
    assert archive.is_docker(tmp_path / "image.tar")
    assert archive.names(tmp_path / "image.tar") == {NAME}


def test_the_folder_of_skopeo_and_an_unpacked_docker_save(tmp_path: Path) -> None:
    blobs = {blob(one).partition(":")[2]: one for one in (CONFIG, *PACKED)}
    path = spread(tmp_path / "dir", {"version": b"1.1", "manifest.json": MANIFEST, **blobs})
    archive.convert(path, tmp_path / "image.tar", NAME)
    assert is_ours(tmp_path / "image.tar", NAME)
    with tarfile.open(tmp_path / "image.tar") as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    archive.convert(tmp_path / "unpacked", tmp_path / "again.tar", "docker.io/library/x:1")
    assert is_ours(tmp_path / "again.tar", "docker.io/library/x:1")


def test_the_platform_of_this_machine_is_chosen(tmp_path: Path) -> None:
    def for_(processor: str, digest: str) -> dict[str, Any]:
        return {"digest": digest, "platform": {"os": "linux", "architecture": processor}}

    several = [for_("m68k", blob(b"")), for_(archive.processor(), blob(MANIFEST))]
    index = json.dumps({"manifests": several}).encode()
    path = write(tmp_path / "a.tar", layout(index, NAME, MANIFEST))
    (image,) = archive.read(path)
    assert (image.digest, image.index) == (blob(MANIFEST), blob(index))
    archive.convert(path, tmp_path / "image.tar", NAME, wanted=image.index)
    assert is_ours(tmp_path / "image.tar", NAME)
    only = json.dumps({"manifests": several[:1]}).encode()
    with pytest.raises(ArtifactError, match="linux/m68k"):
        archive.read(write(tmp_path / "b.tar", layout(only, NAME)))


def test_one_image_of_several_or_all_of_them(tmp_path: Path) -> None:
    files = layout(name=NAME)
    other = json.dumps({**json.loads(MANIFEST), "annotations": {"other": "yes"}}).encode()
    files |= {f"blobs/{blob(other).replace(':', '/')}": other}
    files["index.json"]["manifests"] += index_of(other, "quay.io/a/c:2")["manifests"]
    path = write(tmp_path / "a.tar", files)
    archive.convert(path, tmp_path / "one.tar", NAME)
    assert is_ours(tmp_path / "one.tar", NAME)
    archive.convert(path, tmp_path / "two.tar", "docker.io/library/x:1", wanted=blob(other))
    assert is_ours(tmp_path / "two.tar", "docker.io/library/x:1")
    archive.convert(path, tmp_path / "all.tar", "docker.io/library/x:1")
    assert archive.names(tmp_path / "all.tar") == {NAME, "quay.io/a/c:2"}


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize(
    "data",
    [b"other bytes", gzip.compress(b"other"), PACKED[0][:-9], archive.GZIP + b"?" * 40, None],
    ids=["other", "packed", "cut", "garbage", "missing"],
)
def test_a_damaged_layer_is_told(tmp_path: Path, number: int, data: bytes | None) -> None:
    files, place = layout(name=NAME), blob(PACKED[number])
    if data is None:
        del files[f"blobs/{place.replace(':', '/')}"]
    else:
        files[f"blobs/{place.replace(':', '/')}"] = data
    path = write(tmp_path / "a.tar", files)
    with pytest.raises(ArtifactError, match="damaged"):
        archive.convert(path, tmp_path / "image.tar", NAME)


@pytest.mark.skipif(which("zstd") is None, reason="zstd is not installed")
def test_a_layer_of_zstd(tmp_path: Path) -> None:
    packed = run(["zstd", "-q", "-c"], input=LAYERS[0]).out
    layers: list[Callable[[], IO[bytes]]] = [lambda: BytesIO(packed), lambda: BytesIO(LAYERS[1])]
    archive.write(tmp_path / "image.tar", [([NAME], CONFIG, layers)])
    assert is_ours(tmp_path / "image.tar", NAME)


def test_an_archive_is_read_again_after_a_change(tmp_path: Path) -> None:
    path = spread(tmp_path / "layout", layout(name=NAME))
    assert archive.names(path) == {NAME}
    spread(path, {"index.json": index_of(MANIFEST, "quay.io/other/name:22")})
    assert archive.names(path) == {"quay.io/other/name:22"}
