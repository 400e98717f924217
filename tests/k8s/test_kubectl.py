"""kubectl for a lab's cluster: files, folder, terminal, ports and signals are the caller's."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from crash.means import SECONDS, TESTBED

from k8s.conftest import LAB
from testbed.settings import settings
from testbed.testing.terminal import ASK_SIZE, User

if TYPE_CHECKING:
    from k8s.conftest import Cluster

#: Folders that a node of namespaces has of its own.
FOLDERS = ("/tmp", "/run", "/var/lib", "/var/tmp", "/var/log", "/dev/shm")
#: Exit statuses of `kubectl get --watch` by the signal that ends it: a shell's, or its own, 1, from
#: the moment when it catches signals (k8s.io/kubectl, pkg/util/interrupt).
KILLED_BY = {signum: (128 + signum, 1) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}


def config_map(name: str) -> str:
    return f'{{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {{"name": "{name}"}}}}'


@pytest.fixture(params=FOLDERS)
def folder(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder of the test's own in each of FOLDERS."""
    with tempfile.TemporaryDirectory(prefix="kubectl-test-", dir=request.param) as made:
        yield Path(made)


def kubectl(
    cluster: Cluster, *words: str, cwd: Path | None = None, status: int = 0, **env: str
) -> str:
    done = subprocess.run(
        [*TESTBED, "kubectl", LAB, *words],
        env=cluster.bed.environment() | env, cwd=cwd, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == status, (done.stdout, done.stderr)
    return done.stdout


@contextlib.contextmanager
def gone(cluster: Cluster, *names: str) -> Iterator[None]:
    """Remove ConfigMaps in the end."""
    try:
        yield
    finally:
        kubectl(cluster, "delete", "configmap", "--ignore-not-found", *names)


def test_files_of_any_folder_arrive(cluster: Cluster, folder: Path) -> None:
    """By a path, by a folder relative to the current one, and by kustomize."""
    (folder / "one file.json").write_text(config_map("by-path"))
    (folder / "all").mkdir()
    for name in ("in-folder-1", "in-folder-2"):
        (folder / "all" / f"{name}.json").write_text(config_map(name))
    (folder / "kustomization.yaml").write_text(
        "configMapGenerator:\n- {name: by-kustomize, files: ['key=one file.json']}\n"
        "generatorOptions: {disableNameSuffixHash: true}\n"
    )
    (folder / "template").write_text("{{range .items}}{{.metadata.name}} {{end}}")
    names = ["by-path", "in-folder-1", "in-folder-2", "by-kustomize"]
    with gone(cluster, *names):
        kubectl(cluster, "apply", "-f", str(folder / "one file.json"), "-f", "all", cwd=folder)
        kubectl(cluster, "apply", "-k", str(folder))
        words = ("get", "configmap", *names, "-o", "go-template-file=template")
        assert kubectl(cluster, *words, cwd=folder).split() == names


def test_files_are_copied_both_ways(cluster: Cluster, folder: Path) -> None:
    (folder / "sent").write_bytes(bytes(range(256)) * 1000)
    kubectl(cluster, "cp", str(folder / "sent"), "client:/tmp/sent")
    kubectl(cluster, "cp", "client:/tmp/sent", "./back", cwd=folder)
    assert (folder / "back").read_bytes() == (folder / "sent").read_bytes()


def test_folders_are_copied_both_ways(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "tree" / "inner").mkdir(parents=True)
    (tmp_path / "tree" / "inner" / "file").write_text("deep")
    kubectl(cluster, "cp", "tree", "client:/tmp/tree", cwd=tmp_path)
    kubectl(cluster, "cp", "client:/tmp/tree", str(tmp_path / "tree back"))
    assert (tmp_path / "tree back" / "inner" / "file").read_text() == "deep"


def test_a_copy_belongs_to_who_called_sudo(cluster: Cluster, tmp_path: Path) -> None:
    """To the user whose folder it is in, though root has written it."""
    mine = tmp_path / "mine"
    mine.mkdir()
    os.chown(mine, 1234, 4321)
    words = ("cp", "client:/etc/passwd", "mine/copy")
    kubectl(cluster, *words, cwd=tmp_path, SUDO_UID="1234", SUDO_GID="4321")
    assert ((mine / "copy").stat().st_uid, (mine / "copy").stat().st_gid) == (1234, 4321)


def test_the_editor_is_the_callers(cluster: Cluster, tmp_path: Path) -> None:
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nprintf "data: {edited: \\"%s\\"}\\n" "$WORD" >> "$1"\n')
    editor.chmod(0o755)
    with gone(cluster, "edited"):
        kubectl(cluster, "create", "configmap", "edited")
        kubectl(cluster, "edit", "configmap", "edited", KUBE_EDITOR=str(editor), WORD="mine")
        found = kubectl(cluster, "get", "configmap", "edited", "-o", "jsonpath={.data.edited}")
        assert found == "mine"


def test_plugins_are_the_callers_and_find_the_cluster(cluster: Cluster, tmp_path: Path) -> None:
    plugin = tmp_path / "kubectl-hello"
    plugin.write_text('#!/bin/sh\necho "$1" "$PWD" "$(grep -c 127.0.0.1 "$KUBECONFIG")"\n')
    plugin.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    said = kubectl(cluster, "hello", "you", cwd=tmp_path, PATH=path)
    assert said.split() == ["you", str(tmp_path), "1"]


def test_a_kubeconfig_of_the_callers_is_used_where_it_is_named(
    cluster: Cluster, tmp_path: Path
) -> None:
    """As upstream's rules have it: the option wins."""
    (tmp_path / "config").write_text('{"kind": "Config", "clusters": [{"name": "theirs"}]}')
    words = ("config", "get-clusters", f"--kubeconfig={tmp_path / 'config'}")
    assert "theirs" in kubectl(cluster, *words)
    # A variable of theirs leads to another cluster, and this is about the lab.
    assert "testbed" in kubectl(
        cluster, "config", "get-clusters", KUBECONFIG=str(tmp_path / "config")
    )


def test_nothing_is_left_in_the_home_folder(cluster: Cluster, tmp_path: Path) -> None:
    """kubectl caches by the port of the API, which differs for each command."""
    home, temporary = tmp_path / "home", tmp_path / "temporary"
    home.mkdir()
    temporary.mkdir()
    cache = str(settings().store.folder)
    kubectl(cluster, "get", "pods", HOME=str(home), TMPDIR=str(temporary), TESTBED_CACHE=cache)
    assert [*home.iterdir(), *temporary.iterdir()] == []


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["exec", "client", "--", "sh", "-c", "exit 7"], 7),
        (["get", "pod", "no-such-pod"], 1),
        (["apply", "-f", "/no/such/file"], 1),
    ],
)
def test_the_status_is_kubectls(cluster: Cluster, words: list[str], status: int) -> None:
    kubectl(cluster, *words, status=status)


def test_input_and_output_are_the_callers(cluster: Cluster) -> None:
    data = "line\n" * 100_000
    assert cluster.kubectl("exec", "-i", "client", "--", "cat", input=data) == data


def at_terminal(cluster: Cluster, *words: str) -> User:
    argv = [*TESTBED, "kubectl", LAB, *words]

    def act() -> int:
        os.execve(argv[0], argv, cluster.bed.environment() | {"TERM": "dumb"})

    return User(act)


def test_a_terminal_has_the_callers_size_and_its_changes(cluster: Cluster) -> None:
    argv = ["sh", "-c", ASK_SIZE, "sh", "busybox stty"]
    with at_terminal(cluster, "exec", "-it", "client", "--", *argv) as user:
        user.see(b"ready")
        user.resize(40, 120)
        assert user.end() == 5, user.seen
        assert b"40 120\r\n" in user.seen


def test_a_key_at_the_terminal_is_the_pods(cluster: Cluster) -> None:
    script = 'trap "echo caught; exit 3" INT; echo ready; while :; do sleep 0.05; done'
    with at_terminal(cluster, "exec", "-it", "client", "--", "sh", "-c", script) as user:
        user.see(b"ready")
        user.press(b"\x03")
        assert user.end() == 3, user.seen
        assert b"caught" in user.seen


def test_ctrl_c_ends_what_watches(cluster: Cluster) -> None:
    with at_terminal(cluster, "get", "pods", "--watch") as user:
        user.see(b"web-2")
        user.press(b"\x03")
        assert user.end() in KILLED_BY[signal.SIGINT], user.seen
        assert b"Traceback" not in user.seen


@pytest.mark.parametrize("signum", KILLED_BY)
def test_a_signal_ends_kubectl_and_the_way_to_the_api(
    cluster: Cluster, signum: signal.Signals
) -> None:
    with subprocess.Popen(
        [*TESTBED, "kubectl", LAB, "get", "pods", "--watch"],
        env=cluster.bed.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout
        assert process.stderr
        assert "NAME" in process.stdout.readline()
        process.send_signal(signum)
        process.stdout.read()  # to the end: kubectl has it open, too
        assert process.wait(SECONDS) in KILLED_BY[signum]
        assert process.stderr.read() == ""


def test_a_port_of_this_machine_is_forwarded_to_a_pod(cluster: Cluster) -> None:
    with subprocess.Popen(
        [*TESTBED, "kubectl", LAB, "port-forward", "pod/web-1", ":80", "--address=127.0.0.1"],
        env=cluster.bed.environment(), stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            assert process.stdout
            found = re.search(r"127\.0\.0\.1:(\d+) -> 80", process.stdout.readline())
            assert found
            with urllib.request.urlopen(f"http://127.0.0.1:{found[1]}/", timeout=60) as answer:
                assert b'"web-1"' in answer.read()
        finally:
            process.terminate()
            process.wait(SECONDS)


def test_the_port_of_kubeconfig_closes_with_it(cluster: Cluster, tmp_path: Path) -> None:
    file = tmp_path / "config"
    with subprocess.Popen(
        [*TESTBED, "kubeconfig", LAB, "-o", str(file)],
        env=cluster.bed.environment(), stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stderr
        found = re.search(r"127\.0\.0\.1:(\d+)", process.stderr.readline())
        assert found
        # A connection that stays open does not hold it up.
        with socket.create_connection(("127.0.0.1", int(found[1]))):
            process.send_signal(signal.SIGINT)
            assert process.wait(SECONDS) == 130
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", int(found[1])), timeout=60).close()
