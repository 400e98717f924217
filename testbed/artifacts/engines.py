"""The releases of Docker Engine that are built from Go modules.

A new release is one entry in :data:`BUILT`, and two folders in ``go`` with its go.mod and go.sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

CLIENT = "github.com/docker/cli"
DEBIAN = "docker"  # the part with Debian's engine and its helpers
RUNC = "runc-1.5"


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A release of Docker Engine, and how it and its client are built."""

    version: str  #: full version of the daemon and of the client, such as "26.1.5"
    module: str = "github.com/docker/docker"  #: the daemon's Go module
    #: Go language versions of the daemon's and the client's vendor.mod, which Go does not read.
    #: Empty for a daemon whose module has a go.mod.
    language: str = ""
    client_language: str
    #: Build tags of the daemon. They leave out storage drivers that require libraries in C: btrfs,
    #: and before 25 devicemapper.
    tags: tuple[str, ...] = ("exclude_graphdriver_btrfs",)
    #: Parts with its helper programs, in the order in which they are looked for.  containerd is
    #: Debian's: 1.6 or later serves each of these releases.
    helpers: tuple[str, ...] = (DEBIAN,)
    everywhere: bool = False  #: one of the programs that are built for every machine beforehand

    @property
    def release(self) -> str:
        """Its name in a topology file: the first number of the version."""
        return self.version.partition(".")[0]

    @property
    def daemon(self) -> str:
        """The part with the daemon."""
        return f"docker-{self.release}"

    @property
    def client(self) -> str:
        """The part with the client."""
        return f"docker-cli-{self.release}"

    @property
    def parts(self) -> tuple[str, ...]:
        """Its parts, in which its programs are looked for in this order."""
        return (self.daemon, self.client, *self.helpers)

    @property
    def names(self) -> tuple[str, ...]:
        """Other names of the release: its version, with two numbers and with three."""
        return (self.version.rpartition(".")[0], self.version)


#: By the name of the release, the oldest one first.
BUILT: Mapping[str, Engine] = {
    engine.release: engine
    for engine in (
        # Up to 26, static builds contain runc 1.1 and containerd 1.7 (hack/dockerfile/install):
        # Debian's runc 1.1 serves them. Later ones of 24 are built with revisions of buildkit that
        # are not available from a Go proxy.
        Engine(
            version="24.0.2",
            language="go1.18",
            client_language="go1.18",
            tags=("exclude_graphdriver_btrfs", "exclude_graphdriver_devicemapper"),
        ),
        Engine(version="26.1.5", language="go1.21", client_language="go1.21"),
        Engine(
            version="28.5.2",
            language="go1.24",
            client_language="go1.23",
            helpers=(RUNC, DEBIAN),
        ),
        # Its release tags (docker-v29...) are not versions of the module; its
        # releases/versions.yaml lists the tag of each version. Debian's runc lacks the time
        # namespaces that it asks for.
        Engine(
            version="29.8.1",
            module="github.com/moby/moby/v2",
            client_language="go1.26",
            helpers=(RUNC, DEBIAN),
            everywhere=True,
        ),
    )
}
