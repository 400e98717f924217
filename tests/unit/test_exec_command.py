"""``testbed exec``: as a user, in a folder, with variables, on every node."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hands import Hands, runs

from testbed.labs.commands import NOTHING
from testbed.nodes.fake import Answer

if TYPE_CHECKING:
    from testbed.testing.fakes import Bench

PASSWD = b"root:x:0:0:root:/root:/bin/sh\nweb:x:33:33:w:/var/www:/bin/sh\nbroken\n"
GROUP = b"root:x:0:\nweb:x:33:\nlog:x:4:web,root\n"


@pytest.fixture
def hands(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Hands:
    made = Hands(bench, monkeypatch, capsys)
    made.up()
    return made


def test_variables_and_a_folder_on_a_node(hands: Hands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE", "here")
    monkeypatch.delenv("NOBODYS", raising=False)
    given = ["-e", "A=b c=d", "--env", "MINE", "-e", "NOBODYS", "-w", "/srv/x y"]
    assert hands("exec", *given, "b", "--", "env", "-0").status == 0
    ((*before, folder, env, one, two, first, second),) = hands.ran("b")
    assert before[0] == "sh"
    assert folder == "/srv/x y"
    assert (env, one, two) == ("env", "A=b c=d", "MINE=here")
    assert (first, second) == ("env", "-0")


@pytest.mark.parametrize(
    ("user", "ids", "home"),
    [
        ("web", ["--reuid=33", "--regid=33", "--groups=33,4"], "/var/www"),
        ("33", ["--reuid=33", "--regid=33", "--groups=33,4"], "/var/www"),
        ("web:log", ["--reuid=33", "--regid=4", "--groups=4"], "/var/www"),
        ("1000:50", ["--reuid=1000", "--regid=50", "--groups=50"], None),
        ("1000", ["--reuid=1000", "--regid=0", "--groups=0"], None),
    ],
)
def test_a_user_of_a_node(user: str, ids: list[str], home: str | None, hands: Hands) -> None:
    hands.node("b").files.update({"/etc/passwd": PASSWD, "/etc/group": GROUP})
    assert hands("exec", "--user", user, "b", "id").status == 0
    (words,) = hands.ran("b")
    assert words[:4] == ("setpriv", *ids)
    assert words[4:] == ("id",) if home is None else ("env", f"HOME={home}", "id")


def test_a_home_of_the_callers_own_stays(hands: Hands) -> None:
    hands.node("b").files.update({"/etc/passwd": PASSWD, "/etc/group": GROUP})
    assert hands("exec", "--user", "web", "-e", "HOME=/x", "b", "id").status == 0
    assert hands.ran("b")[0][4:] == ("env", "HOME=/x", "id")


def test_a_user_folder_and_variables_in_a_container(
    hands: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs(monkeypatch, "web")
    root = "/proc/4711/root"
    hands.node("a").files.update({f"{root}/etc/passwd": PASSWD, f"{root}/etc/group": GROUP})
    hands.bench.provider.script(["nsenter"], lambda call: Answer(127 * (NOTHING in call.words)))
    assert hands("exec", "-u", "web", "-w", "/srv", "-e", "A=b", "a/web", "id").status == 0
    words = hands.ran("a")[-1]
    assert words[:3] == ("env", "HOME=/var/www", "A=b")
    assert words[3:5] == ("nsenter", "--target=4711")
    assert words[-4:] == ("--setuid=33", "--setgid=33", "--wdns=/srv", "id")


def test_a_folder_that_a_container_lacks(hands: Hands, monkeypatch: pytest.MonkeyPatch) -> None:
    runs(monkeypatch, "web")
    why = b"nsenter: cannot open current working directory: No such file or directory\n"
    hands.bench.provider.script(["nsenter"], Answer(1, err=why))
    said = hands("exec", "-w", "/nosuch", "a/web", "id")
    assert (said.status, said.out) == (126, "")
    assert "a/web has no folder /nosuch: No such file" in said.err
    assert [words for words in hands.ran("a") if "id" in words] == []


def test_a_path_of_a_container_does_not_hide_the_nodes_programs(
    hands: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs(monkeypatch, "web")
    find = ["sh", "-c", 'command -v "$1"', "sh", "nsenter"]
    hands.bench.provider.script(find, Answer(out=b"/usr/bin/nsenter\n"))
    assert hands("exec", "-e", "PATH=/opt", "a/web", "go").status == 0
    assert hands.ran("a")[-1][:3] == ("env", "PATH=/opt", "/usr/bin/nsenter")


@pytest.mark.parametrize(
    "argv",
    [
        ["-u", "nosuch", "b", "id"],
        ["-u", "web:nosuch", "b", "id"],
        ["-w", "srv", "b", "id"],
        ["-e", "=x", "b", "id"],
        ["b"],
        ["--all"],
        ["--all", "-t", "id"],
        ["--serial", "b", "id"],
        ["--json", "b", "id"],
    ],
)
def test_wrong_use(argv: list[str], hands: Hands) -> None:
    hands.node("b").files["/etc/passwd"] = PASSWD
    said = hands("exec", *argv)
    assert (said.status, said.out) == (2, "")
    assert said.err
    assert hands.ran() == []


def test_without_a_command_for_all_the_command_is_missing(hands: Hands) -> None:
    said = hands("exec", "--all")
    assert "COMMAND" in said.err
    assert "NODE[" not in said.err


# -- on every node --------------------------------------------------------------------


@pytest.mark.parametrize("serial", [[], ["--serial"]])
def test_every_node_with_its_name_before_each_line(serial: list[str], hands: Hands) -> None:
    hands.bench.provider.script(["id"], Answer(3, b"one\ntwo", b"no\n"), "a")
    hands.bench.provider.script(["id"], Answer(1, b"\n"), "b")
    said = hands("exec", "--all", *serial, "id", "--", "-x")
    assert said.status == 3
    assert sorted(said.out.splitlines()) == ["a | one", "a | two", "b | "]
    assert said.err == "a | no\n"
    assert hands.ran("a") == [("id", "--", "-x")], "all words are the command's"
    if serial:
        assert [call.node for call in hands.bench.provider.calls if call.what == "run"] == [
            "a",
            "b",
        ]


def test_a_node_that_does_not_run_does_not_hide_the_others(hands: Hands) -> None:
    hands.bench.provider.destroy("plain", ["a"])
    hands.bench.provider.script(["id"], Answer(0, b"here\n"))
    said = hands("exec", "--all", "--", "id")
    assert (said.status, said.out) == (4, "b | here\n")
    assert all(line.startswith("a | ") for line in said.err.splitlines())


def test_every_node_as_data(hands: Hands) -> None:
    hands.bench.provider.script(["id"], Answer(3, b"one\n", b"no\n"), "a")
    said = hands("exec", "--all", "--json", "id")
    assert said.status == 3
    assert json.loads(said.out) == [
        {"node": "a", "status": 3, "stdout": "one\n", "stderr": "no\n"},
        {"node": "b", "status": 0, "stdout": "", "stderr": ""},
    ]


def test_a_user_that_one_node_lacks(hands: Hands) -> None:
    hands.node("b").files["/etc/passwd"] = PASSWD
    said = hands("exec", "--all", "-u", "web", "id")
    assert said.status == 2
    assert [call.node for call in hands.bench.provider.calls if call.what == "run"] == ["b"]
