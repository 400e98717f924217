"""Images of our own making for tests: that of nginx, called otherwise or with more layers."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import tarfile
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from testbed.artifacts.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def write(
    target: Path, name: str, layers: Sequence[bytes] = (), source: Path | None = None
) -> None:
    """An archive of an image, by default nginx, under another name, with more layers on top."""
    with tarfile.open(source or Store().image("nginx")) as tar:
        (described,) = json.load(_member(tar, "manifest.json"))
        config = json.load(_member(tar, described["Config"]))
        members = {name: _member(tar, name).read() for name in described["Layers"]}
    for data in layers:
        digest = hashlib.sha256(data).hexdigest()
        members[f"{digest}/layer.tar"] = data
        config["rootfs"]["diff_ids"].append(f"sha256:{digest}")
        config["history"].append({"created_by": "test"})
    text = json.dumps(config).encode()
    place = f"{hashlib.sha256(text).hexdigest()}.json"
    manifest: list[dict[str, Any]] = [
        {"Config": place, "Layers": list(members), "RepoTags": [name]}
    ]
    members |= {place: text, "manifest.json": json.dumps(manifest).encode()}
    with tarfile.open(target, "w") as tar:
        for member, data in members.items():
            info = tarfile.TarInfo(member)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def _member(tar: tarfile.TarFile, name: str) -> IO[bytes]:
    found = tar.extractfile(name)
    assert found is not None
    return found


@contextlib.contextmanager
def cache() -> Iterator[Path]:
    """A cache with all that the user's has, in which no seed of a test's image stays.

    It is beside the user's: nodes have folders of their own where others are, such as /tmp.
    """
    own = Store().folder
    with tempfile.TemporaryDirectory(prefix="testbed-", dir=own.parent) as name:
        for entry in own.iterdir():
            if not entry.name.startswith("."):
                (Path(name) / entry.name).symlink_to(entry)
        yield Path(name)
