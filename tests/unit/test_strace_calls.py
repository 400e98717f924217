"""Parsing of strace's output by the suite."""

from __future__ import annotations

import pytest

from testbed.catalogues.shipped.test_tools import Call, calls

UNSHARE = "unshare(CLONE_NEWNS|CLONE_NEWNET)"


def test_a_call_and_its_result() -> None:
    assert calls(f"1266  {UNSHARE}       = 0\n") == [
        Call(1266, "unshare", frozenset({"CLONE_NEWNS", "CLONE_NEWNET"}), 0)
    ]


def test_a_failed_call() -> None:
    (found,) = calls(f"7 {UNSHARE} = -1 EPERM (Operation not permitted)\n")
    assert (found.name, found.result) == ("unshare", -1)
    assert str(found) == "7 unshare(CLONE_NEWNET|CLONE_NEWNS) = -1"


def test_a_call_with_a_structure() -> None:
    text = (
        "9 clone3({flags=CLONE_VM|CLONE_VFORK, child_tid=0x7f, exit_signal=SIGCHLD, "
        "stack_size=0x9000}, 88) = 10\n"
    )
    assert calls(text) == [Call(9, "clone3", frozenset({"CLONE_VM", "CLONE_VFORK"}), 10)]


def test_a_call_in_two_pieces_keeps_the_flags_of_the_first() -> None:
    text = (
        "9 clone(child_stack=0x7f, flags=CLONE_PARENT|SIGCHLD <unfinished ...>\n"
        "8 setns(12, CLONE_NEWNET)          = 0\n"
        "9 <... clone resumed>)             = 11\n"
    )
    assert calls(text) == [
        Call(8, "setns", frozenset({"CLONE_NEWNET"}), 0),
        Call(9, "clone", frozenset({"CLONE_PARENT"}), 11),
    ]


@pytest.mark.parametrize(
    "line",
    [
        "9 +++ exited with 0 +++",
        "9 --- SIGCHLD {si_signo=SIGCHLD, si_code=CLD_EXITED, si_pid=11} ---",
        "9 clone(child_stack=0x7f, flags=CLONE_PARENT <unfinished ...>",
        "9 clone(child_stack=0x7f, flags=CLONE_PARENT) = ?",
        "",
    ],
)
def test_what_is_no_finished_call_is_left_out(line: str) -> None:
    assert calls(f"{line}\n") == []
