"""Machines that exist, with kernels of their own: virtual machines of one lab, seen by another."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hidden import INSTALLED, LAB, Hidden, differences, ssh_config
from labs import brought_up

from testbed.topology import load_text

HIDDEN = "rack-vm"
TEXT = f"""\
name: {HIDDEN}
provider: qemu
networks: {{lan: {{subnet: 10.168.0.0/24}}}}
nodes:
  node1: {{networks: {{lan: 10.168.0.2}}}}
  node2: {{networks: {{lan: 10.168.0.3}}}}
"""
LOOKED_AT = f"""\
name: {LAB}
provider: ssh
ssh: {{config: ssh_config}}
networks: {{lan: {{subnet: 10.168.0.0/24}}}}
nodes:
  node1: {{networks: {{lan: 10.168.0.2}}}}
  node2: {{networks: {{lan: 10.168.0.3}}}}
"""
FILE = INSTALLED + "  container-2: {node: node2, image: nginx}\n"
CLAIMS = (
    "bridge-docker0-is-linux-bridge",
    "bridge-container-ip-from-subnet",
    "flannel-overlay-connects-all",
    "flannel-vxlan-route-entry",
)


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hidden]:
    state: Path = tmp_path_factory.mktemp("hidden")
    for lab in brought_up(load_text(TEXT, "hidden.yaml"), state):
        folder = tmp_path_factory.mktemp("user")
        folder.chmod(0o755)
        ssh_config(lab, folder, state)
        yield Hidden(lab, folder)


@pytest.mark.seconds(60)
def test_machines_are_looked_at(there: Hidden) -> None:
    before = there.look("node1")
    done = there.testbed("up", there.write(LOOKED_AT))
    assert done.status == 0, done.err
    found = json.loads(there.testbed("status", LAB, "--json").out)
    assert found["ok"], found
    said = there.testbed("exec", "-l", LAB, "node2", "hostname")
    assert said.out == "node2\n", said.err
    assert there.testbed("down", LAB).status == 0
    assert not differences(before, there.look("node1"))


@pytest.mark.long
@pytest.mark.seconds(250)
def test_roles_are_installed_and_removed(there: Hidden) -> None:
    before = there.look("node1")
    try:
        done = there.testbed("up", there.write(FILE))
        assert done.status == 0, done.err
        assert json.loads(there.testbed("status", LAB, "--json").out)["ok"]
        said = there.testbed("exec", "-l", LAB, "node1", "docker", "ps", "--format", "{{.Names}}")
        assert said.out == "container-1\n", said.err
        chosen = [word for claim in CLAIMS for word in ("--claim", claim)]
        data = there.folder / "verify.json"
        verified = there.testbed("verify", LAB, "-q", *chosen, "--json", str(data))
        assert verified.status == 0, verified.out + verified.err
        (lab,) = json.loads(data.read_text())["labs"]
        verdicts = {one["claim"]: one["verdict"] for one in lab["findings"]}
        assert verdicts == dict.fromkeys(CLAIMS, "confirmed")
    finally:
        down = there.testbed("down", LAB)
    assert down.status == 0, down.err
    assert not differences(before, there.look("node1"))
