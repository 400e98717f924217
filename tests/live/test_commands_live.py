"""The commands, as a user types them, on real labs: what they say, what they leave."""

from __future__ import annotations

import json
import os
import pty
import pwd
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import call

TESTBED = [sys.executable, "-m", "testbed"]
TINY = """\
name: {name}
networks:
  lan: {{subnet: 10.168.0.0/24}}
nodes:
  a: {{networks: {{lan: 10.168.0.2}}}}
  b: {{networks: {{lan: 10.168.0.3}}}}
"""
PLAIN = """\
name: {name}
networks:
  lan: {{subnet: 10.168.0.0/24}}
nodes:
  host: {{networks: {{lan: 10.168.0.2}}, roles: [docker]}}
containers:
{containers}
"""

Testbed = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def testbed(tmp_path: Path) -> Iterator[Testbed]:
    """Runs a command with a state folder of its own; whatever is up at the end goes."""
    state = tmp_path / "state"

    said = tmp_path / "said"
    said.mkdir()

    def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        done = call(said, *arguments, env={"TESTBED_STATE": str(state), **env})
        return subprocess.CompletedProcess(arguments, done.status, done.out, done.err)

    yield run
    gone = run("down", "--all")
    assert gone.returncode == 0, gone.stderr


def write(path: Path, text: str, **values: str) -> str:
    path.write_text(text.format(**values))
    return str(path)


def nothing_is_up(testbed: Testbed) -> bool:
    rows: list[object] = json.loads(testbed("ls", "--json").stdout)
    return not rows


def program(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


# -- the way through --------------------------------------------------------------------------


def test_up_twice_then_down(testbed: Testbed) -> None:
    first = testbed("up", "two-node", "--json")
    assert first.returncode == 0, first.stderr
    assert "container node1/container-1" in json.loads(first.stdout)["changed"]
    second = testbed("up", "two-node", "--json")
    assert second.returncode == 0, second.stderr
    assert json.loads(second.stdout)["changed"] == []
    assert "unchanged" in testbed("up", "two-node").stdout
    status = testbed("status", "--json")
    assert status.returncode == 0
    assert json.loads(status.stdout)["ok"] is True
    down = testbed("down")
    assert down.returncode == 0
    assert "two-node: removed" in down.stdout
    assert nothing_is_up(testbed)
    assert testbed("down", "two-node").stdout.startswith("two-node: was not up")


def test_an_edited_topology_changes_only_what_differs(testbed: Testbed, tmp_path: Path) -> None:
    one = "  one: {node: host, image: nginx}\n"
    path = write(tmp_path / "lab.yaml", PLAIN, name="edited", containers=one)
    assert testbed("up", path).returncode == 0
    two = one + "  two: {node: host, image: nginx, publish: ['8080:80']}\n"
    write(tmp_path / "lab.yaml", PLAIN, name="edited", containers=two)
    changed = json.loads(testbed("up", path, "--json").stdout)
    assert changed["changed"] == ["container host/two"]
    write(tmp_path / "lab.yaml", PLAIN, name="edited", containers=two.replace(one, ""))
    changed = json.loads(testbed("up", path, "--json").stdout)
    assert changed["changed"] == ["images host"]  # where strangers among the containers end
    listed = testbed("status", "--json").stdout
    assert [c["name"] for c in json.loads(listed)["nodes"][0]["containers"]] == ["two"]


def test_another_backend_remakes_the_flannel_nodes_alone(testbed: Testbed) -> None:
    assert testbed("up", "two-node", "-q").returncode == 0
    again = testbed("up", "two-node", "--backend", "host-gw", "--json")
    assert again.returncode == 0, again.stderr
    found = json.loads(again.stdout)
    assert found["removed"] == ["node1", "node2"]
    assert "node outside" not in found["changed"]
    routes = testbed("exec", "node1", "--", "ip", "-j", "route", "show", "100.96.2.0/24")
    assert json.loads(routes.stdout)[0]["gateway"] == "10.168.0.3"


def test_a_service_that_has_died_is_seen_and_mended(testbed: Testbed) -> None:
    assert testbed("up", "two-node", "-q").returncode == 0
    services = json.loads(testbed("status", "--json").stdout)["nodes"][0]["services"]
    pid = next(s["detail"] for s in services if s["name"] == "flanneld").removeprefix("pid ")
    assert testbed("exec", "node1", "--", "kill", "-9", pid).returncode == 0
    status = testbed("status")
    assert status.returncode == 1
    assert "dead" in status.stdout
    mended = json.loads(testbed("up", "two-node", "--json").stdout)
    assert mended["changed"] == ["flannel node1"]
    assert testbed("status").returncode == 0


def test_two_labs_do_not_meet(testbed: Testbed, tmp_path: Path) -> None:
    for name in ("left", "right"):
        path = write(tmp_path / f"{name}.yaml", TINY, name=name)
        assert testbed("up", path, "-q").returncode == 0
    assert testbed("exec", "a", "--", "true").returncode == 2, "which lab is not clear"
    there = testbed("exec", "-l", "left", "a", "--", "ping", "-c1", "-W1", "10.168.0.3")
    assert there.returncode == 0
    # Same addresses on both sides: without its own b, the left gets no answer from the right's.
    gone = testbed("exec", "-l", "left", "b", "--", "ip", "address", "flush", "dev", "eth0")
    assert gone.returncode == 0
    there = testbed("exec", "-l", "left", "a", "--", "ping", "-c1", "-W1", "10.168.0.3")
    assert there.returncode == 1
    assert testbed("down", "left").returncode == 0
    assert testbed("exec", "-l", "right", "a", "--", "true").returncode == 0


def test_the_file_may_be_gone_after_up(testbed: Testbed, tmp_path: Path) -> None:
    path = write(tmp_path / "lab.yaml", TINY, name="gone")
    assert testbed("up", path, "-q").returncode == 0
    Path(path).unlink()
    assert testbed("status", "gone").returncode == 0
    assert testbed("status", path).returncode == 0
    assert testbed("down", path).returncode == 0
    assert nothing_is_up(testbed)


# -- exec, shell, logs --------------------------------------------------------------------------


def test_exec_hands_on_streams_and_status(testbed: Testbed, tmp_path: Path) -> None:
    path = write(tmp_path / "lab.yaml", TINY, name="tiny")
    assert testbed("up", path, "-q").returncode == 0
    done = testbed("exec", "a", "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")
    assert testbed("exec", "a", "--", "sh", "-c", "kill -9 $$").returncode == 128 + 9
    for prefix in ((), ("--",)):
        listed = testbed("exec", "a", *prefix, "ls", "-la", "-h", "/")
        assert (listed.returncode, listed.stderr) == (0, "")
        assert "etc\n" in listed.stdout
        assert testbed("exec", "a", *prefix, "no-such-program").returncode == 127
        assert testbed("exec", "a", *prefix, "/etc/hostname").returncode == 126
    missing = testbed("exec", "c", "--", "true")
    assert missing.returncode == 4
    assert "a, b" in missing.stderr


@pytest.mark.thorough
@pytest.mark.seconds(8)
def test_streams_that_are_closed_or_full(testbed: Testbed, tmp_path: Path) -> None:
    """The command on the node gets /dev/null for what is closed, and never a file of ours."""
    assert testbed("up", write(tmp_path / "lab.yaml", TINY, name="streams")).returncode == 0
    # By its device: its name, seen from a node of a chroot, begins with the chroot's own.
    look = "(for n in 0 1 2; do stat -Lc %t:%T /proc/$$/fd/$n; done > /tmp/seen); exit 7"

    def run(redirect: str, *argv: str) -> subprocess.CompletedProcess[str]:
        state = {**os.environ, "TESTBED_STATE": str(tmp_path / "state")}
        return subprocess.run(
            ["sh", "-c", f'"$@" {redirect}', "sh", *TESTBED, *argv],
            env=state, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
            check=False,
        )  # fmt: skip

    for redirect in ("<&-", ">&-", "2>&-", "<&- >&- 2>&-"):
        done = run(redirect, "exec", "a", "--", "sh", "-c", look)
        assert (done.returncode, done.stderr) == (7, "")
        streams = run("", "exec", "a", "--", "cat", "/tmp/seen").stdout.splitlines()
        for number, sign in enumerate(("<&-", ">&-", "2>&-")):
            closed = sign in redirect.split()
            assert (streams[number] == "1:3") == (closed or number == 0), redirect
        for command in (["shell", "a"], ["logs", "a"], ["status"]):
            done = run(redirect, *command)
            assert "Traceback" not in done.stderr
            assert done.returncode == 0
    for command in (["status"], ["ls"], ["fault", "partition", "a"], ["fault", "ls"]):
        done = run("> /dev/full", *command)
        assert done.returncode == 3, (command, done.stderr)
        assert "No space left on device" in done.stderr


def test_a_users_folders_stay_the_users(tmp_path: Path) -> None:
    """As of `sudo -E`: all that a lab leaves in the home folder is the caller's."""
    home = tmp_path / "home"
    home.mkdir()
    user = pwd.getpwnam("nobody")
    os.chown(home, user.pw_uid, user.pw_gid)
    own = {"TESTBED_STATE", "TESTBED_CACHE", "XDG_CACHE_HOME", "XDG_STATE_HOME"}
    env = {name: value for name, value in os.environ.items() if name not in own}
    env |= {"HOME": str(home), "SUDO_UID": str(user.pw_uid), "SUDO_GID": str(user.pw_gid)}
    path = write(tmp_path / "lab.yaml", "name: {name}\nnodes: {{a: {{}}}}\n", name="sudo")
    suite = home / "test_own.py"
    suite.write_text("def test_it(lab): assert lab.nodes")
    os.chown(suite, user.pw_uid, user.pw_gid)
    report = str(home / "reports.json")

    def run(*argv: str) -> None:
        done = subprocess.run(
            [*TESTBED, *argv], env=env, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr

    run("up", path, "-q")
    try:
        run("verify", "sudo", str(suite), "--json", report, "--html", str(home / "r.html"))
        run("status")
    finally:
        run("down", "sudo")
    found = {one.relative_to(home): one.lstat() for one in home.rglob("*")}
    assert {"r.html", "reports.json", ".cache", ".local"} <= {str(one.parts[0]) for one in found}
    assert {str(one): it.st_uid for one, it in found.items() if it.st_uid != user.pw_uid} == {}


def test_a_shell_has_a_terminal(testbed: Testbed, tmp_path: Path) -> None:
    path = write(tmp_path / "lab.yaml", TINY, name="tiny")
    assert testbed("up", path, "-q").returncode == 0
    ours, theirs = pty.openpty()
    env = {**os.environ, "TESTBED_STATE": str(tmp_path / "state"), "TERM": "dumb"}
    shell = subprocess.Popen(
        [*TESTBED, "shell", "a"], stdin=theirs, stdout=theirs, stderr=theirs, env=env,
        start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    read_until(ours, b"# ")
    os.write(ours, b"test -t 0 && echo tty-$(hostname); exit 5\n")
    read_until(ours, b"tty-a")
    assert shell.wait(timeout=60) == 5
    os.close(ours)


def read_until(fd: int, wanted: bytes, seconds: float = 120) -> None:
    seen = b""
    deadline = time.monotonic() + seconds
    while wanted not in seen:
        ready, _, _ = select.select([fd], [], [], max(0, deadline - time.monotonic()))
        assert ready, f"no {wanted!r} within {seconds} s, but {seen!r}"
        seen += os.read(fd, 4096)


def test_logs_are_shown_by_service(testbed: Testbed, tmp_path: Path) -> None:
    path = write(tmp_path / "l.yaml", PLAIN, name="logs", containers="  web: {node: host}")
    assert testbed("up", path, "-q").returncode == 0
    assert testbed("logs", "host", "dockerd").returncode == 0
    unknown = testbed("logs", "host", "nope")
    assert unknown.returncode == 4
    assert "dockerd" in unknown.stderr


# -- bad luck -----------------------------------------------------------------------------------


def test_without_root_it_says_so() -> None:
    argv = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *TESTBED]
    # The interpreter may lie where nobody else can read: then this cannot be tried here.
    if subprocess.run([*argv, "--version"], capture_output=True, check=False).returncode != 0:
        pytest.skip("the interpreter is readable by root only")
    done = subprocess.run(
        [*argv, "up", "two-node"], capture_output=True, text=True, check=False, cwd="/"
    )
    assert done.returncode == 3
    assert "needs root" in done.stderr
    assert "sudo" in done.stderr


@pytest.mark.parametrize("daemon", ["dockerd", "flanneld", "etcd"])
def test_a_daemon_that_dies_at_start(testbed: Testbed, tmp_path: Path, daemon: str) -> None:
    script = "#!/bin/sh\ncase $1 in --version) echo 1.2.3; exit 0;; esac\necho doomed; exit 9\n"
    own = program(tmp_path / daemon, script)
    done = testbed("up", "two-node", "--artifact", f"{daemon}={own}")
    assert done.returncode == 4, done.stderr
    died = rf"{daemon} on node\d died before it was ready \(exit 9\)"  # whichever was first
    assert re.search(died, done.stderr), done.stderr
    assert "doomed" in done.stderr
    assert nothing_is_up(testbed)


def test_keep_leaves_a_failed_lab_for_a_look(testbed: Testbed, tmp_path: Path) -> None:
    own = program(tmp_path / "flanneld", "#!/bin/sh\necho doomed; exit 9\n")
    done = testbed("up", "two-node", "--keep", "--artifact", f"flanneld={own}")
    assert done.returncode == 4
    assert "doomed" in testbed("logs", "node1", "flanneld").stdout
    assert testbed("up", "two-node", "-q").returncode == 0
    assert testbed("status").returncode == 0


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_wait_that_keeps_the_lab(
    testbed: Testbed, tmp_path: Path, signum: signal.Signals
) -> None:
    """flanneld never says that it is ready, which is waited for, for minutes."""
    own = program(tmp_path / "flanneld", "#!/bin/sh\nexec sleep 7200\n")
    argv = [*TESTBED, "up", "two-node", "--keep", "--artifact", f"flanneld={own}"]
    env = {**os.environ, "TESTBED_STATE": str(tmp_path / "state")}
    with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            at = line.partition("still at: ")[2].strip()
            alone = at and all(step.startswith("flannel node") for step in at.split(", "))
            if alone or line.strip().startswith("flannel node1 waits for"):  # after five seconds
                break
        began = time.monotonic()
        process.send_signal(signum)
        process.communicate(timeout=150)
    assert process.returncode == 128 + signum
    assert time.monotonic() - began < 60, "the wait itself is three times as long"
    assert testbed("exec", "node1", "true").returncode == 0, "it is kept"
    testbed("down", "two-node")
    assert nothing_is_up(testbed)


def test_an_artifact_that_is_not_there(testbed: Testbed) -> None:
    done = testbed("up", "two-node", "--artifact", "flanneld=/nowhere/flanneld")
    assert done.returncode == 2
    assert "/nowhere/flanneld" in done.stderr


def test_an_image_that_nobody_knows(testbed: Testbed, tmp_path: Path) -> None:
    text = "  web: {node: host, image: no-such-image}"
    path = write(tmp_path / "lab.yaml", PLAIN, name="image", containers=text)
    done = testbed("up", path)
    assert done.returncode == 3
    assert "no-such-image" in done.stderr
    assert '[images."no-such-image"]' in done.stderr
    assert nothing_is_up(testbed)


def test_a_port_that_is_taken(testbed: Testbed, tmp_path: Path) -> None:
    text = (
        "  first: {node: host, network: host, env: {PORT: '8080'}}\n"
        "  second: {node: host, publish: ['8080:80']}"
    )
    path = write(tmp_path / "lab.yaml", PLAIN, name="port", containers=text)
    done = testbed("up", path)
    assert done.returncode == 4
    assert "second" in done.stderr
    assert "8080" in done.stderr
    assert "in use" in done.stderr
    assert nothing_is_up(testbed)


def test_a_state_folder_that_cannot_be_written(testbed: Testbed, tmp_path: Path) -> None:
    path = write(tmp_path / "lab.yaml", TINY, name="state")
    done = testbed("up", path, TESTBED_STATE="/proc/testbed")
    assert done.returncode == 3
    assert "/proc/testbed" in done.stderr


def test_a_full_disk(testbed: Testbed, tmp_path: Path) -> None:
    path = write(tmp_path / "lab.yaml", TINY, name="full")
    small = tmp_path / "small"
    small.mkdir()
    # A file system without a free block, in a mount namespace that ends with the command.
    script = 'mount -t tmpfs -o size=8k t "$1" && dd if=/dev/zero of="$1/x" bs=4k 2>/dev/null; '
    script += 'shift; exec "$@"'
    argv = ["unshare", "--mount", "sh", "-c", script, "sh", str(small), *TESTBED, "up", path]
    env = {**os.environ, "TESTBED_STATE": str(small)}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 3, done.stderr
    assert "No space left" in done.stderr
    assert testbed("ls", "--json", TESTBED_STATE=str(small)).stdout.strip() == "[]"


def test_a_name_that_is_up_from_another_file(testbed: Testbed, tmp_path: Path) -> None:
    first = write(tmp_path / "first.yaml", TINY, name="same")
    second = write(tmp_path / "second.yaml", TINY.replace("10.168.0.3", "10.168.0.9"), name="same")
    assert testbed("up", first, "-q").returncode == 0
    refused = testbed("up", second)
    assert refused.returncode == 2
    assert "first.yaml" in refused.stderr
    assert "--name" in refused.stderr
    replaced = testbed("up", second, "--replace", "--json")  # a stays, with a new /etc/hosts
    assert json.loads(replaced.stdout)["changed"] == ["node a", "node b"]


def test_bad_topologies_name_every_place(testbed: Testbed, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("name: bad\nnetwork: {}\nnodes:\n  a: {rolls: [docker]}\n")
    done = testbed("up", str(path))
    assert done.returncode == 2
    assert f"{path}:2:1" in done.stderr
    assert f"{path}:4:7" in done.stderr
    assert "networks" in done.stderr


# -- signals ------------------------------------------------------------------------------------


def start_up(tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    env = {**os.environ, "TESTBED_STATE": str(tmp_path / "state")}
    return subprocess.Popen(
        [*TESTBED, "up", "two-node", *arguments],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("after", ["fabric", "docker node1", "images node1"])
def test_a_signal_ends_up_cleanly(
    testbed: Testbed, tmp_path: Path, signum: int, status: int, after: str
) -> None:
    up = start_up(tmp_path)
    assert up.stdout is not None
    for line in up.stdout:
        if after in line:
            break
    os.kill(up.pid, signum)
    _, errors = up.communicate(timeout=60)
    assert up.returncode == status, errors
    assert "Traceback" not in errors
    assert nothing_is_up(testbed)


@pytest.mark.parametrize("delay", [0.15, 0.3, 0.5, 0.8])
def test_down_finds_what_a_killed_up_has_left(
    testbed: Testbed, tmp_path: Path, delay: float
) -> None:
    up = start_up(tmp_path)
    time.sleep(delay)  # any instant is a good one: the point is that it is not chosen
    up.kill()
    up.communicate()
    down = testbed("down", "two-node")
    assert down.returncode == 0, down.stderr
    assert nothing_is_up(testbed)


def test_up_finishes_what_a_killed_up_has_left(testbed: Testbed, tmp_path: Path) -> None:
    up = start_up(tmp_path)
    assert up.stdout is not None
    for line in up.stdout:
        if "flannel config" in line:
            break
    up.kill()
    up.communicate()
    again = testbed("up", "two-node")
    assert again.returncode == 0, again.stderr
    assert testbed("status").returncode == 0


def test_the_second_of_two_ups_waits_for_the_first(testbed: Testbed, tmp_path: Path) -> None:
    first = start_up(tmp_path, "-q")
    second = start_up(tmp_path, "--json")
    outputs = [p.communicate(timeout=120) for p in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], outputs
    assert testbed("status").returncode == 0


def test_a_lost_record_does_not_hide_a_lab(testbed: Testbed, tmp_path: Path) -> None:
    path = write(tmp_path / "lab.yaml", TINY, name="lost")
    assert testbed("up", path, "-q").returncode == 0
    shutil.rmtree(tmp_path / "state")
    listed = json.loads(testbed("ls", "--json").stdout)
    assert [(row["lab"], row["nodes"]) for row in listed] == [("lost", 2)]
    assert testbed("down", "--all").returncode == 0
    assert nothing_is_up(testbed)


def test_a_look_at_the_machine_leaves_run_as_it_was() -> None:
    """mount(8) keeps a folder of its own in /run, unless it is told to write nothing."""
    script = 'mount -n -t tmpfs testbed /run && "$@" doctor > /dev/null; ls -A /run'
    argv = ["unshare", "--mount", "sh", "-c", script, "sh", *TESTBED]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=240)
    assert done.stdout == "", done.stdout + done.stderr
