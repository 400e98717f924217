"""Many at once: no cross-talk, no deadlock, and a lock never outlives its holder."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from crash.means import LONG, SECONDS, Bed, Watch, dice, killed_at, no_traceback
from testbed.nodes.netns import find

TINY = """\
name: {name}
networks:
  lan: {{subnet: 10.168.0.0/24}}
nodes:
  aa: {{networks: {{lan: 10.168.0.2}}}}
  bb: {{networks: {{lan: 10.168.0.3}}}}
"""
LABS = 20 if LONG else 4
ROUNDS = 5 if LONG else 2
#: Fills an entry of a cache that several want, unless another has: arguments are the folder, a
#: log, and the file whose coming ends it.
FILL = """
import sys, threading, time
from pathlib import Path
from testbed.artifacts.cache import Cache
def build(into):
    (into / "x").write_text("x")
    with open(sys.argv[2], "a") as log:
        log.write("made\\n")
    while not Path(sys.argv[3]).exists():
        time.sleep(0.01)
    return "1"
print(Cache(Path(sys.argv[1])).fill("thing", "0123", "cc", build, say=lambda _: None,
                                    cancel=threading.Event()))
"""


def write(path: Path, name: str) -> str:
    file = path / f"{name}.yaml"
    file.write_text(TINY.format(name=name))
    return str(file)


def test_labs_up_and_down_at_random(bed: Bed, watch: Watch, tmp_path: Path) -> None:
    def life(name: str) -> int:
        chance = dice(name)
        path = write(tmp_path, name)
        for _ in range(ROUNDS):
            time.sleep(chance.uniform(0, 0.3))  # not a wait: so that they meet differently
            bed.must("up", path, "-q")
            # It reaches its own peer, and that is all that its networks have.
            bed.must("exec", "-l", name, "aa", "--", "ping", "-c", "1", "-W", "5", "10.168.0.3")
            assert bed.status(name)["ok"]
            bed.must("down", name)
        return ROUNDS

    names = [f"lab-{n}" for n in range(LABS)]
    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(life, names)) == LABS * ROUNDS
    assert bed.labs() == []
    watch.check()


def test_one_lab_from_five_processes(bed: Bed, watch: Watch, tmp_path: Path) -> None:
    path = write(tmp_path, "same")
    with ThreadPoolExecutor(5) as pool:
        done = list(pool.map(lambda _: bed.run("up", path, "--json"), range(5)))
    assert [one.returncode for one in done] == [0] * 5, [one.stderr for one in done]
    changed = [json.loads(one.stdout)["changed"] for one in done]
    assert sorted(map(len, changed)) == [0, 0, 0, 0, 3], "one makes it, the others find it"
    with ThreadPoolExecutor(5) as pool:
        done = list(pool.map(lambda _: bed.run("down", "same"), range(5)))
    assert [one.returncode for one in done] == [0] * 5, [one.stderr for one in done]
    assert sum(": removed" in one.stdout for one in done) == 1
    watch.check()


def test_down_during_up(bed: Bed, watch: Watch, tmp_path: Path) -> None:
    path = write(tmp_path, "both")
    chance = dice("both")
    for _ in range(8 if LONG else 3):
        up = bed.start("up", path, "-q")
        time.sleep(chance.uniform(0, 0.5))  # not a wait: where they meet is what is tried
        bed.must("down", "both")  # waits for the one that is at it
        _, err = up.communicate(timeout=SECONDS)
        assert up.returncode == 0, err.decode()
        bed.must("down", "both")
        assert bed.labs() == []
        watch.check()


def test_verify_during_down(bed: Bed, watch: Watch) -> None:
    small = str(Path(__file__).with_name("small.yaml"))
    for _ in range(3 if LONG else 1):
        bed.must("up", small, "-q")
        verify = bed.slow("verify", "small", "--document", "001")
        for _line in verify.lines():
            break  # the first verdict is there
        bed.must("down", "small")
        status = verify.wait()
        assert status in (0, 1, 4), verify.err
        no_traceback(verify.err.decode())
        watch.check()


def test_two_state_folders(bed: Bed, other: Bed, watch: Watch, tmp_path: Path) -> None:
    path = write(tmp_path, "twin")
    bed.must("up", path, "-q")
    other.must("up", path, "-q")
    bed.must("down", "--all")
    assert bed.labs() == []
    assert other.labs() == ["twin"]
    assert other.status("twin")["ok"]
    assert bed.leftovers() == other.leftovers() == []
    other.must("down", "--all")
    assert other.leftovers() == []
    watch.check()


def test_two_state_folders_at_once(bed: Bed, other: Bed, watch: Watch, tmp_path: Path) -> None:
    """Labs of the same name, and ``down --all`` and ``doctor --leaks --fix`` of two users."""
    path = write(tmp_path, "twin")

    def life(mine: Bed) -> None:
        chance = dice(mine.state.name)
        for _ in range(ROUNDS):
            time.sleep(chance.uniform(0, 0.3))  # not a wait: so that they meet differently
            mine.must("up", path, "-q")
            mine.must("exec", "-l", "twin", "aa", "--", "ping", "-c", "1", "10.168.0.3")
            mine.must("doctor", "--leaks", "--fix")
            assert mine.status("twin")["ok"]
            mine.must("down", "--all")

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(life, [bed, other]))
    watch.check()


def test_verify_ended_during_down(bed: Bed, watch: Watch) -> None:
    """At whatever instant: ``down`` ends well, and nothing is left."""
    small = str(Path(__file__).with_name("small.yaml"))
    chance = dice("verify and down")
    for turn in range(12 if LONG else 2):
        bed.must("up", small, "-q")
        verify = bed.start("verify", "small", "--document", "001")
        time.sleep(chance.uniform(0.5, 2.0))  # not a wait: how far it comes is what is tried
        down = bed.start("down", "small")
        at, signum = chance.uniform(0, 0.5), (signal.SIGKILL, signal.SIGTERM)[turn % 2]
        _, said = killed_at(verify, at, signum)
        _, err = down.communicate(timeout=SECONDS)
        assert down.returncode == 0, err.decode()
        no_traceback(said)
        assert bed.labs() == []
        assert bed.leftovers() == []
        watch.check()


def test_a_cache_filled_by_several_of_which_one_is_killed(tmp_path: Path) -> None:
    cache, log, end = tmp_path / "cache", tmp_path / "log", tmp_path / "end"
    started = [
        subprocess.Popen([sys.executable, "-c", FILL, cache, log, end], stdout=subprocess.PIPE)
        for _ in range(5)
    ]
    while not (log.exists() and log.read_text()):
        time.sleep(0.01)
        assert any(process.poll() is None for process in started)
    (maker,) = {
        int(path.name.rsplit(".", 2)[1]) for path in cache.glob(".tmp-*")
    }  # who holds the lock and is at it
    next(process for process in started if process.pid == maker).send_signal(signal.SIGKILL)
    end.touch()
    said = [process.communicate(timeout=SECONDS)[0].decode().strip() for process in started]
    status = sorted(process.returncode for process in started)
    assert status == [-signal.SIGKILL, 0, 0, 0, 0]
    assert set(said) - {""} == {str(cache / "thing-1-0123")}
    assert log.read_text() == "made\n" * 2, "one made it again, the others waited"
    assert not list(cache.glob(".tmp-*")), "what was begun by the dead is gone"


def test_a_lock_ends_with_its_holder(bed: Bed, tmp_path: Path) -> None:
    path = write(tmp_path, "held")
    slow = bed.slow("up", path)
    next(slow.lines())
    waiting = bed.start("up", path, "-q")
    time.sleep(0.3)  # so that it may wait; whether it does is not what counts
    slow.end(signal.SIGKILL)
    _, err = waiting.communicate(timeout=SECONDS)
    assert waiting.returncode == 0, err.decode()
    assert bed.status("held")["ok"]
    inits = [i for i in find.inits() if Path(i.state) == bed.state.resolve()]
    assert sorted(i.node for i in inits) == ["aa", "bb", "fabric"], "nothing is there twice"
