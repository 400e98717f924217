"""The command line in this process: what it says, where it says it, and its exit status."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import importlib
import json
import os
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn

import click
import pytest
from click.shell_completion import ShellComplete

from testbed import __version__, cli
from testbed.artifacts import release
from testbed.cli import ABOUT, COMMANDS, brought, common, up
from testbed.errors import Interrupted, LabError, NoSuchLab, UsageError
from testbed.labs.lab import Lab
from testbed.labs.run import Waiting
from testbed.labs.state import Record
from testbed.nodes.fake import FakeProvider
from testbed.roles.docker.section import ENGINES
from testbed.roles.kubernetes import api_port
from testbed.testing.provider import spec
from testbed.topology import load, names

if TYPE_CHECKING:
    from testbed.testing.fakes import Bench

ESCAPE = "\x1b"
HANDLED = (signal.SIGTERM, signal.SIGHUP)
VARIABLES = ("TESTBED_LAB", "NO_COLOR", "FORCE_COLOR", "TESTBED_CONFIG")


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    before = {signum: signal.getsignal(signum) for signum in HANDLED}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


class Said:
    """Exit status and both outputs of a command line."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status = status
        self.out = out
        self.err = err


Testbed = Callable[..., Said]


@pytest.fixture
def testbed(capsys: pytest.CaptureFixture[str]) -> Testbed:
    def run(*argv: str) -> Said:
        capsys.readouterr()
        status = cli.run(list(argv))
        return Said(status, *capsys.readouterr())

    return run


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)


# -- help ---------------------------------------------------------------------------


def test_version(testbed: Testbed) -> None:
    said = testbed("--version")
    assert (said.status, said.out, said.err) == (0, f"testbed {__version__}\n", "")


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_lists_every_command(option: str, testbed: Testbed) -> None:
    said = testbed(option)
    assert (said.status, said.err) == (0, "")
    listed = [line.split()[0] for line in said.out.splitlines() if line.startswith("  ")]
    assert {*COMMANDS, *brought()} <= set(listed)
    assert {"box", "image", "vagrant", "kubectl"} <= brought().keys()
    assert "Exit status:" in said.out


def test_help_loads_no_command() -> None:
    script = (
        "import sys\nfrom testbed.cli import COMMANDS, run\nassert run(['--help']) == 0\n"
        "assert not {f'testbed.cli.{m}' for m in COMMANDS.values()} & set(sys.modules)\n"
        "assert not [name for name in sys.modules if name.startswith('testbed.nodes')]\n"
        "assert 'pytest' not in sys.modules and 'docker' not in sys.modules\n"
    )
    brought()  # their short help is in the cache now
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("name", [*COMMANDS, *brought()])
def test_each_command_has_help(name: str, testbed: Testbed) -> None:
    said = testbed(name, "--help")
    assert (said.status, said.err) == (0, "")
    assert said.out.startswith(f"Usage: testbed {name} ")
    command = cli.cli.get_command(click.Context(cli.cli), name)
    assert command is not None
    assert command.name == name
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, (name, parameter.name)


def test_each_command_is_about_something() -> None:
    assert list(ABOUT) == list(COMMANDS)
    modules = {path.stem for path in Path(cli.__file__).parent.glob("*.py")}
    assert modules == set(COMMANDS.values()) | {"__init__", "common", "output", "walk_output"}


# -- wrong use ----------------------------------------------------------------------


def test_an_unknown_command_has_its_nearest(testbed: Testbed) -> None:
    said = testbed("verfy", "two-node")
    assert (said.status, said.out) == (2, "")
    assert "no command 'verfy'; did you mean `testbed verify`?" in said.err
    said = testbed("qqq")
    assert said.status == 2
    assert "see `testbed --help`" in said.err


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--no-such-option"],
        ["plan"],
        ["plan", "two-node", "--nodes", "many"],
        ["plan", "two-node", "more"],
        ["completion", "tcsh"],
        ["logs", "node1", "-n", "-1"],
        ["exec", "node1"],
        ["artifacts", "rm"],
        ["artifacts", "rm", "--all", "etcd"],
    ],
    ids=" ".join,
)
def test_wrong_use_is_2_and_on_standard_error(argv: list[str], testbed: Testbed) -> None:
    said = testbed(*argv)
    assert (said.status, said.out) == (2, "")
    assert "Usage: testbed" in said.err


@pytest.mark.usefixtures("root", "state")
@pytest.mark.parametrize(
    "argv", [["verify", "--all", "two-node"], ["down", "--all", "two-node"]], ids=" ".join
)
def test_all_and_a_name_exclude_each_other(argv: list[str], testbed: Testbed) -> None:
    said = testbed(*argv)
    assert said.status == 2
    assert "--all" in said.err


def test_a_bad_topology_is_told_with_line_and_column(testbed: Testbed, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("name: bad\nnodes:\n  a: {rols: [docker]}\n")
    for command in ("plan", "up", "topologies"):
        said = testbed(command, str(path))
        assert (said.status, said.out) == (2, ""), command
        assert said.err == (
            f"testbed: {path}:3:7: wanted a known key, saw 'rols'; did you mean 'roles'?\n"
        )


def test_an_unknown_topology_has_its_nearest(testbed: Testbed) -> None:
    said = testbed("plan", "two-nod")
    assert said.status == 2
    assert "two-node" in said.err


@pytest.mark.parametrize("given", ["flanneld", "flanneld=", "=/bin/true", "="])
@pytest.mark.usefixtures("root", "state")
@pytest.mark.parametrize("command", [["artifacts", "build"], ["up", "two-node", "-q"]])
def test_a_malformed_artifact(command: list[str], given: str, testbed: Testbed) -> None:
    said = testbed(*command, "--artifact", given)
    assert (said.status, said.out) == (2, "")
    assert said.err == f"testbed: --artifact {given}: wanted NAME=PATH\n"


def test_prune_lists_what_it_removes_with_yes(
    testbed: Testbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TESTBED_CACHE", str(tmp_path))
    entry = tmp_path / "flanneld-v0.1-abcd"
    entry.mkdir()
    record = {"name": "flanneld", "version": "v0.1", "key": "abcd", "origin": "go", "size": 5000000}
    (entry / "artifact.json").write_text(json.dumps(record))
    for argv, here in ((["prune"], True), (["prune", "--yes"], False), (["prune"], False)):
        said = testbed("artifacts", *argv)
        assert (said.status, entry.exists()) == (0, here)
        assert ("v0.1" in said.out, "5.0 MB" in said.out) == (here, argv != ["prune"] or here)


# -- network plugins -----------------------------------------------------------------


@pytest.fixture
def without_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's configuration file that brings nothing yet."""
    path = tmp_path / "config.toml"
    path.touch()
    monkeypatch.setenv("TESTBED_CONFIG", str(path))
    monkeypatch.setenv("TESTBED_CACHE", str(tmp_path / "cache"))
    return path


@pytest.mark.parametrize("name", ["calico", "calico-manifest", "weave", "weave-manifest"])
def test_what_must_be_brought_is_known_to_artifacts(
    name: str, without_plugins: Path, testbed: Testbed
) -> None:
    manifest = f"{name.removesuffix('-manifest')}-manifest"
    said = testbed("artifacts", "build", name)
    assert (said.status, said.out) == (3, "")
    assert f'[artifacts."{manifest}"]' in said.err

    without_plugins.write_text(f'[artifacts]\n{manifest} = {{path = "m.yaml"}}\n')
    said = testbed("artifacts", "build", name)
    assert said.status == (2 if name == manifest else 3), "there is no such file"
    assert "m.yaml" in said.err
    (without_plugins.parent / "m.yaml").write_text("kind: List\n")
    said = testbed("artifacts", "build", name)
    assert said.status == 3, "it is a file, and need not be executable, but of something else"
    assert "DaemonSet" in said.err
    assert "executable" not in said.err


def test_a_file_of_the_users_that_is_no_program_need_not_be_executable(
    without_plugins: Path, testbed: Testbed
) -> None:
    without_plugins.write_text('[artifacts]\nnotes = {path = "notes.txt"}\n')
    (without_plugins.parent / "notes.txt").touch()
    assert testbed("artifacts", "build", "notes").status == 0
    without_plugins.write_text('[artifacts]\nflanneld = {path = "notes.txt"}\n')
    said = testbed("artifacts", "build", "flanneld")
    assert said.status == 2
    assert "executable" in said.err


@pytest.mark.parametrize("argv", [
    ["artifacts", "build", "calic"], ["doctor", "--role", "calic"],
    ["doctor", "--role", "calico-manifest"],
], ids=" ".join)  # fmt: skip
@pytest.mark.usefixtures("without_plugins", "state")
def test_a_name_that_there_is_not_is_told(argv: list[str], testbed: Testbed) -> None:
    said = testbed(*argv)
    assert (said.status, said.out) == (3 if argv[0] == "artifacts" else 2, "")
    assert repr(argv[-1]) in said.err


# -- without root -------------------------------------------------------------------

NEED_ROOT = {
    "up": ["two-node"],
    "down": [],
    "status": [],
    "graph": [],
    "capture": ["node1"],
    "ls": ["--json"],
    "attach": ["--containerlab", "lab"],
    "verify": [],
    "exec": ["node1", "--", "true"],
    "shell": ["node1"],
    "logs": ["node1"],
    "walk": ["node1", "node2"],
    "conformance": [],
}


@pytest.mark.usefixtures("nobody", "state")
@pytest.mark.parametrize("name", NEED_ROOT)
def test_commands_that_need_root_say_so(name: str, testbed: Testbed) -> None:
    said = testbed(name, *NEED_ROOT[name])
    assert (said.status, said.out) == (3, "")
    assert said.err.startswith(f"testbed: `testbed {name}` needs root")
    assert "sudo" in said.err


@pytest.mark.usefixtures("nobody", "state")
def test_commands_that_look_work_without_root(testbed: Testbed) -> None:
    for argv in (["plan", "two-node"], ["topologies"], ["schema"], ["artifacts", "--json"]):
        assert testbed(*argv).status == 0


def test_the_hint_on_root_names_commands_that_there_are() -> None:
    assert set(NEED_ROOT) <= {*COMMANDS, *brought()}
    rest = set(COMMANDS) - set(NEED_ROOT)
    assert {"plan", "topologies", "schema", "doctor"} <= rest


# -- what is printed -----------------------------------------------------------------


@pytest.mark.parametrize("name", names())
def test_plan(name: str, testbed: Testbed) -> None:
    found = json.loads(testbed("plan", name, "--json").out)
    assert found["lab"] == name
    steps = {step["name"]: step for step in found["steps"]}
    text = testbed("plan", name)
    assert text.status == 0
    assert text.out.startswith(f"{name}: ")
    for step in steps:
        assert f"\n  {step} " in text.out
    for step in steps.values():
        assert set(step["needs"]) <= set(steps)


@pytest.mark.usefixtures("nobody")
def test_plan_names_all_images_that_are_not_available(testbed: Testbed, tmp_path: Path) -> None:
    path = tmp_path / "lab.yaml"
    names = ["alpine:3.20", "busybox", "nginx", "redis"]
    path.write_text(
        "name: t\nnetworks: {lan: {subnet: 10.41.0.0/24}}\n"
        "nodes: {host: {networks: {lan: 10.41.0.2}, roles: [docker]}}\ncontainers:\n"
        + "".join(f'  c{i}: {{node: host, image: "{n}"}}\n' for i, n in enumerate(names))
    )
    said = testbed("plan", str(path))
    assert said.status == 0
    lines = [line.strip() for line in said.out.splitlines()]
    assert [line for line in lines if line.startswith("[images.")] == [
        f'[images."{name}"]' for name in names if name != "nginx"
    ]
    found = json.loads(testbed("plan", str(path), "--json").out)
    assert found["missing_images"] == ["alpine:3.20", "busybox", "redis"]
    assert json.loads(testbed("plan", "two-node", "--json").out)["missing_images"] == []


def test_plan_of_a_variant(testbed: Testbed) -> None:
    argv = ["plan", "two-node", "--backend", "udp", "--nodes", "4", "--name", "four", "--json"]
    found = json.loads(testbed(*argv).out)
    assert found["lab"] == "four"
    about = " ".join(step["about"] for step in found["steps"])
    assert "flanneld udp" in about
    assert "vxlan" not in about


@pytest.mark.parametrize(
    ("argv", "engine"), [([], "26.1"), (["--docker", "20.10"], "26.1"), (["--docker", "29"], "29")]
)
def test_plan_says_which_engine_this_release_has(
    monkeypatch: pytest.MonkeyPatch, testbed: Testbed, argv: list[str], engine: str
) -> None:
    monkeypatch.setattr(release, "facts", lambda: {"ID": "debian", "VERSION_ID": "13"})
    assert f"docker {engine}, " in testbed("plan", "two-node", *argv).out.splitlines()[0]


def test_plan_of_a_mixed_lab_says_who_makes_what(testbed: Testbed) -> None:
    lines = testbed("plan", "two-node-mixed").out.splitlines()
    assert lines[0].startswith("two-node-mixed: 3 nodes by netns and qemu, flannel vxlan, ")
    about = {line.split()[1]: line.split("  ")[-1] for line in lines if line.startswith("  node ")}
    assert about == {
        "node1": "machine with 10.168.0.2",
        "node2": "qemu machine with 10.168.0.3",
        "outside": "machine with 10.168.0.1",
    }
    all_of_one = testbed("plan", "two-node", "--provider", "qemu").out.splitlines()
    assert all_of_one[0].startswith("two-node: 3 nodes by qemu and netns, ")


@pytest.mark.usefixtures("root")
def test_a_mixed_lab_looked_at(
    bench: Bench, testbed: Testbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common, "make_settings", lambda **_: bench.settings)
    file = tmp_path / "lab.yaml"
    file.write_text("name: mixed\nnodes: {a: {}, b: {provider: qemu}}\n")
    assert testbed("up", str(file), "-q").status == 0
    shown = [line.split() for line in testbed("status").out.splitlines()]
    assert shown == [["mixed:", "up"], ["a", "up", "by", "netns"], ["b", "up", "by", "qemu"]]
    found = json.loads(testbed("status", "--json").out)["nodes"]
    assert {node["name"]: node["provider"] for node in found} == {"a": "netns", "b": "qemu"}
    assert "2 of 2" in testbed("ls").out

    def nodes(lab: str) -> NoReturn:
        raise LabError(f"the cluster of {lab} does not answer")

    with monkeypatch.context() as lost:
        lost.setattr(bench.provider, "nodes", nodes)
        assert "? of 2" in testbed("ls").out

        def interrupted(lab: str) -> NoReturn:
            del lab
            raise Interrupted(2)

        lost.setattr(bench.provider, "nodes", interrupted)
        assert testbed("ls").status == 130

    def labs() -> NoReturn:
        raise LabError("the cluster does not answer", hint="start it")

    away = FakeProvider(name="away")
    bench.settings.providers = {"away": away, **bench.settings.providers}
    monkeypatch.setattr(away, "labs", labs)
    shown_too = testbed("ls")
    assert (shown_too.status, "2 of 2" in shown_too.out) == (0, True)
    assert "does not answer" in shown_too.err
    assert testbed("down", "nowhere").status == 4, "it may be where nothing answers"
    done = testbed("down", "--all")
    assert (done.status, done.out.startswith("mixed: removed")) == (4, True)
    assert "does not answer" in done.err
    assert testbed("up", str(file), "-q").status == 0
    assert testbed("down", "mixed").status == 0
    bench.settings.providers = {k: v for k, v in bench.settings.providers.items() if k != "away"}
    assert testbed("up", str(file), "-q").status == 0
    assert testbed("down").out.startswith("mixed: removed")
    file.write_text("name: mixed\nnodes: {a: {}, b: {}}\n")
    assert testbed("up", str(file), "-q").status == 0
    assert " by " not in testbed("status").out


def test_topologies(testbed: Testbed) -> None:
    said = testbed("topologies")
    assert (said.status, said.err) == (0, "")
    shown = [line.split()[0] for line in said.out.splitlines() if not line.startswith("   ")]
    assert shown == list(names())
    found = json.loads(testbed("topologies", "--json").out)
    assert found == {name: json.loads(json.dumps(load(name).to_dict())) for name in names()}


def test_one_topology(testbed: Testbed) -> None:
    said = testbed("topologies", "two-node")
    assert said.out == Path(load("two-node").source).read_text()
    assert json.loads(testbed("topologies", "two-node", "--json").out)["name"] == "two-node"


def test_schema(testbed: Testbed) -> None:
    from jsonschema import Draft202012Validator

    said = testbed("schema")
    found = json.loads(said.out)
    Draft202012Validator.check_schema(found)
    assert "nodes" in found["properties"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str, testbed: Testbed) -> None:
    said = testbed("completion", shell)
    assert said.status == 0
    assert "_TESTBED_COMPLETE" in said.out


def test_what_completes() -> None:
    found = common.complete_topologies(None, None, "two")
    assert [item.value for item in found[:-1]] == [n for n in names() if n.startswith("two")]
    assert (found[-1].type, found[-1].value) == ("file", "two")


@pytest.mark.parametrize(
    ("option", "typed", "wanted"),
    [
        ("docker", "", list(ENGINES)),
        ("docker", "20", ["20.10"]),
        ("firewall", "iptables-", ["iptables-legacy", "iptables-nft"]),
        ("name", "", []),
    ],
)
def test_values_of_the_options_of_roles_complete(
    option: str, typed: str, wanted: list[str]
) -> None:
    shell = ShellComplete(cli.cli, {}, "testbed", "_TESTBED_COMPLETE")
    items = shell.get_completions(["up", "two-node", f"--{option}"], typed)
    assert [item.value for item in items] == wanted


def test_labs_complete(state: Path) -> None:
    state.mkdir()
    for name in ("one", "other", "two"):
        (state / f"{name}.json").touch()
    assert common.complete_labs(None, None, "o") == ["one", "other"]


# -- colours -------------------------------------------------------------------------


@pytest.mark.parametrize("argv", [["topologies"], ["plan", "two-node"], ["plan", "nowhere"]])
def test_no_escape_codes_where_there_is_no_terminal(argv: list[str], testbed: Testbed) -> None:
    said = testbed(*argv)
    assert ESCAPE not in said.out + said.err


def on_a_terminal(*argv: str) -> str:
    """Return the output of a command line on a terminal."""
    ours, its = os.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    with pytest.MonkeyPatch.context() as patch, os.fdopen(its, "w") as terminal:
        patch.setattr(sys, "stdout", terminal)
        patch.setattr(sys, "stderr", terminal)
        cli.run(list(argv))
        terminal.flush()
        text = os.read(ours, 65536).decode()
    os.close(ours)
    return text


@pytest.mark.parametrize("argv", [["topologies"], ["plan", "nowhere"]])
def test_colours_on_a_terminal_unless_they_are_not_wanted(
    argv: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ESCAPE in on_a_terminal(*argv)
    monkeypatch.setenv("NO_COLOR", "1")
    text = on_a_terminal(*argv)
    assert text
    assert ESCAPE not in text
    monkeypatch.setenv("NO_COLOR", "")  # no-color.org: only when it is not empty
    assert ESCAPE in on_a_terminal(*argv)


# -- how it ends ---------------------------------------------------------------------


def ends(monkeypatch: pytest.MonkeyPatch, how: BaseException | int | str | None) -> None:
    """Let `testbed schema` end so."""

    def schema() -> Any:
        if isinstance(how, BaseException):
            raise how
        return how

    command = click.Command("schema", callback=schema)
    monkeypatch.setattr("testbed.cli.schema.command", command)


@pytest.mark.parametrize(
    ("how", "status", "words"),
    [
        (None, 0, ""),
        (0, 0, ""),
        (7, 7, ""),
        ("text", 0, ""),
        (LabError("no lab", hint="make one"), 4, "testbed: no lab\n  -> make one\n"),
        (UsageError("wrong"), 2, "testbed: wrong\n"),
        (Interrupted(signal.SIGTERM), 143, "testbed: interrupted by signal 15\n"),
        (Interrupted(signal.SIGHUP), 129, "testbed: interrupted by signal 1\n"),
        (KeyboardInterrupt(), 130, "\ntestbed: interrupted\n"),
        (click.Abort(), 130, "testbed: interrupted\n"),
        (click.exceptions.Exit(5), 5, ""),
    ],
)
def test_exit_status(
    how: BaseException | int | str | None,
    status: int,
    words: str,
    testbed: Testbed,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ends(monkeypatch, how)
    said = testbed("schema")
    assert (said.status, said.out, said.err) == (status, "", words)


def test_a_defect_leaves_as_a_traceback(testbed: Testbed, monkeypatch: pytest.MonkeyPatch) -> None:
    ends(monkeypatch, ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        testbed("schema")


def test_no_more_threads_is_no_defect(testbed: Testbed, monkeypatch: pytest.MonkeyPatch) -> None:
    ends(monkeypatch, RuntimeError("can't start new thread"))
    said = testbed("schema")
    assert (said.status, "pids.max" in said.err) == (3, True)
    ends(monkeypatch, RuntimeError("another"))
    with pytest.raises(RuntimeError, match="another"):
        testbed("schema")


@pytest.mark.parametrize("signum", HANDLED)
def test_signals_end_a_command(
    signum: int, testbed: Testbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = click.Command("schema", callback=lambda: signal.raise_signal(signum))
    monkeypatch.setattr("testbed.cli.schema.command", command)
    assert testbed("schema").status == 128 + signum


@pytest.mark.parametrize("signum", [*HANDLED, signal.SIGINT])
def test_a_signal_whose_exception_goes_nowhere_comes_again(
    signum: int, testbed: Testbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a callback of a weak reference, such as each import has."""
    came: list[int] = []

    def act() -> None:
        class Thing:
            def __del__(self) -> None:
                came.append(signum)
                signal.raise_signal(signum)

        Thing()
        time.sleep(10)

    monkeypatch.setattr("testbed.cli.schema.command", click.Command("schema", callback=act))
    hook = sys.unraisablehook
    said = testbed("schema")
    assert (said.status, came) == (128 + signum, [signum])
    assert "ignored" not in said.err
    assert sys.unraisablehook is hook


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_a_class_is_made(
    signum: int, testbed: Testbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python 3.11 wraps what is raised there: an import is full of such places."""

    class Named:
        def __set_name__(self, owner: type, name: str) -> None:
            signal.raise_signal(signum)

    def act() -> None:
        type("Owner", (), {"named": Named()})

    monkeypatch.setattr("testbed.cli.schema.command", click.Command("schema", callback=act))
    said = testbed("schema")
    assert said.status == 128 + signum
    assert "interrupted" in said.err


@pytest.mark.parametrize("signum", HANDLED)
def test_a_signal_in_a_callback_of_the_event_loop_ends_kubeconfig(
    signum: int, testbed: Testbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """asyncio logs, and drops, what a signal's handler raises within a callback."""

    @contextlib.asynccontextmanager
    async def opened(context: object, port: int) -> AsyncIterator[api_port.Opened]:
        loop = asyncio.get_running_loop()
        loop.call_soon(signal.raise_signal, signum)
        loop.call_later(30, loop.stop)  # which fails the test
        yield api_port.Opened("https://127.0.0.1:1", b"the file")

    monkeypatch.setattr(api_port, "opened", opened)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(common, "lab_meant", lambda *_: SimpleNamespace(context=str))
    said = testbed("kubeconfig", "lab")
    assert (said.status, said.out) == (128 + signum, "the file\n")
    assert "asyncio" not in said.err


def test_ctrl_c_while_its_modules_are_loaded(tmp_path: Path) -> None:
    script = (
        "import signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'testbed.errors':\n"
        "            signal.raise_signal(signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from testbed.__main__ import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (130, b"testbed: interrupted\n")


def test_main_exits(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    monkeypatch.setattr(sys, "argv", ["testbed", "verfy"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    assert "did you mean" in capsys.readouterr().err


def test_a_reader_that_goes_is_no_failure() -> None:
    """A process of its own, to its very end; test_streams has other commands, in copies."""
    ours, its = os.pipe()
    os.close(ours)
    with os.fdopen(its, "w") as out:
        done = subprocess.run(
            [sys.executable, "-m", "testbed", "plan", "--help"],
            stdout=out, stderr=subprocess.PIPE, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


# -- what is waited for ----------------------------------------------------------------


def test_what_is_waited_for_is_said_when_it_changes_and_every_ten_seconds(
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = 0.0
    idle = up.Idle(lambda: now, terminal=True)
    said = []
    for now, steps in enumerate([["a"]] * 12 + [["a", "b", "c", "d", "e"]] * 2):
        idle([Waiting(step, now) for step in steps])
        if out := capsys.readouterr().out:
            said.append((now, out.strip()))
    assert said == [
        (0, "still at: a"),
        (10, "still at: a"),
        (12, "still at: a, b, c and 2 more"),
    ]


def test_what_a_step_waits_for_is_said_after_five_seconds(
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = 0.0
    idle = up.Idle(lambda: now, terminal=True)
    said = []
    for now in range(18):
        words = "etcd: no route" if now < 12 else "etcd: refused"
        idle([Waiting("flannel node2", now, words), Waiting("images node1", 1.0)])
        said += [(now, line.strip()) for line in capsys.readouterr().out.splitlines()]
    told = [(at, line) for at, line in said if "etcd" in line]
    assert [at for at, _ in told] == [5, 12]
    assert all("flannel node2" in line for _, line in told)
    assert any("images node1" in line for _, line in said)


def test_a_file_is_told_what_is_waited_for_every_half_a_minute(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whatever changes meanwhile: other steps, and what a step says."""
    now = 0.0
    idle = up.Idle(lambda: now)  # standard output is none
    said = []
    for now in range(70):
        steps = [Waiting("flannel node2", now, f"etcd: refused {now} times")] if now < 50 else []
        idle([*steps, *(Waiting(f"images node{n}", 1.0) for n in range(now % 5 + 1))])
        said += [(now, line.split()[0]) for line in capsys.readouterr().out.splitlines()]
    assert said == [*((0, "still"), (5, "flannel"), (30, "still"), (35, "flannel"), (60, "still"))]


# -- which lab is meant -----------------------------------------------------------------


def record(bench: Bench, name: str, source: str = "") -> None:
    topology = {**load("two-node").to_dict(), "name": name}
    bench.state.write(Record(name, topology, source))


def meant(bench: Bench, name: str | None = None) -> str:
    lab = common.lab_meant(bench.settings, name)
    assert isinstance(lab, Lab)
    assert lab.settings is bench.settings
    return lab.name


def test_none_is_up(bench: Bench) -> None:
    with pytest.raises(NoSuchLab, match="no lab") as caught:
        meant(bench)
    assert "testbed up two-node" in str(caught.value.hint)


def test_the_only_one(bench: Bench) -> None:
    record(bench, "one")
    assert meant(bench) == "one"


def test_the_only_one_that_runs_though_its_record_is_lost(bench: Bench) -> None:
    bench.provider.create_one("lost", spec("node1"))
    assert meant(bench) == "lost"


def test_several_are_up(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    record(bench, "two")
    record(bench, "one")
    bench.provider.create_one("lost", spec("node1"))
    with pytest.raises(UsageError, match="lost, one, two") as caught:
        meant(bench)
    assert "TESTBED_LAB" in str(caught.value.hint)
    for command, words in (
        ("exec_", "`testbed exec -l lost ...`"),
        ("status", "`testbed status lost`"),
    ):
        module = importlib.import_module(f"testbed.cli.{command}")
        running = click.Context(module.command, info_name=module.command.name)
        with running, pytest.raises(UsageError) as caught:
            meant(bench)
        assert words in str(caught.value.hint)
    assert meant(bench, "two") == "two"
    monkeypatch.setenv("TESTBED_LAB", "one")
    assert meant(bench) == "one"
    assert meant(bench, "two") == "two"  # what is typed counts for more


def test_an_empty_variable_is_none(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESTBED_LAB", "")
    with pytest.raises(NoSuchLab, match="no lab"):
        meant(bench)


def test_a_name_need_not_be_up(bench: Bench) -> None:
    assert meant(bench, "anything") == "anything"  # the command says what it makes of it


def test_up_of_a_lab_from_a_file_means_what_is_up(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recorded lab's name selects it; a file or a shipped topology goes before it."""
    monkeypatch.setenv("TESTBED_STATE", str(bench.state.path))
    monkeypatch.chdir(tmp_path)
    record(bench, "mine", source="gone.yaml")
    record(bench, "docker-single", source="gone.yaml")
    found = common.load_variant("mine")
    assert (found.name, found.file) == ("mine", "gone.yaml")
    assert found.to_dict() == {**load("two-node").to_dict(), "name": "mine"}
    assert common.load_variant("docker-single") == load("docker-single")
    for name in ("yours", "", "min"):
        with pytest.raises(UsageError, match="no topology"):
            common.load_variant(name)
    with pytest.raises(UsageError, match="no topology"):  # a variant is one of a topology
        common.load_variant("mine", backend="udp")
    Path("mine").write_text("name: of-the-file\nnodes: {a: {}}\n")
    assert common.load_variant("mine").name == "of-the-file"


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("ask", [("status",), ("exec", "node2", "true"), ("verify", "two-node")])
@pytest.mark.parametrize("own", [False, True], ids=["shipped", "own file"])
def test_a_hint_restores_a_lab_with_the_options_it_was_created_with(
    ask: tuple[str, ...],
    own: bool,
    bench: Bench,
    testbed: Testbed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also one of the name of a shipped topology, which `up` means by that name."""
    monkeypatch.setattr(common, "make_settings", lambda **_: bench.settings)
    monkeypatch.chdir(tmp_path)
    file = "two-node"
    if own:
        file = "./two-node.yaml"
        Path(file).write_text(names()["two-node"].read_text())
    made = testbed("up", file, "--backend", "udp", "-q")
    assert made.status == 0, made.err
    before = Lab("two-node", bench.settings).topology()
    bench.provider.destroy("two-node", ["node2"])
    said = testbed(*ask)
    assert said.status in (1, 4)
    (command,) = re.findall("`(testbed up .*?)`", said.out + said.err)
    done = testbed(*command.split()[1:])
    assert done.status == 0, done.err
    assert Lab("two-node", bench.settings).topology() == before
    assert "node2" in bench.provider.nodes("two-node")
    assert bench.state.read("two-node").source == load(file).file  # type: ignore[union-attr]


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("ask", [("exec", "mine", "node1", "true"), ("shell", "mine")])
def test_a_lab_in_the_place_of_a_node_is_told_where_to_stand(
    ask: tuple[str, ...],
    bench: Bench,
    testbed: Testbed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(common, "make_settings", lambda **_: bench.settings)
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("name: mine\nnodes: {node1: {}}\n")
    made = testbed("up", "mine.yaml", "-q")
    assert made.status == 0, made.err
    said = testbed(*ask)
    assert said.status == 4
    assert f"testbed {ask[0]} -l mine " in said.err


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize(
    ("argv", "status"),
    [
        ([], 2),
        (["two-node", "-l", "two-node"], 2),
        (["-l", "mine", "--backend", "udp"], 2),
        (["-l", "mine", "--nodes", "3"], 2),
        (["-l", "nothing"], 4),
    ],
)
def test_up_takes_a_topology_or_a_lab(
    argv: list[str],
    status: int,
    bench: Bench,
    testbed: Testbed,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(common, "make_settings", lambda **_: bench.settings)
    record(bench, "mine", source="gone.yaml")
    said = testbed("up", *argv)
    assert said.status == status
    assert said.err.startswith("testbed: ")
    assert bench.provider.labs() == []


@pytest.mark.usefixtures("root")
def test_commands_on_no_lab(
    bench: Bench, testbed: Testbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common, "make_settings", lambda **_: bench.settings)
    for argv in (["status"], ["verify"], ["logs", "node1"], ["exec", "node1", "--", "true"]):
        said = testbed(*argv)
        assert (said.status, said.out) == (4, ""), argv
        assert "`testbed up two-node`" in said.err
    assert testbed("ls").out == "no lab is up\n"
    assert testbed("ls", "--json").out == "[]\n"
    down = testbed("down")
    assert (down.status, down.out) == (0, "no lab is up\n")
    assert testbed("down", "--all", "-q").out == ""
    assert testbed("down", "other").out.startswith("other: was not up")
    missing = testbed("status", "other")
    assert missing.status == 4
    assert "other" in missing.err


# -- rows --------------------------------------------------------------------------------


def test_a_table_is_as_wide_as_it_needs_to_be(capsys: pytest.CaptureFixture[str]) -> None:
    common.table([("a", "bbb", "c"), ("aaaa", "b", "")], ("X", "YY", "Z"))
    assert capsys.readouterr().out == "X     YY   Z\na     bbb  c\naaaa  b\n"
    common.table([])
    assert capsys.readouterr().out == ""
