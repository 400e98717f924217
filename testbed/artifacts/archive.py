"""Image archives: the names and processors of their images, and archives for every engine.

Supported are archives of ``docker save`` (the Docker image specification's manifest.json), the OCI
image layout (index.json with annotations) and skopeo's ``dir:`` folders.  An archive is a tar,
compressed or not, or a folder.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import hashlib
import io
import json
import lzma
import os
import shutil
import stat
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeAlias

from testbed.artifacts.reference import full_name
from testbed.errors import ArtifactError
from testbed.process import run, which

#: Annotations of an OCI index that hold an image's name, the preferred one first.
NAMES = ("io.containerd.image.name", "org.opencontainers.image.ref.name")
PROCESSORS = {"x86_64": "amd64", "aarch64": "arm64", "ppc64le": "ppc64le", "s390x": "s390x"}
INDEXES = ("index.json", "manifest.json")  #: one of them is in each archive
CHUNK = 1 << 20  # bytes
JSON_MAX = 16 << 20  # bytes of a manifest or a configuration, which usually have some KiB
#: First bytes of zstd and gzip (RFC 8878, section 3.1.1; RFC 1952, section 2.3.1).
ZSTD, GZIP = b"\x28\xb5\x2f\xfd", b"\x1f\x8b"
#: Files of an archive, by path.
Files: TypeAlias = "Mapping[str, Callable[[], IO[bytes]]]"


@dataclass(frozen=True, slots=True)
class Archived:
    """One image of an archive with its full names; ``processor`` is empty if unknown.

    ``config`` and ``layers`` are paths in the archive.  ``digest`` is that of its manifest, and
    ``index`` that of the index with its manifest; both are empty if the archive has none.
    """

    names: tuple[str, ...]
    processor: str = ""
    config: str = ""
    layers: tuple[str, ...] = ()
    digest: str = ""
    index: str = ""


def names(path: Path) -> frozenset[str]:
    """Return the full names of all images of an archive.  Raises the errors of :func:`read`."""
    return frozenset(name for image in read(path) for name in image.names)


def read(path: Path) -> tuple[Archived, ...]:
    """Return the images of an archive.  Raises ArtifactError for any other file."""
    try:
        status = stamp(path)
        if stat.S_ISREG(status.st_mode) or path.is_dir():  # a FIFO would wait for a writer
            return _read(path, status.st_size, status.st_mtime_ns)
    except ArtifactError:  # an OSError, too
        raise
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}") from error
    raise ArtifactError(f"{path} is neither a file nor a folder")


def contains(path: Path, image: str) -> bool:
    """Tell whether an archive has the image with this ID of an engine, ``sha256:...``.

    The ID is the digest of the image's configuration (image-spec, config.md, "ImageID"), after
    which the archive's file is named.  Raises the errors of :func:`read`.
    """
    digest = image.partition(":")[2]
    return bool(digest) and any(digest in one.config for one in read(path))


def stamp(path: Path) -> os.stat_result:
    """Return the status of an archive's file, or of a folder's index.  Raises OSError."""
    indexes = [path / name for name in INDEXES if path.is_dir() and (path / name).is_file()]
    return (indexes[0] if indexes else path).stat()


def is_docker(path: Path) -> bool:
    """Tell whether every engine can load an archive: a tar in the format of ``docker save``."""
    return path.is_file() and any(image.config for image in read(path) if not image.digest)


@functools.cache
def _read(path: Path, size: int, changed: int) -> tuple[Archived, ...]:  # noqa: ARG001  what tells files of one path apart
    try:
        with _opened(path) as files:
            if found := tuple(_images(files)):
                return found
    except BAD as error:
        said = f"{path} is not an image archive: {error}"
    else:
        said = f"{path} is not an image archive: neither manifest.json nor index.json is in it"
    raise ArtifactError(said, hint="create one with `docker save NAME:TAG -o FILE`")


#: Errors of reading a file that is no image archive.
BAD = (
    tarfile.TarError, gzip.BadGzipFile, lzma.LZMAError, zlib.error, EOFError, ValueError, KeyError,
    IndexError, TypeError, AttributeError, RecursionError,
)  # fmt: skip


@contextlib.contextmanager
def damaged(what: object) -> Iterator[None]:
    """Raise ArtifactError for the errors of reading a damaged archive or image."""
    try:
        yield
    except ArtifactError:  # an OSError, too
        raise
    except BAD as error:
        raise ArtifactError(f"{what} is damaged: {error}") from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise ArtifactError(f"{what} is damaged: {error}") from error  # of the module bz2


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Files]:
    """Open an archive.  Raises OSError and the errors BAD."""
    if path.is_dir():
        inside = (one for one in path.rglob("*") if one.is_file())
        yield {str(one.relative_to(path)): opener(one) for one in inside}
        return
    with tarfile.open(path) as tar:
        yield {
            os.path.normpath(member.name): functools.partial(_member, tar, member) for member in tar
        }


def opener(path: Path) -> Callable[[], IO[bytes]]:
    """Return a function that opens a file for reading."""
    return lambda: path.open("rb")


def _member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    file = tar.extractfile(member)
    if file is None:
        raise ValueError(f"{member.name} is not a regular file")
    return file


def _json(files: Files, name: str) -> Any:
    with files[os.path.normpath(name)]() as file:
        data = file.read(JSON_MAX + 1)
    if len(data) > JSON_MAX:
        raise ValueError(f"{name} is larger than {JSON_MAX >> 20} MiB")
    return json.loads(data)


def _images(files: Files) -> Iterable[Archived]:
    manifest = _json(files, "manifest.json") if "manifest.json" in files else None
    if isinstance(manifest, dict):  # skopeo's dir: the manifest and its blobs, without a name
        yield _described(files, manifest, lambda digest: digest.partition(":")[2])
    elif manifest is not None:
        yield from _docker(files, manifest)
    elif "index.json" in files:
        yield from _oci(files)


def _docker(files: Files, manifest: Iterable[Mapping[str, Any]]) -> Iterable[Archived]:
    for image in manifest:
        config = _json(files, image["Config"])
        tags = image.get("RepoTags") or ()
        layers = tuple(map(os.path.normpath, image.get("Layers") or ()))
        place = os.path.normpath(image["Config"])
        yield Archived(tuple(map(full_name, tags)), config.get("architecture", ""), place, layers)


def _oci(files: Files) -> Iterable[Archived]:
    for image in _json(files, "index.json")["manifests"]:
        noted = image.get("annotations") or {}
        # Unlike a tag of manifest.json, containerd uses such a name as is, or completes it.
        named = [
            noted[key] for key in NAMES if key in noted and full_name(noted[key]) == noted[key]
        ]
        platform = image.get("platform") or {}
        digest, index = image.get("digest", ""), ""
        if _blob(digest) not in files:  # an index alone
            yield Archived(tuple(named[:1]), platform.get("architecture", ""))
            continue
        manifest = _json(files, _blob(digest))
        if "manifests" in manifest:
            chosen = for_platform(manifest)
            index, digest = digest, chosen["digest"]
            manifest = _json(files, _blob(digest))
        found = _described(files, manifest, _blob)
        yield Archived(tuple(named[:1]), found.processor, found.config, found.layers, digest, index)


def _described(files: Files, manifest: Mapping[str, Any], place: Callable[[str], str]) -> Archived:
    """Return the image of a manifest; ``place`` returns the path of a blob."""
    config = place(manifest["config"]["digest"])
    layers = tuple(place(layer["digest"]) for layer in manifest["layers"])
    return Archived((), _json(files, config).get("architecture", ""), config, layers)


def _blob(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/', 1)}"


def misfit(system: str, architecture: str) -> ArtifactError | None:
    """Return the error for an image of another platform than this machine's, else None."""
    if (system, architecture) == ("linux", processor()):
        return None
    return ArtifactError(
        f"it is an image for {system}/{architecture}, and this machine is linux/{processor()}",
        hint="use a tag with an image for this machine's processor",
    )


def for_platform(index: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the entry of an OCI index or manifest list for this machine.

    Raises ArtifactError if there is none.
    """
    offered = []
    for entry in index["manifests"]:
        platform = entry.get("platform") or {}
        kind = platform.get("os", ""), platform.get("architecture", "")
        if kind == ("linux", processor()):
            return dict(entry)
        if "unknown" not in kind:  # attestations of BuildKit
            offered.append("/".join(word for word in (*kind, platform.get("variant", "")) if word))
    raise ArtifactError(
        f"no image for linux/{processor()}; there are: {', '.join(sorted(offered)) or 'none'}",
        hint="use a tag with an image for this machine's processor",
    )


def _chosen(path: Path, name: str) -> Archived:
    """Return the image of a name, or the first one."""
    images = read(path)
    return next((one for one in images if full_name(name) in one.names), images[0])


def identity(path: Path, name: str) -> list[object]:
    """Return JSON values that tell an image of an archive from others; raises ArtifactError."""
    image, status = _chosen(path, name), stamp(path)
    return [image.config, *image.layers, status.st_size, status.st_mtime_ns]


#: Writes a layer, not compressed, to a file; the folder is for temporary files.
Write: TypeAlias = "Callable[[IO[bytes], Path], None]"


@contextlib.contextmanager
def layers(path: Path, name: str) -> Iterator[tuple[Mapping[str, Any], list[Write]]]:
    """Open an image of an archive: its configuration, and its layers from the lowest on.

    Raises ArtifactError, OSError.
    """
    image = _chosen(path, name)
    with damaged(path), _opened(path) as files:
        yield _json(files, image.config), [_writer(files[one]) for one in image.layers]


def _writer(opened: Callable[[], IO[bytes]]) -> Write:
    def write(plain: IO[bytes], folder: Path) -> None:
        with opened() as packed:
            _unpack(packed, plain, folder)

    return write


def convert(path: Path, target: Path, name: str, wanted: str = "") -> None:
    """Write an image of an archive as an archive that every engine can load.

    ``wanted`` is the full name of the image, or the digest of its manifest; empty for that with
    the full name ``name``, or the only one.  Without such an image, all of them are written.  The
    image gets the name ``name``.  Raises ArtifactError for a damaged archive, OSError.
    """
    images = read(path)
    match = [one for one in images if {wanted or name} & {*one.names, one.digest, one.index}]
    chosen = match[:1] or images
    own = {0: name} if len(chosen) == 1 else {}
    with damaged(path), _opened(path) as files:
        write(
            target,
            [
                (
                    [own[number]] if number in own else list(image.names),
                    files[image.config]().read(),
                    [files[layer] for layer in image.layers],
                )
                for number, image in enumerate(chosen)
            ],
        )


#: Names, configuration and layers of an image.
Image: TypeAlias = "tuple[Sequence[str], bytes, Sequence[Callable[[], IO[bytes]]]]"


def write(target: Path, images: Sequence[Image]) -> None:
    """Write images as an archive of ``docker save``, with layers that are not compressed.

    Each layer is compared with the digest in its image's configuration (OCI image specification,
    "Image Configuration", rootfs.diff_ids).  Raises ArtifactError if one differs, OSError.
    """
    described = []
    done: set[str] = set()
    with tarfile.open(target, "w") as tar:
        for tags, config, layers in images:
            wanted = json.loads(config)["rootfs"]["diff_ids"] or []
            if len(wanted) != len(layers):
                raise ArtifactError(
                    f"the image has {len(layers)} layers, its configuration {len(wanted)}"
                )
            for digest, opened in zip(wanted, layers, strict=True):
                if digest not in done:
                    _add_layer(tar, target.parent, digest, opened)
                    done.add(digest)
            place = f"{hashlib.sha256(config).hexdigest()}.json"
            _add(tar, place, config)
            members = [_layer(digest) for digest in wanted]
            described.append({"Config": place, "Layers": members, "RepoTags": list(tags)})
        _add(tar, "manifest.json", json.dumps(described, sort_keys=True).encode())


def _layer(digest: str) -> str:
    return f"{digest.partition(':')[2]}/layer.tar"


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def _add_layer(
    tar: tarfile.TarFile, folder: Path, digest: str, opened: Callable[[], IO[bytes]]
) -> None:
    with tempfile.NamedTemporaryFile(dir=folder) as plain:  # its header needs the size
        with opened() as packed:
            _unpack(packed, plain, folder)
        info = tarfile.TarInfo(_layer(digest))
        info.size = plain.seek(0, os.SEEK_END)
        plain.seek(0)
        found = hashlib.file_digest(plain, "sha256").hexdigest()
        if f"sha256:{found}" != digest:
            raise ArtifactError(f"a layer is damaged: wanted {digest}, saw sha256:{found}")
        plain.seek(0)
        tar.addfile(info, plain)


def _unpack(packed: IO[bytes], plain: IO[bytes], folder: Path) -> None:
    """Unpack a layer into a file that has a name; ``folder`` is for a temporary file."""
    begin = packed.read(len(ZSTD))
    packed.seek(0)
    if begin == ZSTD:
        if which("zstd") is None:
            raise ArtifactError(
                "a layer is compressed with zstd, which is not installed",
                hint="apt-get install zstd",
            )
        # By files: a layer may be larger than the memory.
        with tempfile.NamedTemporaryFile(dir=folder) as whole:
            shutil.copyfileobj(packed, whole, CHUNK)
            whole.flush()
            run(["sh", "-c", 'exec zstd -d -q -c "$1" > "$2"', "sh", whole.name, plain.name])
        return
    source = gzip.GzipFile(fileobj=packed) if begin.startswith(GZIP) else packed
    shutil.copyfileobj(source, plain, CHUNK)


def processor() -> str:
    """Return the processor of this machine by its name in image metadata."""
    machine = os.uname().machine
    return PROCESSORS.get(machine, machine)
