"""Archives of images: what is in them by their own words."""

from __future__ import annotations

import gzip
import json
import os
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from testbed.artifacts import archive
from testbed.artifacts.archive import Archived
from testbed.errors import ArtifactError


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
        Archived(("docker.io/library/nginx:latest", "quay.io/a/b:1"), "amd64"),
        Archived(()),
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


def test_a_file_that_has_changed_is_read_again(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", DOCKER)
    assert len(archive.names(path)) == 2
    other = DOCKER | {"manifest.json": [DOCKER["manifest.json"][0] | {"RepoTags": ["x/y:2"]}]}
    write(path, other)
    os.utime(path, ns=(1, 1))
    assert archive.names(path) == {"docker.io/x/y:2"}
