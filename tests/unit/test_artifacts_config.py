"""The configuration file: each mistake names the file and the key."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from testbed.artifacts import Store, config
from testbed.artifacts.config import Local, Registry, Remote
from testbed.errors import UsageError

SUM = "ab" * 32


def write(folder: Path, text: str) -> Path:
    path = folder / "config.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_paths_start_at_the_file_and_downloads_keep_their_sum(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        f"""
        [artifacts]
        flanneld = {{path = "bin/flanneld"}}
        containerd = {{url = "https://example.org/c.tgz", sha256 = "{SUM}", member = "bin/c"}}
        [images]
        redis = {{path = "/srv/redis.tar"}}
        [something.else]
        is = "ignored"
        """,
    )
    read = config.load(path)
    flanneld = Local(tmp_path / "bin/flanneld", f"{path}:3: artifacts.flanneld")
    assert read.artifacts["flanneld"] == flanneld
    where = f"{path}:4: artifacts.containerd"
    assert read.artifacts["containerd"] == Remote("https://example.org/c.tgz", SUM, "bin/c", where)
    assert read.images["redis"] == Local(Path("/srv/redis.tar"), f"{path}:6: images.redis")


@pytest.mark.parametrize(
    ("text", "key", "what"),
    [
        ("artifacts = 3", "artifacts", "table"),
        ("[artifacts]\nflanneld = 'x'", "artifacts.flanneld", "table"),
        ("[artifacts]\nflanneld = {}", "artifacts.flanneld", "path"),
        ("[artifacts]\nx = {path='a', url='https://b/'}", "artifacts.x", "path"),
        ("[artifacts]\nx = {pth='a'}", "artifacts.x.pth", "unknown key"),
        ("[artifacts]\nx = {path=3}", "artifacts.x.path", "text"),
        ("[artifacts]\nx = {path=''}", "artifacts.x.path", "text"),
        ("[artifacts]\nx = {path='a', member='b'}", "artifacts.x.member", "url"),
        ("[artifacts]\nx = {url='https://b/c'}", "artifacts.x.sha256", "missing"),
        ("[artifacts]\nx = {url='https://b/c', sha256='12'}", "artifacts.x.sha256", "64 hex"),
        (f"[artifacts]\nx = {{url='file:///c', sha256='{SUM}'}}", "artifacts.x.url", "http"),
        ("[artifacts]\n'../x' = {path='a'}", "artifacts.../x", "'../x'"),
        ("[images]\nx = {}", "images.x", "path"),
        ("[images]\n'A:b:c' = {path='a'}", "images.A:b:c", "'A:b:c'"),
        ("[images]\nx = {path='a'}\n'x:latest' = {path='b'}", "images.x:latest", "x:latest"),
        ("[pull]\npolicy = 'often'", "pull.policy", "missing"),
        ("[pull]\npolicies = 'never'", "pull.policies", "unknown key"),
        ("[pull]\nfrom = 'docker'", "pull.from", "list"),
        ("[pull]\nfrom = ['/nowhere/x.tar']", "pull.from", "/nowhere/x.tar"),
        ("[pull]\nauthfile = '/nowhere/auth'", "pull.authfile", "/nowhere/auth"),
        ("pull = 1", "pull", "table"),
        ("registries = 1", "registries", "table"),
        ("[registries]\n'https://a.example' = {}", "registries.https://a.example", "registry"),
        ("[registries.a]\nmirrors = ['http://b']", "registries.a.mirrors", "http://b"),
        ("[registries.a]\ninsecure = 'yes'", "registries.a.insecure", "true"),
        ("[registries.a]\nca = '/nowhere/ca'", "registries.a.ca", "/nowhere/ca"),
        ("[registries.a]\nplain = true", "registries.a.plain", "unknown key"),
    ],
)
def test_a_mistake_names_file_and_key(tmp_path: Path, text: str, key: str, what: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        config.load(path)
    line = len(text.splitlines())
    assert caught.value.where == f"{path}:{line}: {key}"
    assert what in caught.value.what


def test_a_file_that_is_no_toml_names_file_and_line(tmp_path: Path) -> None:
    path = write(tmp_path, "[artifacts]\nredis:7 = 1\n")
    with pytest.raises(UsageError) as caught:
        config.load(path)
    assert caught.value.where == f"{path}:2"


def test_sources_and_registries(tmp_path: Path) -> None:
    for name in ("a.tar", "auth.json", "ca.crt"):
        (tmp_path / name).touch()
    path = write(
        tmp_path,
        """
        [pull]
        policy = "always"
        from = ["podman", "a.tar", "docker"]
        authfile = "auth.json"
        [registries]
        "docker.io" = {mirrors = ["mirror.example:5000/hub", "10.0.0.1"]}
        [registries."mirror.example:5000"]
        insecure = true
        ca = "ca.crt"
        """,
    )
    pull = config.load(path).pull
    assert pull.policy == "always"
    assert pull.sources == ("podman", tmp_path / "a.tar", "docker")
    assert pull.authfile == tmp_path / "auth.json"
    assert pull.registries == {
        "docker.io": Registry(("mirror.example:5000/hub", "10.0.0.1")),
        "mirror.example:5000": Registry((), insecure=True, ca=tmp_path / "ca.crt"),
    }


def test_the_line_of_a_key_is_that_of_its_own_table(tmp_path: Path) -> None:
    text = """
[images]
a = {path = "a.tar"}   # b = 1
[images."b"]
path = "b.tar"
sha256 = "1"
[registries."c".x]
"""
    with pytest.raises(UsageError) as caught:
        config.load(write(tmp_path, text))
    assert caught.value.where.startswith(f"{tmp_path}/config.toml:6: images.b.sha256")


def test_the_configuration_of_the_page_on_images(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/container-images.md").read_text(encoding="utf-8")
    text = page.partition("```toml\n")[2].partition("```")[0].replace('"…"', f'"{SUM}"')
    for place in ("/srv/images", "/etc/testbed/auth.json", "/etc/testbed/registry-ca.pem"):
        text = text.replace(place, str(tmp_path / Path(place).name))
        (tmp_path / Path(place).name).touch()
    read = config.load(write(tmp_path, text))
    assert set(read.images) == {"redis:7", "team/web"}
    assert read.pull.sources == ("docker", tmp_path / "images")
    assert read.pull.registries["docker.io"].mirrors == ("mirror.example:5000/hub",)
    assert read.pull.registries["mirror.example:5000"].insecure


def test_sources_on_the_command_line(tmp_path: Path) -> None:
    assert config.sources(["docker", str(tmp_path)]) == ("docker", tmp_path)
    with pytest.raises(UsageError, match="--images-from") as caught:
        config.sources(["/nowhere/a.tar"])
    assert "podman" in str(caught.value.hint)


def test_no_default_file_is_fine_a_missing_given_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TESTBED_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert config.load(None) == config.Config()
    with pytest.raises(UsageError, match=r"x.toml"):
        config.load(tmp_path / "x.toml")
    monkeypatch.setenv("TESTBED_CONFIG", str(tmp_path / "y.toml"))
    with pytest.raises(UsageError, match=r"y\.toml"):
        config.load(None)


def test_the_default_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TESTBED_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "testbed").mkdir()
    write(tmp_path / "testbed", "[images]\nx = {path='a'}")
    assert list(config.load(None).images) == ["x"]


@pytest.mark.parametrize("pair", [("", "x"), ("Flanneld", "x"), ("flanneld", ""), ("a b", "x")])
def test_a_bad_pair_on_the_command_line(pair: tuple[str, str]) -> None:
    with pytest.raises(UsageError, match="NAME=PATH"):
        config.overrides(dict([pair]))


@pytest.fixture
def secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A path that this user may not look at, whoever it is."""
    path, real = tmp_path / "secret" / "file", Path.stat

    def stat(self: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        if self == path:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(self, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(Path, "stat", stat)
    return path


@pytest.mark.parametrize(("key", "text"), [
    ("pull.from", "[pull]\nfrom = ['{}']"), ("pull.authfile", "[pull]\nauthfile = '{}'"),
    ("registries.a.ca", "[registries.a]\nca = '{}'"),
])  # fmt: skip
def test_a_file_that_the_user_may_not_see(
    tmp_path: Path, secret: Path, key: str, text: str
) -> None:
    with pytest.raises(UsageError, match="Permission denied") as caught:
        config.load(write(tmp_path, text.format(secret)))
    assert caught.value.where == f"{tmp_path / 'config.toml'}:2: {key}"
    with pytest.raises(UsageError, match="Permission denied"):
        config.sources([str(secret)])


def test_a_users_own_file_that_the_user_may_not_see(tmp_path: Path, secret: Path) -> None:
    text = f"[images]\nredis = {{path = '{secret}'}}\n[artifacts]\nx = {{path = '{secret}'}}\n"
    store = Store(tmp_path / "cache", {}, write(tmp_path, text))
    for ask in (
        lambda: store.lacking_images(["redis"]), lambda: store.image("redis"),
        lambda: store.binary("x"), lambda: store.users_file("x"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match="Permission denied"):
            ask()
    states = {entry.name: entry.state for entry in store.list()}
    assert (states["redis"], states["x"]) == ("missing", "missing")


def test_the_home_of_an_unknown_user_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        config.sources(["~no-such-user/images"])
    text = "[images]\nredis = {path = '~no-such-user/redis.tar'}"
    assert "redis" in config.load(write(tmp_path, text)).images
    assert "x" in config.overrides({"x": "~no-such-user/x"})


REFERENCES = [
    "redis",
    "alpine:3.20",
    "registry.k8s.io/pause:3.10",
    "localhost:5000/team/web_x:1.2",
    f"busybox@sha256:{SUM}",
    f"quay.io/a/b:v1@sha256:{SUM}",
]


@pytest.mark.parametrize("before", ["", "[images]\nnginx = {path = 'n.tar'}\n", "[artifacts]\n"])
def test_the_lines_that_are_suggested_can_be_added_to_any_file(tmp_path: Path, before: str) -> None:
    path = write(tmp_path, before + "\n".join(config.entries("images", REFERENCES, ".tar")))
    images = config.load(path).images
    assert set(REFERENCES) <= set(images)
    assert len({one.path for one in images.values() if isinstance(one, Local)}) == len(images)
