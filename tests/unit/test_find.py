"""Recognition of processes that are nodes.

A node itself needs root (see tests/live); what is not one must not be taken
for one, whatever it calls itself, and that can be tried by anybody.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from open_files import unchanged_files

from testbed.nodes.netns import find
from testbed.nodes.netns.find import PROGRAM

ARGUMENTS = ["node", "lab", "node1", "digest", "/state"]


@contextlib.contextmanager
def pretend(folder: Path, *arguments: str) -> Iterator[int]:
    """A process with a node's arguments: to the shell, a script and what is given to it."""
    (folder / arguments[0]).write_text("echo runs\nread line\n")
    with subprocess.Popen(
        [f"/x/{PROGRAM.decode()}", *arguments, ""],
        executable="/bin/sh",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=folder,
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == b"runs\n"
        try:
            yield process.pid
        finally:
            process.kill()


@pytest.fixture
def pretender(tmp_path: Path) -> Iterator[int]:
    """A process with a node's arguments that is pid 1 of nothing."""
    with pretend(tmp_path, *ARGUMENTS) as pid:
        yield pid


def test_a_pretender_is_no_node(pretender: int) -> None:
    assert find._arguments(pretender) == ARGUMENTS
    assert find.at(pretender) is None
    assert pretender not in [init.pid for init in find.inits()]


def test_the_nodes_of_a_state_folder_and_of_a_lab(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(find, "_is_pid_one", lambda _: True)
    one, two = str(tmp_path / "one"), str(tmp_path / "two")  # nobody else's
    wanted = [("a", "n1", one), ("a", "n2", one), ("b", "n1", one), ("a", "n1", two)]

    def seen(**which: str) -> list[tuple[str, str, str]]:
        found = find.inits(**which)
        return sorted((i.lab, i.node, i.state) for i in found if i.state in (one, two))

    with contextlib.ExitStack() as stack:
        pids = [
            stack.enter_context(pretend(tmp_path, "node", lab, node, "digest", state))
            for lab, node, state in wanted
        ]
        assert seen() == sorted(wanted)
        assert seen(state=one) == sorted(wanted[:3])
        assert seen(lab="a") == sorted([*wanted[:2], wanted[3]])
        assert seen(state=one, lab="a") == wanted[:2]
        assert seen(state=two, lab="b") == []
        init = find.at(pids[0])
        assert init is not None
        assert (init.pid, init.kind, init.digest) == (pids[0], "node", "digest")
        assert init.started == find.started(init.pid)


def test_nor_is_any_other_process() -> None:
    assert find.at(os.getpid()) is None
    assert find.at(1) is None


def test_a_pid_that_is_nobodys() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    assert find.at(process.pid) is None


def test_no_file_descriptor_is_left(pretender: int) -> None:
    with unchanged_files():
        for _ in range(10):
            find.at(pretender)
            list(find.inits())


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            b"/cache/bin/testbed-init\0node\0lab\0n1\0d\0/state\0",
            ["node", "lab", "n1", "d", "/state"],
        ),
        (b"testbed-init\0fabric\0lab\0fabric\0-\0/s\0", ["fabric", "lab", "fabric", "-", "/s"]),
        # pid 1 overwrites what follows with NULs
        (b"testbed-init\0node\0l\0n\0d\0/s\0\0\0\0\0\0", ["node", "l", "n", "d", "/s"]),
        (b"testbed-init\0node\0l\0n\0d\0/s p\xff\0", ["node", "l", "n", "d", "/s p\udcff"]),
        (b"testbed-init\0node\0l\0n\0d\0", None),  # cut short
        (b"testbed-init\0other\0l\0n\0d\0/s\0", None),
        (b"my-testbed-init\0node\0l\0n\0d\0/s\0", None),
        (b"sh\0testbed-init\0node\0l\0n\0d\0/s\0", None),
        (b"", None),  # a kernel thread, or a zombie
    ],
)
def test_arguments(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: bytes, expected: list[str] | None
) -> None:
    (tmp_path / "cmdline").write_bytes(line)
    monkeypatch.setattr(find, "open", lambda *_: (tmp_path / "cmdline").open("rb"), raising=False)
    assert find._arguments(1234) == expected


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("Name:\ttestbed-init\nUid:\t0\t0\t0\t0\nNSpid:\t4711\t1\n", True),
        ("Uid:\t0\t0\t0\t0\nNSpid:\t99\t4711\t1\n", True),  # seen from further outside
        ("Uid:\t0\t0\t0\t0\nNSpid:\t4711\n", False),  # in our own pid namespace
        ("Uid:\t0\t0\t0\t0\nNSpid:\t1\n", False),  # our own pid 1
        ("Uid:\t0\t0\t0\t0\nNSpid:\t4711\t2\n", False),  # on a node, but not its pid 1
        ("Uid:\t1000\t0\t0\t0\nNSpid:\t4711\t1\n", False),  # anybody can unshare
        ("Uid:\t0\t0\t0\t0\n", False),
        ("", False),
    ],
)
def test_pid_one_of_root(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, status: str, expected: bool
) -> None:
    (tmp_path / "status").write_text(status, encoding="utf-8")
    monkeypatch.setattr(find, "open", lambda *_: (tmp_path / "status").open("rb"), raising=False)
    assert find._is_pid_one(1234) is expected


def test_a_held_process_is_waited_for() -> None:
    process = subprocess.Popen(["sleep", "60"])
    init = init_of(process.pid)
    assert init.alive()
    assert not init.wait_dead(0.01)
    init.kill()
    assert init.wait_dead(60)
    assert not init.alive()
    process.wait()
    init.kill()  # gone already, and nobody else is hit


def init_of(pid: int) -> find.Init:
    began = find.started(pid)
    assert began is not None
    return find.Init(pid, "node", "l", "n", "d", "/s", began)


def test_a_number_that_is_somebody_elses_now() -> None:
    process = subprocess.Popen(["sleep", "60"])
    try:
        init = init_of(process.pid)
        before = dataclasses.replace(init, started=init.started - 1)
        assert init.alive()
        assert not before.alive()
        assert before.wait_dead(0)
        before.kill()
        assert init.alive()
        assert not init.wait_dead(0)
    finally:
        process.kill()
        process.wait()


def test_when_a_process_with_an_odd_name_was_started(monkeypatch: pytest.MonkeyPatch) -> None:
    stat = b"7 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20 21"
    monkeypatch.setattr(find, "_read", lambda *_: stat)
    assert find.started(7) == 4242


def test_without_a_free_descriptor_no_node_seems_to_be_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    init = init_of(os.getpid())
    full = OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def refuse(*_: object) -> NoReturn:
        raise full

    monkeypatch.setattr(find, "open", refuse, raising=False)
    with pytest.raises(OSError, match="Too many open files"):
        list(find.inits())
    with pytest.raises(OSError, match="Too many open files"):
        init.alive()
    monkeypatch.setattr(os, "pidfd_open", refuse)
    with pytest.raises(OSError, match="Too many open files"):
        find.at(os.getpid())


def test_a_thread_of_another_process_is_no_process() -> None:
    """The number of a process that has ended may be given to a thread."""
    go_on = threading.Event()
    thread = threading.Thread(target=go_on.wait)
    thread.start()
    try:
        assert thread.native_id
        with find.pinned(thread.native_id) as pidfd:
            assert pidfd is None
    finally:
        go_on.set()
        thread.join()
