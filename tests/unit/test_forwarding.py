"""Commands that run another command: all that follows their first argument is the other's."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import click
import pytest
from click.shell_completion import ShellComplete

from testbed import cli
from testbed.cli import common, exec_

FORWARDING = ("exec", "kubectl", "kubeconfig")


def command_of(name: str) -> click.Command:
    command = cli.cli.get_command(click.Context(cli.cli), name)
    assert command is not None
    return command


def parsed(name: str, *words: str) -> dict[str, Any]:
    """The parameters that a command is called with."""
    with command_of(name).make_context(name, list(words)) as context:
        return context.params


def test_every_command_that_takes_any_words_is_known() -> None:
    taking = [
        name
        for name in [*cli.COMMANDS, *cli.brought()]
        if any(getattr(p, "type", None) is click.UNPROCESSED for p in command_of(name).params)
    ]
    assert set(taking) == set(FORWARDING)
    assert all(isinstance(command_of(name), common.RunsCommand) for name in FORWARDING)


LINES = [
    ("ls -la /", ["ls", "-la", "/"]),
    ("df -h", ["df", "-h"]),
    ("df --help", ["df", "--help"]),
    ("iptables -t nat -S", ["iptables", "-t", "nat", "-S"]),
    ("ss -l --lab x --tty", ["ss", "-l", "--lab", "x", "--tty"]),
    ("-- ls -la", ["ls", "-la"]),
    ("-- -x", ["-x"]),
    ("-- -- x", ["--", "x"]),
    ("cmd -- x", ["cmd", "--", "x"]),
    ("cmd --", ["cmd", "--"]),
    ("cmd -t -- -l x", ["cmd", "-t", "--", "-l", "x"]),
    ("git --version", ["git", "--version"]),
    ("cmd -", ["cmd", "-"]),
    ("cmd -o file --port 1", ["cmd", "-o", "file", "--port", "1"]),
]


@pytest.mark.parametrize(("line", "argv"), LINES, ids=[line for line, _ in LINES])
@pytest.mark.parametrize("name", FORWARDING)
def test_all_that_follows_is_the_other_commands(name: str, line: str, argv: list[str]) -> None:
    found = parsed(name, "there", *line.split())
    words = found["words"] if name == "kubectl" else found["argv"]
    assert list(words) == argv
    assert "there" in found.values()
    assert not found.get("tty")
    assert found.get("output") is None


@pytest.mark.parametrize(
    ("line", "lab", "tty"),
    [
        ("-l lab -t n cmd --help", "lab", True),
        ("-it n cmd --help", None, True),
        ("-ti n cmd --help", None, True),
        ("-i n cmd --help", None, False),
        ("--interactive --tty --lab=lab n -- cmd --help", "lab", True),
        ("-llab --no-tty -- n -- cmd --help", "lab", False),
    ],
)
def test_options_of_exec_go_before_the_node(line: str, lab: str | None, tty: bool) -> None:
    found = parsed("exec", *line.split())
    wanted = {"lab_name": lab, "tty": tty, "where": "n", "argv": ("cmd", "--help")}
    assert found | wanted == found


@pytest.mark.parametrize(
    "line",
    ["-o file lab cmd -h", "lab -o file cmd -h", "lab -o file -- cmd -h", "-o file lab -- cmd -h"],
)
def test_options_of_kubeconfig_also_follow_the_lab(line: str) -> None:
    found = parsed("kubeconfig", *line.split())
    assert (str(found["output"]), found["lab_name"]) == ("file", "lab")
    assert found["argv"] == ("cmd", "-h")


def test_kubeconfig_needs_no_command() -> None:
    found = parsed("kubeconfig", "lab", "-o", "file", "--port", "7")
    assert (str(found["output"]), found["port"], found["argv"]) == ("file", 7, ())
    assert parsed("kubeconfig", "lab", "--")["argv"] == ()


@pytest.mark.parametrize(
    "line",
    ["exec", "exec n", "exec n --", "exec -t n", "exec -x n cmd", "exec --nod n cmd",
     "kubectl", "kubectl lab", "kubectl lab --", "kubectl -x lab get", "kubeconfig lab -x",
     "shell", "shell n ls"],
)  # fmt: skip
def test_wrong_use(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(line.split()) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"Usage: testbed {line.partition(' ')[0]} ")


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that `exec` would run, and where; each ends with 127."""
    seen: list[list[str]] = []

    def attach(lab: str | None, where: str, argv: list[str], **_: object) -> int:
        seen.append([where, *argv])
        return 127

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(exec_, "attach", attach)
    return seen


def test_help_of_the_command_is_not_ours(
    ran: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    for word in ("-h", "--help"):
        assert cli.run(["exec", "n", "cmd", word]) == 127
    assert ran == [["n", "cmd", "-h"], ["n", "cmd", "--help"]]
    assert capsys.readouterr() == ("", "")


def test_an_option_behind_the_node_is_told_where_it_goes(
    ran: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["exec", "n", "-t", "bash"]) == 127
    assert ran == [["n", "-t", "bash"]]
    assert "before NODE" in capsys.readouterr().err


@pytest.fixture
def complete(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    monkeypatch.setattr(common.complete_labs, "__code__", (lambda *_: ["lab"]).__code__)
    monkeypatch.setattr(common.complete_nodes, "__code__", (lambda *_: ["node"]).__code__)

    def found(line: str, typed: str) -> list[str]:
        items = ShellComplete(cli.cli, {}, "testbed", "_X").get_completions(line.split(), typed)
        return [item.value for item in items]

    return found


@pytest.mark.parametrize(
    ("line", "typed", "offered"),
    [
        ("exec", "", ["node"]),
        ("exec", "--t", ["--tty"]),
        ("exec -l", "", ["lab"]),
        ("exec -t", "", ["node"]),
        ("exec node", "", []),
        ("exec node", "-", []),
        ("exec node ls", "--", []),
        ("exec node ss -l", "", []),
        ("exec node -- ls", "-", []),
        ("kubectl", "", ["lab"]),
        ("kubectl lab get pods", "--", []),
        ("kubeconfig", "", ["lab"]),
        ("kubeconfig lab", "--po", ["--port"]),
        ("kubeconfig lab helm", "--po", []),
    ],
)
def test_completion_ends_where_the_other_command_begins(
    complete: Callable[..., list[str]], line: str, typed: str, offered: list[str]
) -> None:
    assert complete(line, typed) == offered
