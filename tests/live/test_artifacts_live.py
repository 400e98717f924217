"""Every artifact really made, in a cache of its own; needs the package registries."""

from __future__ import annotations

import hashlib
import json
import tarfile
from typing import TYPE_CHECKING

import pytest

from testbed import doctor
from testbed.artifacts import Store
from testbed.process import run

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("artifacts")
    (folder / "config.toml").touch()
    return Store(folder / "cache", {}, folder / "config.toml")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("dockerd", "Docker version"),
        ("docker", "Docker version"),
        ("containerd", "containerd"),
        ("runc", "runc version"),
        ("docker-init", "tini version"),
        ("containerd-shim-runc-v2", ""),
        ("etcd", "etcd Version"),
        ("flanneld", "v0."),
    ],
)
def test_a_program_runs_and_tells_its_version(store: Store, name: str, says: str) -> None:
    option = "-v" if name == "containerd-shim-runc-v2" else "--version"
    done = run([store.binary(name), option], timeout=120)
    assert says in done.stdout + done.stderr


def test_etcdctl_speaks_the_third_version(store: Store) -> None:
    assert "API version: 3" in run([store.binary("etcdctl"), "version"], timeout=120).stdout


def test_the_folder_for_path_has_all_that_dockerd_looks_for(store: Store) -> None:
    (folder,) = store.path_dirs("docker")
    for name in ("containerd", "containerd-shim-runc-v2", "runc", "docker-proxy", "docker-init"):
        assert (folder / name).stat().st_mode & 0o111


def test_the_init_of_a_node_is_static(store: Store) -> None:
    ldd = run(["ldd", store.binary("testbed-init")], check=False)
    assert "not a dynamic executable" in ldd.stdout + ldd.stderr or "statically" in ldd.stdout


@pytest.mark.seconds(10)
def test_the_image_can_be_loaded_and_run(store: Store, tmp_path: Path) -> None:
    archive = store.image("nginx")
    root = tmp_path / "root"
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "image")  # our own, made a moment ago
    (manifest,) = json.loads((tmp_path / "image" / "manifest.json").read_bytes())
    assert manifest["RepoTags"] == ["nginx:latest"]
    config = json.loads((tmp_path / "image" / manifest["Config"]).read_bytes())
    (layer,) = (tmp_path / "image" / name for name in manifest["Layers"])
    digest = hashlib.sha256(layer.read_bytes()).hexdigest()
    assert config["rootfs"]["diff_ids"] == [f"sha256:{digest}"]
    assert config["config"]["Cmd"] == ["/entrypoint.sh"]
    assert "80/tcp" in config["config"]["ExposedPorts"]
    assert archive.stat().st_size < 40e6
    with tarfile.open(layer) as tar:
        assert {member.uid for member in tar} == {0}
        tar.extractall(root)
    # Its own namespaces, as a container has them, without the daemon: no address but loopback.
    script = f"""
        mount -n --rbind /dev {root}/dev && mount -n -t proc proc {root}/proc || exit 1
        ip link set lo up || exit 1
        NAME=c1 chroot {root} /entrypoint.sh > {tmp_path}/log 2>&1 &
        curl() {{ chroot {root} curl -s --retry 20 --retry-delay 0 --retry-connrefused "$@"; }}
        curl -H 'Host: web' -w '%{{content_type}}\\n' http://127.0.0.1/ || cat {tmp_path}/log
        chroot {root} sh -c 'ip -V; ss -V; ping -c1 -q 127.0.0.1; tcpdump --version; iperf3 -v' 2>&1
        kill -TERM $!; wait $!; echo "ended $?"
    """
    unshare = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    said = run([*unshare, "sh", "-c", script], timeout=120).stdout
    answer, rest = said.split("\n", 1)
    assert json.loads(answer) | {"client": ""} == {
        "name": "c1",
        "server": "127.0.0.1:80",
        "client": "",
        "host": "web",
    }
    assert rest.startswith("application/json\n")
    for word in ("ip utility", "ss utility", "1 received", "tcpdump version", "iperf 3", "ended 0"):
        assert word in said


@pytest.mark.long  # `make setup` of a new machine does so, too
@pytest.mark.seconds(15)
def test_all_of_it_is_in_the_list_and_at_hand(store: Store) -> None:
    for entry in store.list():
        if entry.name not in store.unasked():
            store.fetch(entry.name)
    left = [entry.name for entry in store.list() if entry.state != "cached"]
    assert set(left) <= store.unasked()
    assert all(store.versions().values())


def test_the_doctor_finds_this_machine_fit_and_changes_nothing(store: Store) -> None:
    before = run(["ip", "-br", "link"]).stdout, run(["iptables-save"], check=False).stdout
    found = {item.name: item for item in doctor.findings(store)}
    assert (run(["ip", "-br", "link"]).stdout, run(["iptables-save"], check=False).stdout) == before
    unfit = {item.name: item.detail for item in found.values() if item.required and not item.ok}
    assert unfit == {}
