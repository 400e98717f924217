"""Identities of machines differ from node to node, and are never this machine's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTBED = f"{sys.executable} -m testbed"
FILE = """\
name: {name}
networks:
  lan: {{subnet: 10.168.0.0/24}}
nodes:
  a: {{networks: {{lan: 10.168.0.2}}, roles: [{roles}]}}
  b: {{networks: {{lan: 10.168.0.3}}, roles: [{roles}]}}
"""
#: Where software looks for the name of a machine; some are of some kinds of hardware alone.
NAMES = (
    "/etc/machine-id",
    "/var/lib/dbus/machine-id",
    "/proc/sys/kernel/random/boot_id",
    "/etc/hostname",
    "/proc/sys/kernel/hostname",
    "/sys/class/dmi/id/product_uuid",
    "/sys/class/dmi/id/product_serial",
    "/sys/class/dmi/id/board_serial",
    "/sys/class/dmi/id/chassis_serial",
    "/sys/hypervisor/uuid",
)
ALWAYS = NAMES[:5]
#: What a machine has had made for itself, as the node of a lab it would be all nodes'.
MACHINES = (
    "ssh/ssh_host_ed25519_key",
    "ssh/ssh_host_ed25519_key.pub",
    "hostid",
    "docker/key.json",
    "nvme/hostid",
    "nvme/hostnqn",
    "iscsi/initiatorname.iscsi",
)


class Bed:
    """Commands with a state folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {**os.environ, "TESTBED_STATE": str(folder / "state")}

    def testbed(self, *words: str) -> str:
        argv = [sys.executable, "-m", "testbed", *words]
        done = subprocess.run(argv, env=self.env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def up(self, name: str, roles: str = "") -> None:
        path = self.folder / f"{name}.yaml"
        path.write_text(FILE.format(name=name, roles=roles))
        self.testbed("up", str(path), "-q")

    def names(self, lab: str, node: str) -> dict[str, str]:
        """The contents of those files that are there."""
        script = (
            'for path; do test ! -e "$path" || printf "%s %s\\n" "$path" "$(cat "$path")"; done'
        )
        words = ["exec", "-l", lab, node, "--", "sh", "-c", script, "sh", *NAMES]
        return dict(line.split(" ", 1) for line in self.testbed(*words).splitlines())


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[Bed]:
    made = Bed(tmp_path)
    yield made
    made.testbed("down", "--all")


def here() -> dict[str, str]:
    """The same files of this machine."""
    return {name: Path(name).read_text().strip() for name in NAMES if Path(name).exists()}


def test_each_node_has_a_name_of_its_own(bed: Bed) -> None:
    bed.up("one")
    bed.up("two")
    seen = [bed.names(lab, node) for lab in ("one", "two") for node in ("a", "b")]
    assert all(set(ALWAYS) <= set(names) for names in seen)
    # Two labs may call their nodes alike.
    ids = [{k: v for k, v in names.items() if "hostname" not in k} for names in [here(), *seen]]
    for path in NAMES:
        told = [names[path] for names in ids if path in names]
        assert len(set(told)) == len(told), path
    assert [names["/etc/machine-id"] == names["/var/lib/dbus/machine-id"] for names in seen]

    before = bed.names("one", "a")
    bed.up("one")
    assert bed.names("one", "a") == before, "a second up changes nothing"
    bed.testbed("down", "one")
    bed.up("one")
    after = bed.names("one", "a")
    assert after["/etc/machine-id"] == before["/etc/machine-id"], "it is the machine that it was"
    boot = "/proc/sys/kernel/random/boot_id"
    assert after[boot] != before[boot], "and it has booted since"


def test_daemons_have_names_of_their_own(bed: Bed) -> None:
    """A seed of images does not bring the name of the daemon that it was made by."""
    bed.up("one", roles="docker")
    ids = []
    for node in ("a", "b"):
        ask = ["curl", "-s", "--unix-socket", "/run/docker.sock", "http://docker/info"]
        ids.append(
            bed.testbed(
                "exec", node, "--", "sh", "-c", f'{" ".join(ask)} | grep -o \'"ID":"[^"]*"\''
            )
        )
    assert len(set(ids)) == 2
    assert all(ids)


def test_what_this_machine_had_made_for_itself_is_no_nodes(bed: Bed) -> None:
    """On a machine with an sshd, a Docker and the like: here files that lie over /etc."""
    places = " ".join(f"/etc/{name}" for name in MACHINES)
    bed.folder.joinpath("one.yaml").write_text(FILE.format(name="one", roles=""))
    script = f"""
    set -e
    mount --make-rprivate /
    cd {bed.folder}
    mkdir upper work
    mount -t overlay none -o lowerdir=/etc,upperdir=upper,workdir=work /etc
    mkdir -p /etc/ssh /etc/docker /etc/nvme /etc/iscsi
    for path in {places}; do echo shared > $path; done
    touch /etc/ssh/sshd_config
    rm -f /etc/machine-id; ln -s /etc/hostid /etc/machine-id
    trap '{TESTBED} down one -q' EXIT
    {TESTBED} up one.yaml -q
    {TESTBED} exec a -- sh -c 'ls {places} /etc/ssh/sshd_config 2> /dev/null || :'
    {TESTBED} exec a -- cat /etc/machine-id
    cat {places}
    """
    argv = ["unshare", "--mount", "sh", "-c", script]
    done = subprocess.run(argv, env=bed.env, capture_output=True, text=True, check=False)
    if "mount: /etc" in done.stderr:
        pytest.skip(f"no overlay can be made here: {done.stderr}")
    assert done.returncode == 0, done.stderr
    first, own, *rest = done.stdout.splitlines()
    assert first == "/etc/ssh/sshd_config"
    assert len(own) == 32
    assert rest == ["shared"] * len(MACHINES), "this machine's stay as they were"
