"""Entries of the cache: whole or not there, made once, whatever happens to who makes them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import every_kind
import pytest

from testbed.artifacts.cache import Cache, remove_tree
from testbed.errors import ArtifactError, Interrupted, MachineError, TestbedError, TimeoutExpired

if TYPE_CHECKING:
    from pathlib import Path

KEY = "0123456789ab"

# Fills one entry; says when it has begun; ends when its input does; notes each time that it was
# really made.
FILLER = """
import sys, threading
from pathlib import Path
from testbed.artifacts.cache import Cache

folder, log = Path(sys.argv[1]), Path(sys.argv[2])

def build(into):
    with log.open("a") as file:
        file.write("made\\n")
    (into / "half").write_text("half")
    print("begun", flush=True)
    sys.stdin.read()
    (into / "rest").write_text("rest")
    return "1.0"

entry = Cache(folder).fill(
    "thing", "0123456789ab", "cc", build, say=lambda text: print(text, flush=True),
    cancel=threading.Event(),
)
print(entry, flush=True)
"""


def filler(cache: Path, log: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", FILLER, str(cache), str(log)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def make(cache: Cache, said: list[str] | None = None) -> Path:
    def build(into: Path) -> str:
        (into / "bin").mkdir()
        (into / "bin" / "tool").write_text("tool")
        return "2:1.0/x"

    say = (said if said is not None else []).append
    return cache.fill("thing", KEY, "cc", build, say=say, cancel=threading.Event())


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith(".lock-"))


def test_an_entry_has_its_name_version_key_and_record(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "deep" / "cache")
    entry = make(cache)
    assert entry.name == f"thing-2_1.0_x-{KEY}"
    assert cache.find("thing", KEY) == entry
    (record,) = cache.records()
    assert (record.name, record.version, record.origin, record.size, record.path) == (
        "thing",
        "2:1.0/x",
        "cc",
        4,
        entry,
    )


def test_nothing_is_found_in_a_folder_that_is_not_there(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "none")
    assert cache.find("thing", KEY) is None
    assert cache.records() == []


def test_two_processes_make_it_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    one, other = (filler(tmp_path / "cache", log) for _ in range(2))
    assert one.stdin
    assert one.stdout
    assert other.stdin
    assert other.stdout
    first = sorted([one.stdout.readline(), other.stdout.readline()])
    assert first[0] == "begun\n"
    assert first[1].startswith("waiting for another process")
    one.stdin.close()
    other.stdin.close()
    said = [one.stdout.read().splitlines(), other.stdout.read().splitlines()]
    one.stdout.close()
    other.stdout.close()
    assert (one.wait(), other.wait()) == (0, 0)
    assert log.read_text() == "made\n"
    assert said == [[str(tmp_path / "cache" / f"thing-1.0-{KEY}")]] * 2


def test_threads_make_it_once(tmp_path: Path) -> None:
    made: list[int] = []

    def build(into: Path) -> str:
        made.append(1)
        time.sleep(0.1)
        (into / "file").touch()
        return "1"

    def fill() -> None:
        Cache(tmp_path).fill(
            "thing", KEY, "cc", build, say=lambda _: None, cancel=threading.Event()
        )

    threads = [threading.Thread(target=fill) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [1]


def test_a_killed_maker_leaves_nothing_to_be_seen_and_the_next_succeeds(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    victim = filler(cache.folder, tmp_path / "log")
    assert victim.stdout
    assert victim.stdout.readline() == "begun\n"
    victim.send_signal(signal.SIGKILL)
    victim.wait(60)
    victim.stdout.close()
    assert cache.find("thing", KEY) is None
    assert cache.records() == []
    assert [name for name in visible(cache.folder) if name.startswith(".tmp-thing-")]
    entry = make(cache)
    assert visible(cache.folder) == [entry.name]


def test_what_a_killed_maker_of_another_entry_left_is_swept_too(tmp_path: Path) -> None:
    (tmp_path / ".tmp-other-ba9876543210.1.1" / "deep").mkdir(parents=True)
    entry = make(Cache(tmp_path))
    assert visible(tmp_path) == [entry.name]


def test_what_a_living_maker_is_at_is_left_alone(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    other = tmp_path / ".tmp-other-ba9876543210.1.1"
    other.mkdir()
    with cache.lock("other-ba9876543210", say=lambda _: None, cancel=threading.Event()):
        make(cache)
    assert other.exists()


@pytest.mark.parametrize("error", [ArtifactError("no"), KeyboardInterrupt(), RuntimeError("bug")])
def test_a_failed_maker_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    def build(into: Path) -> str:
        (into / "half").touch()
        raise error

    with pytest.raises(type(error)):
        Cache(tmp_path).fill(
            "thing", KEY, "cc", build, say=lambda _: None, cancel=threading.Event()
        )
    assert visible(tmp_path) == []


def test_a_full_disk_is_an_artifact_error_that_names_the_folder(tmp_path: Path) -> None:
    def build(_: Path) -> str:
        raise OSError(28, "No space left on device")

    with pytest.raises(ArtifactError, match=f"{tmp_path}.*No space left") as caught:
        Cache(tmp_path).fill(
            "thing", KEY, "cc", build, say=lambda _: None, cancel=threading.Event()
        )
    assert "TESTBED_CACHE" in str(caught.value.hint)


@pytest.mark.parametrize("error", [MachineError("no mmdebstrap"), TimeoutExpired("too slow")])
def test_what_is_no_fault_of_the_cache_is_not_said_to_be(
    tmp_path: Path, error: TestbedError
) -> None:
    def build(_: Path) -> str:
        raise error

    assert isinstance(error, OSError)
    with pytest.raises(type(error)) as caught:
        Cache(tmp_path).fill(
            "thing", KEY, "cc", build, say=lambda _: None, cancel=threading.Event()
        )
    assert caught.value is error


def test_who_waits_can_be_interrupted(tmp_path: Path) -> None:
    cache, cancel = Cache(tmp_path), threading.Event()
    other = cache.lock(f"thing-{KEY}", say=lambda _: None, cancel=threading.Event())
    with other, pytest.raises(Interrupted):
        cache.fill("thing", KEY, "cc", lambda _: "1", say=lambda _: cancel.set(), cancel=cancel)


def test_a_damaged_entry_is_made_anew(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    entry = make(cache)
    (entry / "bin" / "tool").unlink()

    def build(into: Path) -> str:
        (into / "tool").touch()
        return "2"

    again = cache.fill(
        "thing",
        KEY,
        "cc",
        build,
        valid=lambda folder: (folder / "tool").exists(),
        say=lambda _: None,
        cancel=threading.Event(),
    )
    assert visible(tmp_path) == [again.name]


def test_remove_takes_the_entry_and_nothing_else(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    make(cache)
    (record,) = cache.records()
    cache.remove(record, cancel=threading.Event())
    assert visible(tmp_path) == []
    cache.remove(record, cancel=threading.Event())  # gone already, and no error


def test_every_kind_of_file_can_be_in_an_entry(tmp_path: Path) -> None:
    """A FIFO is not waited for, a link is not followed, a device is not opened."""

    def build(into: Path) -> str:
        make_kinds(into / "layer")
        return "1.0"

    make_kinds = every_kind.make if os.geteuid() == 0 else every_kind.without_root
    cache = Cache(tmp_path / "cache")
    cancel = threading.Event()
    entry = cache.fill("thing", KEY, "cc", build, say=lambda _: None, cancel=cancel)
    assert (entry / "layer" / "pipe").is_fifo()
    (record,) = cache.records()
    cache.remove(record, cancel=cancel)
    assert visible(tmp_path / "cache") == []


def test_read_only_folders_are_removed(tmp_path: Path) -> None:
    deep = tmp_path / "modules" / "deep"
    deep.mkdir(parents=True)
    (deep / "file").touch()
    deep.chmod(0o500)
    remove_tree(tmp_path / "modules")
    assert not (tmp_path / "modules").exists()
