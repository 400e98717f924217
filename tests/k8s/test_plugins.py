"""Other network plugins than flannel: what they join, what they leave alone, what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from crash.means import Bed, Watch

from testbed.artifacts import Store
from testbed.process import which
from testbed.roles.kubernetes.plugins import PLUGINS, cilium
from testbed.roles.kubernetes.plugins.manifest import Brought
from testbed.suites.helpers import wait_until
from testbed.suites.runner import SUITES

if TYPE_CHECKING:
    from testbed.topology.model import Plugin

LAB = "k8s-two-node"
BROUGHT = [name for name, plugin in PLUGINS.items() if isinstance(plugin, Brought)]
SYSCTLS = ("kernel/timer_migration", "kernel/unprivileged_bpf_disabled", "net/core/bpf_jit_enable")


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[Bed]:
    watch, made = Watch(tmp_path), Bed(tmp_path / "state")
    try:
        yield made
    finally:
        made.must("down", "--all")
    assert made.leftovers() == []
    watch.check()


def checked(bed: Bed, *suites: str) -> None:
    """Run suites on the lab: all that is not skipped passes, and something does."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--testbed-lab", LAB,
         *(str(SUITES / suite) for suite in suites)],
        env=bed.environment(), capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


@pytest.mark.parametrize("proxy", ["nftables", "iptables"])
def test_bgp_joins_the_pods_and_heals(bed: Bed, proxy: str) -> None:
    bed.must("up", LAB, "--cni", "bgp", "--proxy", proxy, "-q")
    checked(bed, "test_plugins.py", "test_policies.py")
    nodes = {one["name"]: one for one in bed.status(LAB)["nodes"]}
    (bird,) = [one for one in nodes["node2"]["services"] if one["name"] == "bird"]
    bed.must("exec", "-l", LAB, "node2", "--", "kill", "-KILL", bird["detail"].split()[-1])
    assert not bed.status(LAB)["ok"]
    bed.must("up", LAB, "--cni", "bgp", "--proxy", proxy, "-q")
    assert bed.status(LAB)["ok"]
    checked(bed, "test_plugins.py")


@pytest.mark.parametrize("name", BROUGHT)
def test_what_must_be_brought_is_named_before_anything_starts(bed: Bed, name: Plugin) -> None:
    if not PLUGINS[name].lacking(Store()):
        pytest.skip(f"{name} has been brought")
    done = bed.run("up", LAB, "--cni", name)
    assert done.returncode == 3
    assert f"{PLUGINS[name].title} is not here" in done.stderr
    assert f"{name}-manifest" in done.stderr
    assert bed.labs() == []


@pytest.mark.parametrize("proxy", ["nftables", "iptables"])
def test_kube_router_joins_the_pods_and_stays_in_its_lab(bed: Bed, proxy: str) -> None:
    if why := PLUGINS["kube-router"].lacking(Store()):
        pytest.skip(why)
    before = rules()
    up = ("up", LAB, "--cni", "kube-router", "--proxy", proxy)
    bed.must(*up, "-q")
    checked(bed, "test_plugins.py", "test_policies.py")
    assert json.loads(bed.must(*up, "--json").stdout)["changed"] == []
    assert rules() == before
    bed.must("down", LAB)
    assert rules() == before


def rules() -> str:
    """This machine's own rules, and sets of addresses."""
    argv = ["nft", "--stateless", "list", "ruleset"]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


# -- Cilium ---------------------------------------------------------------------------------------


def bpf(*words: str) -> Any:
    """What the kernel has of BPF, as seen from this machine's own namespaces."""
    program = which("bpftool") or str(Store().binary("bpftool"))
    done = subprocess.run([program, "-j", *words], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.strip() or "null")  # for a cgroup without any: a blank line


def programs() -> set[int]:
    """All programs that are loaded, in whatever namespace."""
    return {one["id"] for one in bpf("prog", "show")}


def machine() -> dict[str, str]:
    """What of this machine a plugin of a lab must leave as it is."""
    found = {f"sysctl {name}": Path("/proc/sys", name).read_text() for name in SYSCTLS
             if Path("/proc/sys", name).exists()}  # fmt: skip
    mounts = Path("/proc/mounts").read_text().splitlines()
    found["bpf file systems"] = "\n".join(line for line in mounts if " bpf " in line)
    found["programs on links"] = json.dumps(bpf("net", "show"))
    found["iptables"] = subprocess.run(
        ["iptables-save"], capture_output=True, text=True, check=False
    ).stdout
    return found


def on_cgroups_above_the_lab() -> list[str]:
    """Programs on cgroups of this machine that are not below a node's."""
    tops = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()
            if line.split()[2] == "cgroup2"]  # fmt: skip
    found = []
    for top in tops:
        for folder, inner, _ in os.walk(top):
            if Path(folder) != Path(top):
                inner.clear()  # the first level is enough: what is inherited comes from above
            if bpf("cgroup", "show", folder):
                found.append(folder)
    return found


def test_cilium_stays_in_its_lab(bed: Bed) -> None:
    if why := PLUGINS["cilium"].lacking(Store()):
        pytest.skip(why)
    before, loaded, above = machine(), programs(), on_cgroups_above_the_lab()
    bed.must("up", LAB, "--cni", "cilium", "-q")
    assert programs() - loaded, "none of Cilium's is loaded"
    assert machine() == before
    assert on_cgroups_above_the_lab() == above
    # An agent that has died leaves its programs at work, and is made anew.
    nodes = {one["name"]: one for one in bed.status(LAB)["nodes"]}
    (agent,) = [one for one in nodes["node2"]["services"] if one["name"] == cilium.AGENT]
    bed.must("exec", "-l", LAB, "node2", "--", "kill", "-KILL", agent["detail"].split()[-1])
    bed.must("up", LAB, "--cni", "cilium", "-q")
    assert bed.status(LAB)["ok"]
    checked(bed, "test_cilium.py", "test_policies.py")
    bed.must("down", LAB)
    # A connection that was cut off keeps its node's network namespace for some time yet, and with
    # that what is attached to links there (the kernel's tcp_orphan_retries).
    wait_until(lambda: programs() <= loaded, 300, "the end of Cilium's programs")
    assert machine() == before
