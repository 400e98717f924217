"""Images of registries, asked for, fetched and pushed by skopeo(1).

Credentials are those of containers-auth.json(5) and of ``docker login``.  Mirrors, plain HTTP and
certificates are given to each call: no file of this machine is changed.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import os
import pwd
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from testbed import owner
from testbed.artifacts.archive import damaged, for_platform, misfit
from testbed.artifacts.source import disk_full
from testbed.errors import ArtifactError, CommandError
from testbed.process import which

if TYPE_CHECKING:
    import threading

    from testbed.artifacts.config import Registry
    from testbed.artifacts.reference import Reference
    from testbed.artifacts.source import Runner

PROGRAM = "skopeo"
PACKAGE = "skopeo"
PATIENCE = "60s"  # time limit of a question; a layer may take as long as it needs
INSTALL = f"apt-get install {PACKAGE}, or let `testbed doctor --fix` do it"
#: Media types of an image's configuration; others are charts, signatures and the like.
CONFIGS = (
    "application/vnd.docker.container.image.v1+json",
    "application/vnd.oci.image.config.v1+json",
)
DENIED = "access denied"
#: Words of skopeo and of registries, what they mean, and what to do.
MEANINGS: tuple[tuple[str, str, str], ...] = (
    (
        "no space left on device",
        "the disk is full",
        "free space in the cache folder, or set TESTBED_CACHE to another one",
    ),
    (
        "docker-credential-",
        "the program that has its password failed",
        "install it, or log in: skopeo login {host}",
    ),
    (
        r"\bopen /\S+: permission denied",
        "a file cannot be read",
        "correct its permissions, or run testbed as its owner",
    ),
    (
        "invalid username/password|incorrect username or password|unauthorized|denied|forbidden"
        "|authentication required|no basic auth credentials",
        DENIED,
        "log in: skopeo login {host}",
    ),
    (
        "x509|certificate",
        "its certificate is not trusted",
        'set ca = "FILE" in [registries."{host}"] of the configuration file',
    ),
    (
        "server gave HTTP response to HTTPS client",
        "it speaks plain HTTP",
        'set insecure = true in [registries."{host}"] of the configuration file',
    ),
    ("manifest unknown|name unknown|repository name not known|not found", "no such image", ""),
    ("toomanyrequests", "too many requests", "log in (skopeo login {host}), or wait"),
    (
        "no such host|server misbehaving|connection refused|network is unreachable|no route to host"
        "|i/o timeout|deadline exceeded|TLS handshake timeout|\\bEOF\\b|connection reset",
        "cannot be reached",
        "",
    ),
)


@dataclass(frozen=True, slots=True)
class Remote:
    """An image in a registry: the digest of what its name stands for, and of its manifest."""

    digest: str
    manifest: Mapping[str, Any]
    manifest_digest: str

    @property
    def layers(self) -> tuple[str, ...]:
        """The digests of its layers, as they are in the registry."""
        return tuple(layer["digest"] for layer in self.manifest["layers"])

    @property
    def size(self) -> int:
        """The bytes of all layers, as they are in the registry."""
        sizes = {layer["digest"]: layer.get("size", 0) for layer in self.manifest["layers"]}
        return sum(sizes.values())


class Skopeo:
    """Calls of skopeo with the user's settings of registries.

    All methods raise ArtifactError, whose message says why a registry did not provide an image,
    and Interrupted when ``cancel`` is set.
    """

    def __init__(
        self,
        runner: Runner,
        cancel: threading.Event,
        registries: Mapping[str, Registry],
        authfile: Path | None,
    ) -> None:
        self._runner = runner
        self._cancel = cancel
        self._registries = registries
        self._authfile = authfile

    def find(self, image: Reference) -> Remote:
        """Return an image's manifest for this machine's platform."""
        with damaged("the registry's manifest"):
            return self._find(image)

    def _find(self, image: Reference) -> Remote:
        data = self._question(image, image.pulled, "--raw")
        digest = image.digest or _digest(data)
        manifest = _manifest(image, data, digest)
        chosen = digest
        if "manifests" in manifest:
            chosen = for_platform(manifest)["digest"]
            data = self._question(image, f"{image.name}@{chosen}", "--raw")
            manifest = _manifest(image, data, chosen)
        if "fsLayers" in manifest:
            raise ArtifactError("its manifest has the old schema 1", hint="push the image again")
        kind = manifest.get("config", {}).get("mediaType", "")
        if kind not in CONFIGS:
            raise ArtifactError(f"not an image, but {kind or 'something unknown'}")
        for layer in manifest["layers"]:
            if not (isinstance(layer["digest"], str) and isinstance(layer.get("size", 0), int)):
                raise ArtifactError(f"its manifest describes a layer as {layer!r}")
        return Remote(digest, manifest, chosen)

    def config(self, image: Reference, found: Remote) -> bytes:
        """Return an image's configuration, compared with its digest and with this machine."""
        name = f"{image.name}@{found.manifest_digest}"
        data = self._question(image, name, "--config", "--raw")
        wanted = found.manifest["config"]["digest"]
        if _digest(data) != wanted:
            raise ArtifactError(f"the registry sent another configuration than {wanted}")
        with damaged("the image's configuration"):
            config = json.loads(data)
            wrong = misfit(config.get("os"), config.get("architecture"))
        if wrong:
            raise wrong
        return data

    def fetch(
        self,
        image: Reference,
        found: Remote,
        blobs: Path,
        scratch: Path,
        on_tick: Callable[[float], None],
    ) -> None:
        """Fetch the layers that are not in the folder ``blobs`` yet.

        Each is compared with its digest and stored as ``sha256/HEX``.  ``scratch`` is an empty
        folder of the same file system, for the parts of layers.  ``on_tick`` is called each second.
        """
        with self._options(image, "src-") as (env, options):
            self._run(
                image,
                [
                    PROGRAM, "copy", *options, "--remove-signatures",
                    "--dest-oci-accept-uncompressed-layers", f"--dest-shared-blob-dir={blobs}",
                    f"docker://{image.name}@{found.manifest_digest}", f"oci:{scratch}:image",
                ],
                env,
                on_tick,
            )  # fmt: skip

    def push(self, archive: Path, image: Reference, on_tick: Callable[[float], None]) -> str:
        """Push the image of an archive of ``docker load``; return the digest of its manifest.

        ``image`` has the registry and the tag.  ``on_tick`` is called each second.
        """
        with (
            self._options(image, "dest-") as (env, options),
            tempfile.TemporaryDirectory(prefix="testbed-push-") as name,
        ):
            # A colon in the path of the archive would begin the name of an image in it.
            link, digest = Path(name) / "image.tar", Path(name) / "digest"
            link.symlink_to(archive)
            to = f"docker://{image.name}:{image.tag}"
            argv = [PROGRAM, "copy", *options, f"--digestfile={digest}", f"docker-archive:{link}"]
            self._run(image, [*argv, to], env, on_tick)
            return digest.read_text("utf-8").strip()

    def _question(self, image: Reference, name: str, *words: str) -> bytes:
        with self._options(image, "") as (env, options):
            argv = [PROGRAM, f"--command-timeout={PATIENCE}", "inspect", *words, *options]
            return self._run(image, [*argv, f"docker://{name}"], env)

    def _run(
        self,
        image: Reference,
        argv: list[str],
        env: Mapping[str, str],
        on_tick: Callable[[float], None] | None = None,
    ) -> bytes:
        if which(PROGRAM) is None:
            raise ArtifactError(f"{PROGRAM} is not installed", hint=INSTALL)
        try:
            return self._runner(argv, env=env, cancel=self._cancel, on_tick=on_tick).out
        except CommandError as error:
            told = explained(error, image)
            if told.message.startswith(DENIED):
                user = self._user(image, argv)
                which_one = f"user {user}" if user else "no user is logged in"
                told = ArtifactError(f"{told.message}; {which_one}", hint=told.hint)
            raise told from error

    def _user(self, image: Reference, argv: list[str]) -> str:
        """Return the user who is logged in to an image's registry, or an empty string."""
        options = [word for word in argv if word.startswith("--authfile=")]
        asked = [PROGRAM, "login", "--get-login", *options, image.registry]
        env = owner.for_tools(os.environ)
        return self._runner(asked, env=env, cancel=self._cancel, check=False).stdout.strip()

    @contextlib.contextmanager
    def _options(self, image: Reference, side: str) -> Iterator[tuple[dict[str, str], list[str]]]:
        """Yield the environment and the options of a call; ``side`` begins names of options."""
        env = owner.for_tools(os.environ)
        options = []
        if authfile := self._authfile or self._callers_authfile(image):
            options += [f"--authfile={authfile}"]
        with tempfile.TemporaryDirectory(prefix="testbed-registries-") as name:
            folder = Path(name)
            conf = os.environ.get("CONTAINERS_REGISTRIES_CONF", "")
            if self._registries:
                conf = str(folder / "registries.conf")
                Path(conf).write_text(registries_conf(self._registries), encoding="utf-8")
            if conf:  # skopeo of Debian 12 does not read the variable
                options += [f"--registries-conf={conf}"]
            trusted = [one.ca for one in self._concerned(image) if one.ca]
            for number, ca in enumerate(trusted):
                (folder / f"{number}.crt").write_bytes(ca.read_bytes())
            if trusted:
                options += [f"--{side}cert-dir={folder}"]
            yield env, options

    def _concerned(self, image: Reference) -> list[Registry]:
        """Return the settings of an image's registry and of its mirrors."""
        own = [one for name, one in self._registries.items() if _begins(image.name, name)]
        hosts = [image.registry, *(mirror for one in own for mirror in one.mirrors)]
        more = [
            one
            for name, one in self._registries.items()
            if any(_begins(host, name) for host in hosts)
        ]
        return list(dict.fromkeys([*own, *more]))

    def _callers_authfile(self, image: Reference) -> Path | None:
        """Return the credentials of sudo's caller, if they are for the image's registry.

        skopeo itself looks for those of root.
        """
        who = owner.caller()
        if who is None or "REGISTRY_AUTH_FILE" in os.environ:
            return None
        try:
            home = Path(pwd.getpwuid(who.uid).pw_dir)
        except KeyError:
            return None
        places = (
            Path(f"/run/user/{who.uid}/containers/auth.json"),
            home / ".config" / "containers" / "auth.json",
            home / ".docker" / "config.json",
        )
        return next((path for path in places if _knows(path, image.registry)), None)


def _begins(name: str, start: str) -> bool:
    return name == start or name.startswith((f"{start}/", f"{start}:"))


def _knows(path: Path, registry: str) -> bool:
    """Tell whether a file has credentials for a registry, or a helper for them."""
    try:
        data = json.loads(path.read_bytes())
        known = [*data.get("auths", {}), *data.get("credHelpers", {})]
    except (OSError, ValueError, AttributeError, TypeError):
        return False
    hosts = {re.sub("^https?://", "", one).partition("/")[0] for one in known}
    names = {registry, "index.docker.io", "registry-1.docker.io"}
    return bool(hosts & (names if registry == "docker.io" else {registry})) or "credsStore" in data


def registries_conf(registries: Mapping[str, Registry]) -> str:
    """Return the settings in the format of containers-registries.conf(5), version 2."""
    insecure = {name for name, one in registries.items() if one.insecure}

    def is_insecure(location: str) -> str:
        return str(any(_begins(location, name) for name in insecure)).lower()

    lines = []
    for name, one in registries.items():
        lines += ["[[registry]]", f"location = {json.dumps(name)}"]
        lines += [f"insecure = {is_insecure(name)}"]
        for mirror in one.mirrors:
            lines += ["[[registry.mirror]]", f"location = {json.dumps(mirror)}"]
            lines += [f"insecure = {is_insecure(mirror)}"]
    return "\n".join(lines) + "\n"


def explained(error: CommandError, image: Reference) -> ArtifactError:
    """Return an error with the meaning of skopeo's words, and these words."""
    said = re.findall(r'level=fatal msg="((?:[^"\\\n]|\\.)*)"', error.stderr)
    words = _unquoted(said[-1]) if said else error.stderr.strip() or error.message
    words = disk_full(error) or re.sub('^Error parsing image name "[^"]*": ', "", words)
    for pattern, meaning, hint in MEANINGS:
        if re.search(pattern, words, re.IGNORECASE):
            told = f"{meaning} ({words})"
            return ArtifactError(told, hint=hint.format(host=image.registry) or None)
    return ArtifactError(words)


def _unquoted(words: str) -> str:
    """Return a text without the escapes of Go (go.dev/ref/spec, "String literals")."""
    try:
        return str(ast.literal_eval(f'"{words}"'))  # Python has the same escapes
    except (SyntaxError, ValueError):
        return words


def unfinished(folders: Iterable[Path]) -> int:
    """Return the bytes of all files in some folders, which may change meanwhile."""
    total = 0
    for folder in folders:
        with contextlib.suppress(FileNotFoundError):
            for path in folder.iterdir():
                with contextlib.suppress(FileNotFoundError):
                    total += path.stat().st_size if path.is_file() else 0
    return total


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _manifest(image: Reference, data: bytes, digest: str) -> Mapping[str, Any]:
    if _digest(data) != digest:
        raise ArtifactError(f"the registry sent {_digest(data)} for {image.name}@{digest}")
    found = json.loads(data)
    if not isinstance(found, dict):
        raise ArtifactError(f"the registry's manifest is no object: {found!r}")
    return found
