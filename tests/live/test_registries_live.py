"""Images pulled from real registries on loopback, by the command line and into labs."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import archives
import pytest
import registries
from commands import Said, call
from registries import Registry

from testbed.artifacts import Store
from testbed.artifacts.inventory import NODE_IMAGE
from testbed.artifacts.node_image import IMAGE, PART, NodeImage
from testbed.cli.common import make_settings
from testbed.labs.lab import Lab
from testbed.process import run, which

if TYPE_CHECKING:
    from testbed.artifacts.source import Job, Source

pytestmark = pytest.mark.skipif(which("skopeo") is None, reason="no skopeo: testbed doctor --fix")
ETC = ("/etc/containers", "/etc/cni", "/etc/docker", "/root/.docker")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with registries.registry(tmp_path_factory.mktemp("plain")) as found:
        yield found


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with registries.registry(tmp_path_factory.mktemp("secret"), tls=True) as found:
        yield found


class User:
    """A user with a cache and a configuration of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {
            "TESTBED_CACHE": str(folder / "cache"),
            "TESTBED_CONFIG": str(folder / "config.toml"),
            "TESTBED_STATE": str(folder / "state"),
            "XDG_RUNTIME_DIR": str(folder / "run"),
            "HOME": str(folder),
        }
        self.configure("")

    def configure(self, text: str) -> None:
        (self.folder / "config.toml").write_text(text)

    def trust(self, *registries: Registry, more: str = "") -> None:
        """Configure what each registry needs besides a password."""
        self.configure(
            "".join(
                f'[registries."{one.host}"]\n'
                + (f'ca = "{one.ca}"\n' if one.tls else "insecure = true\n")
                for one in registries
            )
            + more
        )

    def pull(self, *words: str, env: dict[str, str] | None = None) -> Said:
        return call(self.folder, "artifacts", "build", *words, env={**self.env, **(env or {})})

    def text(self, name: str) -> str:
        """The text in the last layer of an image of the cache."""
        with tarfile.open(self.image(name)) as tar:
            (described,) = json.load(tar.extractfile("manifest.json"))  # type: ignore[arg-type]
            layer = tar.extractfile(described["Layers"][-1])
            with tarfile.open(fileobj=layer) as inner:
                return inner.extractfile("text").read().decode()  # type: ignore[union-attr]

    def image(self, name: str) -> Path:
        config = self.folder / "config.toml"
        return Store(self.folder / "cache", config=config, pull="never").image(name)

    def entries(self) -> list[str]:
        """The entries of the cache, whole and half."""
        return sorted(
            path.name
            for path in (self.folder / "cache").iterdir()
            if path.is_dir() and path.name != ".shared"
        )


@pytest.fixture
def user(tmp_path: Path) -> User:
    return User(tmp_path)


@pytest.fixture(autouse=True, scope="module")
def _etc_stays() -> Iterator[None]:
    """The settings of this machine's engines are as they were."""

    def look() -> dict[str, tuple[int, int]]:
        paths = (path for top in ETC for path in Path(top).rglob("*"))
        return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in paths}

    before = look()
    yield
    assert look() == before


def test_by_tag_and_by_digest_from_a_plain_registry(
    user: User, plain: Registry, tmp_path: Path
) -> None:
    digest = plain.push(registries.image(tmp_path / "i.tar", "below", "text"), "tag/web:1")
    name = f"{plain.host}/tag/web"
    said = user.pull(f"{name}:1")
    assert said.status == 3
    assert "insecure = true" in said.err
    user.trust(plain)
    for reference in (f"{name}:1", f"{name}@{digest}", f"{name}:whatever@{digest}"):
        assert user.pull(reference).status == 0, reference
        assert user.text(reference) == "text"
        asked = plain.requests
        assert user.pull(reference).status == 0
        assert plain.requests == asked  # it is in the cache
    # Docker's own key, which the OCI's configuration lacks, is in it as it was.
    with tarfile.open(user.image(f"{name}:1")) as tar:
        (described,) = json.load(tar.extractfile("manifest.json"))  # type: ignore[arg-type]
        config = json.load(tar.extractfile(described["Config"]))  # type: ignore[arg-type]
    assert config["config"]["Healthcheck"] == {"Test": ["CMD", "/text"]}


def test_what_is_not_there_is_told_all_at_once(user: User, plain: Registry, tmp_path: Path) -> None:
    other = registries.image(tmp_path / "i.tar", "text", processor="m68k")
    plain.push(other, "missing/m68k:1")
    user.trust(plain)
    names = [f"{plain.host}/missing/{name}" for name in ("m68k:1", "web:2")]
    lab = tmp_path / "lab.yaml"
    lab.write_text(
        "name: missing\nnetworks: {lan: {subnet: 10.168.0.0/24}}\n"
        "nodes: {host: {networks: {lan: 10.168.0.2}, roles: [docker]}}\ncontainers:\n"
        + "".join(f'  c{i}: {{node: host, image: "{name}"}}\n' for i, name in enumerate(names))
    )
    said = call(tmp_path, "up", str(lab), env=user.env)
    assert said.status == 3
    for word in (*names, "linux/m68k", "no such image"):
        assert word in said.err
    assert user.entries() == []
    plan = call(tmp_path, "plan", str(lab), "--json", env=user.env)
    assert json.loads(plan.out)["missing_images"] == names


def test_a_password_and_a_certificate(user: User, secret: Registry, tmp_path: Path) -> None:
    secret.push(registries.image(tmp_path / "i.tar", "text"), "team/web:1")
    name = f"{secret.host}/team/web:1"
    assert "certificate is not trusted" in user.pull(name).err
    user.trust(secret)
    assert "no user is logged in" in user.pull(name).err
    wrong = secret.auth(tmp_path / "wrong.json", "another password")
    refused = user.pull(name, env={"REGISTRY_AUTH_FILE": str(wrong)})
    assert refused.status == 3
    assert f"user {registries.USER}" in refused.err
    assert registries.PASSWORD not in refused.err + refused.out
    assert user.entries() == []
    places = {
        "REGISTRY_AUTH_FILE": tmp_path / "named.json",
        "XDG_RUNTIME_DIR": tmp_path / "run/containers/auth.json",
        "docker login": tmp_path / ".docker/config.json",
        "authfile": tmp_path / "own.json",
    }
    for how, path in places.items():
        secret.auth(path)
        env = {"REGISTRY_AUTH_FILE": str(path)} if how == "REGISTRY_AUTH_FILE" else {}
        user.trust(secret, more=f'[pull]\nauthfile = "{path}"\n' if how == "authfile" else "")
        assert user.pull(name, "--pull", "always", env=env).status == 0, how
        path.unlink()
    user.trust(secret)
    assert user.text(name) == "text"
    assert user.pull(name, "--pull", "always").status == 3


@dataclass(frozen=True)
class Small(NodeImage):
    """An entry of the cache in the place of the image of nodes, which is large."""

    tree: Source = NODE_IMAGE.tree
    init: Source = NODE_IMAGE.init

    def fill(self, job: Job) -> str:
        registries.image(job.into / IMAGE, "below", "text")
        return "1"


def test_a_push_with_a_password_and_a_certificate(
    user: User, secret: Registry, plain: Registry, tmp_path: Path
) -> None:
    def push(target: str, **env: str) -> Said:
        return call(tmp_path, "image", "push", target, env={**user.env, **env})

    missing = push(f"{secret.host}/team/node:2")
    assert missing.status == 3
    assert "testbed image build" in missing.err
    Store(user.folder / "cache").keep(PART, Small())
    assert "certificate is not trusted" in push(secret.host).err
    user.trust(secret)
    refused = push(secret.host)
    assert refused.status == 3
    assert "no user is logged in" in refused.err
    wrong = secret.auth(tmp_path / "wrong.json", "another password")
    refused = push(secret.host, REGISTRY_AUTH_FILE=str(wrong))
    assert f"user {registries.USER}" in refused.err
    secret.auth(tmp_path / ".docker/config.json")  # as `docker login` does
    for target, name in ((secret.host, "testbed/node:1"), (f"{secret.host}/me/x:2", "me/x:2")):
        done = push(target)
        assert done.status == 0, done.err
        said, _, digest = done.out.strip().partition("@")
        assert said == f"{secret.host}/{name}"
        assert user.pull(f"{said}@{digest}").status == 0
        assert user.text(f"{said}@{digest}") == "text"
    assert push(secret.host).out == push(secret.host).out  # the same digest again
    unreachable = push("127.0.0.1:1/x")
    assert unreachable.status == 3
    assert "connection refused" in unreachable.err
    assert "insecure = true" in push(plain.host).err
    user.trust(plain)
    assert push(plain.host).status == 0


def test_a_mirror(user: User, plain: Registry, tmp_path: Path) -> None:
    plain.push(registries.image(tmp_path / "i.tar", "of the mirror"), "hub/library/web:1")
    # The registry itself cannot be reached: nobody listens there.
    user.trust(plain, more=f'[registries."127.0.0.1:1"]\nmirrors = ["{plain.host}/hub"]\n')
    assert user.pull("127.0.0.1:1/library/web:1").status == 0
    assert user.text("127.0.0.1:1/library/web:1") == "of the mirror"
    missing = user.pull("127.0.0.1:1/library/web:2")
    assert plain.host in missing.err
    assert "connection refused" in missing.err


def test_a_tag_that_has_moved(user: User, plain: Registry, tmp_path: Path) -> None:
    name = f"{plain.host}/moved/web:1"
    user.trust(plain)
    plain.push(registries.image(tmp_path / "i.tar", "below", "first"), "moved/web:1")
    assert user.pull(name, "--pull", "never").status == 3
    assert user.pull(name).status == 0
    plain.push(registries.image(tmp_path / "i.tar", "below", "second"), "moved/web:1")
    for policy, text, layers in (
        ("never", "first", 0), ("missing", "first", 0), ("always", "second", 1),
        ("always", "second", 0),
    ):  # fmt: skip
        before = len(plain.fetched)
        assert user.pull(name, "--pull", policy).status == 0
        assert user.text(name) == text
        # With the configuration of an image, which is a blob, too.
        seen = [one for one in plain.fetched[before:] if plain.blob(one).read_bytes()[:1] != b"{"]
        assert len(seen) == layers, policy


def test_a_registry_with_tokens(user: User, tmp_path: Path) -> None:
    with registries.with_tokens(tmp_path / "tokens") as (found, server):
        found.push(registries.image(tmp_path / "i.tar", "below", "by token"), "own/team/web:1")
        name = f"{found.host}/own/team/web:1"
        user.trust(found)
        server.given.clear()
        refused = user.pull(name)
        assert (refused.status, server.given) == (3, [])
        assert "no user is logged in" in refused.err
        assert f"skopeo login {found.host}" in refused.err
        auth = tmp_path / ".config/containers/auth.json"
        found.auth(auth, "wrong")
        wrong = user.pull(name)
        assert wrong.status == 3
        assert f"user {registries.USER}" in wrong.err
        found.auth(auth)
        assert user.pull(name).status == 0
        assert user.text(name) == "by token"
        assert set(server.given) == {"repository:own/team/web:pull"}, "one repository, to read"


def test_images_of_podman(user: User, tmp_path: Path) -> None:
    podman = registries.podman(tmp_path / "podman")
    loaded = run([podman, "load", "-q", "-i", registries.image(tmp_path / "i.tar", "of podman")])
    identity = loaded.stdout.split()[-1]
    names = ["registry.example/team/web:1", "localhost/own:2"]
    for name in names:
        run([podman, "tag", identity, name])
    path = f"{podman.parent}{os.pathsep}{os.environ['PATH']}"
    said = user.pull(*names, "--images-from", "podman", "--pull", "never", env={"PATH": path})
    assert said.status == 0, said.err
    assert [user.text(name) for name in names] == ["of podman", "of podman"]
    other = ["registry.example/team/other:1", "--images-from", "podman", "--pull", "never"]
    missing = user.pull(*other, env={"PATH": path})
    assert missing.status == 3
    assert "image not known" in missing.err


def test_several_images_are_pulled_side_by_side(
    user: User, plain: Registry, tmp_path: Path
) -> None:
    names = []
    for number in range(4):
        path = registries.image(tmp_path / "i.tar", "common layer", f"own layer {number}")
        plain.push(path, f"many/web{number}:1")
        names.append(f"{plain.host}/many/web{number}:1")
    user.trust(plain)
    before = len(plain.fetched)
    said = user.pull(*names)
    assert said.status == 0, said.err
    assert [user.text(name) for name in names] == [f"own layer {number}" for number in range(4)]
    layers = {layer for number in range(4) for layer in layers_of(plain, f"many/web{number}:1")}
    fetched = [one for one in plain.fetched[before:] if one in layers]
    assert sorted(fetched) == sorted(layers)


def test_a_pull_goes_on_where_it_was_cut(user: User, plain: Registry, tmp_path: Path) -> None:
    plain.push(registries.image(tmp_path / "i.tar", "one", "two", "three of a cut"), "cut/web:1")
    name = f"{plain.host}/cut/web:1"
    user.trust(plain)
    data = [plain.blob(digest) for digest in layers_of(plain, "cut/web:1")]
    away = tmp_path / "away"
    data[-1].rename(away)
    cut = user.pull(name)
    assert cut.status == 3
    assert user.entries() == []
    there = layers_of(plain, "cut/web:1")[:-1]
    assert set(there) <= set(plain.fetched)
    before = len(plain.fetched)
    away.rename(data[-1])
    assert user.pull(name).status == 0
    assert not set(there) & set(plain.fetched[before:])
    assert user.text(name) == "three of a cut"


def layers_of(found: Registry, name: str) -> list[str]:
    argv = ["skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{found.host}/{name}"]
    said = subprocess.run(argv, capture_output=True, check=True).stdout
    return [layer["digest"] for layer in json.loads(said)["layers"]]


@pytest.mark.long  # skopeo may give up on a layer from a FIFO before it is interrupted
def test_ctrl_c_in_the_middle(user: User, plain: Registry, tmp_path: Path) -> None:
    plain.push(registries.image(tmp_path / "i.tar", "one of ctrl-c", "two"), "stop/web:1")
    user.trust(plain)
    first, last = layers_of(plain, "stop/web:1")
    # A registry that reads from a FIFO waits for a writer.
    blob = plain.blob(last)
    content = blob.read_bytes()
    blob.unlink()
    os.mkfifo(blob)
    argv = [sys.executable, "-m", "testbed", "artifacts", "build", f"{plain.host}/stop/web:1"]
    child = subprocess.Popen(argv, env={**os.environ, **user.env}, stderr=subprocess.PIPE)
    try:
        whole = tmp_path / "cache/.shared/blobs/sha256" / first.partition(":")[2]
        deadline = time.monotonic() + 120
        while not whole.exists():
            assert child.poll() is None, child.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=120)
    finally:
        child.kill()
        child.wait()
        os.close(os.open(blob, os.O_RDWR | os.O_NONBLOCK))  # the registry's reader ends
        blob.unlink()
        blob.write_bytes(content)
    assert child.returncode == 130, said
    assert user.entries() == []
    before = len(plain.fetched)
    assert user.pull(f"{plain.host}/stop/web:1").status == 0
    assert first not in plain.fetched[before:]


def test_two_at_once_pull_once(user: User, plain: Registry, tmp_path: Path) -> None:
    plain.push(registries.image(tmp_path / "i.tar", "one of two", "two of two"), "twice/web:1")
    user.trust(plain)
    before = len(plain.fetched)
    name = f"{plain.host}/twice/web:1"
    argv = [sys.executable, "-m", "testbed", "artifacts", "build", name]
    children = [
        subprocess.Popen(argv, env={**os.environ, **user.env}, stderr=subprocess.DEVNULL)
        for _ in range(2)
    ]
    assert [child.wait(120) for child in children] == [0, 0]
    fetched = [one for one in plain.fetched[before:] if one in layers_of(plain, "twice/web:1")]
    assert sorted(fetched) == sorted(layers_of(plain, "twice/web:1"))


def test_a_full_disk(user: User, plain: Registry, tmp_path: Path) -> None:
    text = os.urandom(1 << 20).hex()
    plain.push(registries.image(tmp_path / "i.tar", text), "large/web:1")
    (tmp_path / "cache").mkdir()
    user.trust(plain)
    argv = ["mount", "-n", "-t", "tmpfs", "-o", "size=600k", "test", str(tmp_path / "cache")]
    script = f'{" ".join(argv)} && exec {sys.executable} -m testbed artifacts build "$1"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", f"{script}", "sh", f"{plain.host}/large/web:1"],
        env={**os.environ, **user.env}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert "full" in done.stderr or "No space left" in done.stderr
    assert "TESTBED_CACHE" in done.stderr


FILE = """\
name: registries
networks: {{lan: {{subnet: 10.168.0.0/24}}}}
nodes: {{host: {{networks: {{lan: 10.168.0.2}}, roles: [docker]}}}}
containers:
  web: {{node: host, image: "{}"}}
"""


def layer_with(text: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        info = tarfile.TarInfo("text")
        info.size = len(text)
        tar.addfile(info, io.BytesIO(text.encode()))
    return out.getvalue()


@pytest.fixture
def cache() -> Iterator[Path]:
    with archives.cache() as made:
        yield made


def test_a_lab_of_a_registry(user: User, plain: Registry, tmp_path: Path, cache: Path) -> None:
    user.env["TESTBED_CACHE"] = str(cache)
    user.trust(plain)
    name = f"{plain.host}/lab/web:1"
    (tmp_path / "lab.yaml").write_text(FILE.format(name))

    def push(text: str) -> None:
        archives.write(tmp_path / "web.tar", name, [layer_with(text)])
        plain.push(tmp_path / "web.tar", "lab/web:1")

    def testbed(*words: str, env: dict[str, str] | None = None) -> str:
        said = call(tmp_path, *words, env={**user.env, **(env or {})})
        assert said.status == 0, said.out + said.err
        return said.out

    def up(*words: str) -> dict[str, object]:
        steps = json.loads(testbed("up", str(tmp_path / "lab.yaml"), "--json", *words))["changed"]
        text = testbed("exec", "host/web", "cat", "/text")
        return {"text": text, "steps": [one for one in steps if "host" in one and " " in one]}

    push("first")
    try:
        assert up()["text"] == "first"
        assert up("--pull", "always") == {"text": "first", "steps": []}
        push("second")
        assert up() == {"text": "first", "steps": []}
        moved = up("--pull", "always")
        assert moved == {"text": "second", "steps": ["images host", "container host/web"]}
        assert up() == {"text": "second", "steps": []}

        # The node's Docker stands in for that of this machine.
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TESTBED_STATE", user.env["TESTBED_STATE"])
            socket = Lab("registries", make_settings()).node("host").socket("/run/docker.sock")
        client = Store().binary("docker", "docker-cli-29")
        env = {"DOCKER_HOST": f"unix://{socket}", "PATH": f"{client.parent}:{os.environ['PATH']}"}
        of_docker = ("--images-from", "docker", "--pull", "never")
        user.env["TESTBED_CACHE"] = str(tmp_path / "cache")
        testbed("artifacts", "build", name, *of_docker, env=env)
        listed = json.loads(testbed("artifacts", "--json"))
        assert [one["state"] for one in listed if one["name"] == name] == ["cached"]
        assert user.text(name) == "second"
        gone = {**env, "DOCKER_HOST": f"unix://{tmp_path}/nowhere.sock"}
        failed = user.pull(f"{plain.host}/lab/none:1", *of_docker, env=gone)
        assert failed.status == 3
        assert "nowhere.sock" in failed.err
    finally:
        call(tmp_path, "down", "--all", env=user.env)
