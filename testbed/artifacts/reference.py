"""References to images: registry, repository, tag and digest.

The grammar is that of the distribution project, the defaults are Docker's: ``redis`` stands for
``docker.io/library/redis:latest``.
"""

from __future__ import annotations

from dataclasses import dataclass

HUB = "docker.io"
LATEST = "latest"


@dataclass(frozen=True, slots=True)
class Reference:
    """A complete reference.  ``tag`` or ``digest`` may be empty, but not both.

    >>> Reference.parse("localhost:5000/a")
    Reference(registry='localhost:5000', repository='a', tag='latest', digest='')
    """

    registry: str  #: host with its port, if any
    repository: str
    tag: str
    digest: str  #: with its algorithm, like sha256:...

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Return the reference of a text that matches :data:`testbed.topology.keys.IMAGE`."""
        name, _, digest = text.partition("@")
        registry, slash, rest = name.partition("/")
        if not slash or not is_registry(registry):
            registry, rest = HUB, name
        elif registry == f"index.{HUB}":
            registry = HUB
        if registry == HUB and "/" not in rest:
            rest = f"library/{rest}"
        path, _, last = rest.rpartition("/")
        last, _, tag = last.partition(":")
        repository = f"{path}/{last}" if path else last
        return cls(registry, repository, tag or ("" if digest else LATEST), digest)

    @property
    def name(self) -> str:
        """The name without tag and digest."""
        return f"{self.registry}/{self.repository}"

    @property
    def pulled(self) -> str:
        """The name to ask a registry for: a digest decides, whatever the tag says.

        >>> Reference.parse("redis:7@sha256:01").pulled
        'docker.io/library/redis@sha256:01'
        """
        return f"{self.name}@{self.digest}" if self.digest else f"{self.name}:{self.tag}"

    @property
    def short(self) -> str:
        """The usual form of :attr:`pulled`, without Docker's defaults except the tag.

        >>> Reference.parse("docker.io/library/redis").short
        'redis:latest'
        """
        return self.pulled.removeprefix(f"{HUB}/library/").removeprefix(f"{HUB}/")


def is_registry(word: str) -> bool:
    """Tell whether the first part of an image's name is a registry.

    >>> is_registry("ghcr.io"), is_registry("localhost"), is_registry("library")
    (True, True, False)
    """
    return bool(set(".:") & set(word)) or word == "localhost"


def full_name(reference: str) -> str:
    """Return an image's name with registry and tag, in containerd's form.

    A digest is dropped if there is a tag: it identifies a registry's manifest, which an archive
    does not contain.

    >>> full_name("nginx"), full_name("testbed/pause:1"), full_name("registry.k8s.io/pause:3.10.2")
    ('docker.io/library/nginx:latest', 'docker.io/testbed/pause:1', 'registry.k8s.io/pause:3.10.2')
    >>> full_name("localhost:5000/a"), full_name("index.docker.io/a/b:1@sha256:0123")
    ('localhost:5000/a:latest', 'docker.io/a/b:1')
    """
    found = Reference.parse(reference)
    return f"{found.name}:{found.tag}" if found.tag else f"{found.name}@{found.digest}"


def local_name(reference: str) -> str:
    """Return the name for using an image that was loaded from an archive.

    An engine knows a registry's digest only of images that it pulled: the digest itself becomes
    the tag, in the place of another one, which may stand for another image.

    >>> local_name("redis:7"), local_name("redis:7@sha256:01"), local_name("a/b@sha256:01")
    ('redis:7', 'redis:sha256-01', 'a/b:sha256-01')
    """
    name, _, digest = reference.partition("@")
    if not digest:
        return name
    path, slash, last = name.rpartition("/")
    return f"{path}{slash}{last.partition(':')[0]}:{digest.replace(':', '-')}"
