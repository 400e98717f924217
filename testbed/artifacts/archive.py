"""Read the names and the processor of the images in an archive.

Supported are archives of ``docker save`` (the Docker image specification's manifest.json) and of
the OCI image layout (index.json with annotations), compressed or not.
"""

from __future__ import annotations

import functools
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from testbed.errors import ArtifactError

if TYPE_CHECKING:
    import tarfile
    from collections.abc import Iterable
    from pathlib import Path

#: Annotations of an OCI index that hold an image's name, the preferred one first.
NAMES = ("io.containerd.image.name", "org.opencontainers.image.ref.name")
HUB = "docker.io"
PROCESSORS = {"x86_64": "amd64", "aarch64": "arm64", "ppc64le": "ppc64le", "s390x": "s390x"}


@dataclass(frozen=True, slots=True)
class Archived:
    """One image of an archive with its full names; ``processor`` is empty if unknown."""

    names: tuple[str, ...]
    processor: str = ""


def full_name(reference: str) -> str:
    """Return an image's name with registry and tag, in containerd's form.

    A digest is dropped if there is a tag: it identifies a registry's manifest, which an archive
    does not contain.

    >>> full_name("nginx"), full_name("testbed/pause:1"), full_name("registry.k8s.io/pause:3.10.2")
    ('docker.io/library/nginx:latest', 'docker.io/testbed/pause:1', 'registry.k8s.io/pause:3.10.2')
    >>> full_name("localhost:5000/a"), full_name("index.docker.io/a/b:1@sha256:0123")
    ('localhost:5000/a:latest', 'docker.io/a/b:1')
    """
    name, _, digest = reference.partition("@")
    registry, slash, rest = name.partition("/")
    if not slash or not (set(".:") & set(registry) or registry == "localhost"):
        registry, rest = HUB, name
    elif registry == f"index.{HUB}":
        registry = HUB
    if registry == HUB and "/" not in rest:
        rest = f"library/{rest}"
    if ":" not in rest.rpartition("/")[2]:
        rest += f"@{digest}" if digest else ":latest"
    return f"{registry}/{rest}"


def local_name(reference: str) -> str:
    """Return the name for using an image that was loaded from an archive.

    An engine knows a registry's digest only of images that it pulled: without a tag, the digest
    itself becomes the tag.

    >>> local_name("redis:7"), local_name("redis:7@sha256:01"), local_name("a/b@sha256:01")
    ('redis:7', 'redis:7', 'a/b:sha256-01')
    """
    name, _, digest = reference.partition("@")
    if not digest or ":" in name.rpartition("/")[2]:
        return name
    return f"{name}:{digest.replace(':', '-')}"


def names(path: Path) -> frozenset[str]:
    """Return the full names of all images of an archive.  Raises the errors of :func:`read`."""
    return frozenset(name for image in read(path) for name in image.names)


def read(path: Path) -> tuple[Archived, ...]:
    """Return the images of an archive.  Raises ArtifactError for any other file."""
    try:
        status = path.stat()
        return _read(path, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}") from error


@functools.cache
def _read(path: Path, size: int, changed: int) -> tuple[Archived, ...]:  # noqa: ARG001  what tells files of one path apart
    import tarfile

    try:
        with tarfile.open(path) as tar:
            members = {os.path.normpath(member.name): member for member in tar}
            if "manifest.json" in members:
                return tuple(_docker(tar, members))
            if "index.json" in members:
                return tuple(_oci(tar, members))
    except (tarfile.TarError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        said = f"{path} is not an image archive: {error}"
    else:
        said = f"{path} is not an image archive: neither manifest.json nor index.json is in it"
    raise ArtifactError(said, hint="create one with `docker save NAME:TAG -o FILE`")


Members = dict[str, "tarfile.TarInfo"]


def _json(tar: tarfile.TarFile, members: Members, name: str) -> Any:
    file = tar.extractfile(members[os.path.normpath(name)])
    if file is None:
        raise ValueError(f"{name} is not a regular file")
    return json.load(file)


def _docker(tar: tarfile.TarFile, members: Members) -> Iterable[Archived]:
    for image in _json(tar, members, "manifest.json"):
        config = _json(tar, members, image["Config"])
        tags = image.get("RepoTags") or ()
        yield Archived(tuple(map(full_name, tags)), config.get("architecture", ""))


def _oci(tar: tarfile.TarFile, members: Members) -> Iterable[Archived]:
    for image in _json(tar, members, "index.json")["manifests"]:
        noted = image.get("annotations") or {}
        platform = image.get("platform") or {}
        # Unlike a tag of manifest.json, containerd uses such a name as is, or completes it.
        found = (
            noted[key] for key in NAMES if key in noted and full_name(noted[key]) == noted[key]
        )
        yield Archived(tuple(found)[:1], platform.get("architecture", ""))


def processor() -> str:
    """Return the processor of this machine by its name in image metadata."""
    machine = os.uname().machine
    return PROCESSORS.get(machine, machine)
