"""Other network plugins than flannel: what they join, what they leave alone, what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import archives
import pytest
from crash.means import Bed, Watch

from k8s.conftest import PODS, Cluster
from k8s.walked import services_walked
from testbed import kernel
from testbed.artifacts import Store
from testbed.catalogues.shipped import FOLDER
from testbed.labs import preflight
from testbed.process import which
from testbed.roles.kubernetes.plugins import PLUGINS, cilium
from testbed.roles.kubernetes.plugins.manifest import Brought
from testbed.suites.helpers import wait_until
from testbed.topology.load import Overrides, load

if TYPE_CHECKING:
    from testbed.roles.kubernetes.section import Plugin

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
         *(str(FOLDER / suite) for suite in suites)],
        env=bed.environment(), capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


@pytest.mark.seconds(40)
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
    if proxy == "iptables":  # test_cluster.py has the other
        cluster = Cluster(bed)
        cluster.kubectl("apply", "-f", "-", input=PODS)
        cluster.kubectl("wait", "--for=condition=Ready", "pod", "--all", "--timeout=120s")
        services_walked(
            cluster, "routes", lambda _: "iptables-nft",
            nat="-j DNAT --to-destination", masquerade="-j MASQUERADE --random-fully",
        )  # fmt: skip


@pytest.mark.parametrize("name", BROUGHT)
def test_what_must_be_brought_is_named_before_anything_starts(bed: Bed, name: Plugin) -> None:
    if not PLUGINS[name].lacking(Store()):
        pytest.skip(f"{name} has been brought")
    done = bed.run("up", LAB, "--cni", name)
    assert done.returncode == 3
    assert bed.labs() == []
    wanted = preflight.kernel_features(load(LAB, Overrides(cni=name)))
    if lacks := [one.name for one in kernel.features() if not one.ok and one.name in wanted]:
        assert all(feature in done.stderr for feature in lacks), "the kernel is asked first"
        return
    assert PLUGINS[name].title in done.stderr
    assert f"{name}-manifest" in done.stderr


# -- one that is brought ------------------------------------------------------------------------

#: Stands in for the makers': it installs a CNI plugin, and how Pods are joined, as they do.
BRINGS = """
kind: List
apiVersion: v1
items:
- {{apiVersion: v1, kind: ConfigMap, metadata: {{name: {config}, namespace: kube-system}}}}
- apiVersion: apps/v1
  kind: DaemonSet
  metadata: {{name: calico-node, namespace: kube-system}}
  spec:
    selector: {{matchLabels: {{app: calico-node}}}}
    template:
      metadata: {{labels: {{app: calico-node}}}}
      spec:
        hostNetwork: true
        terminationGracePeriodSeconds: 0
        tolerations: [{{operator: Exists}}]
        volumes:
        - {{name: root, hostPath: {{path: /}}}}
        - {{name: bin, hostPath: {{path: /opt/cni/bin}}}}
        - {{name: conf, hostPath: {{path: /etc/cni/net.d}}}}
        initContainers:
        - name: install
          image: "quay.io/stand-in/cni:1@sha256:{digest}"
          imagePullPolicy: Always
          securityContext: {{privileged: true}}
          command:
          - sh
          - -euc
          - |
            mount | grep -q "makers on /host/mnt" || mount -t tmpfs makers /host/mnt
            for name in macvlan ours; do
              echo "makers'" > /bin-of-the-node/$name.part
              mv /bin-of-the-node/$name.part /bin-of-the-node/$name
            done
            cat > /conf/10-ours.conflist <<END
            {{"cniVersion": "0.4.0", "name": "ours", "plugins": [{{"type": "bridge",
            "bridge": "ours0", "isDefaultGateway": true, "ipMasq": true,
            "ipam": {{"type": "host-local",
            "ranges": [[{{"subnet": "$CALICO_IPV4POOL_CIDR"}}]]}}}}]}}
            END
          volumeMounts:
          - {{name: root, mountPath: /host, mountPropagation: Bidirectional}}
          - {{name: bin, mountPath: /bin-of-the-node}}
          - {{name: conf, mountPath: /conf}}
        containers:
        - name: agent
          image: quay.io/stand-in/node:1
          command: [sleep, "7200"]
          env:
          - {{name: CALICO_IPV4POOL_CIDR, value: 192.0.2.0/24}}
          - {{name: ROUND, value: "{round}"}}
"""


@pytest.fixture
def cache() -> Iterator[Path]:
    with archives.cache() as made:
        yield made


@pytest.mark.seconds(60)
def test_a_manifest_that_is_brought_is_applied_changed_and_applied_again(
    bed: Bed, tmp_path: Path, cache: Path
) -> None:
    def manifest(config: str, round: int) -> None:
        text = BRINGS.format(config=config, round=round, digest="0" * 64)
        (tmp_path / "calico.yaml").write_text(text)

    def agents() -> dict[str, str]:
        """The agent's Pod of each node."""
        words = ("get", "pods", "-n", "kube-system", "-l", "app=calico-node", "-o", "json")
        found = json.loads(bed.must("kubectl", LAB, "--", *words).stdout)["items"]
        return {
            one["spec"]["nodeName"]: one["metadata"]["name"]
            for one in found
            if "deletionTimestamp" not in one["metadata"]
        }

    manifest("first", 1)
    lines = ['[artifacts]\ncalico-manifest = {path = "calico.yaml"}\n[images]']
    for name in ("cni", "node"):
        archives.write(tmp_path / f"{name}.tar", f"quay.io/stand-in/{name}:1")
        lines.append(f'any-{name} = {{path = "{name}.tar"}}')
    (tmp_path / "config.toml").write_text("\n".join(lines))
    bed.env = {
        "TESTBED_CONFIG": str(tmp_path / "config.toml"),
        "TESTBED_CACHE": str(cache),
    }
    try:
        up = ("up", LAB, "--cni", "calico")
        assert "any-node, testbed/coredns:1, nginx loaded" in bed.must(*up).stdout
        before = agents()
        assert set(before) == {"node1", "node2"}
        for node in before:
            seen = bed.must("exec", "-l", LAB, node, "--", "cat", "/opt/cni/bin/macvlan").stdout
            assert seen == "makers'\n"
            mounts = bed.must("exec", "-l", LAB, node, "--", "cat", "/proc/self/mountinfo").stdout
            assert " - tmpfs makers " in mounts, "what a Pod mounts with Bidirectional"
        assert " - tmpfs makers " not in Path("/proc/self/mountinfo").read_text()

        said = bed.must(*up).stdout
        assert "=  calico manifest" in said
        assert agents() == before
        seen = bed.must("exec", "-l", LAB, "node1", "--", "cat", "/opt/cni/bin/macvlan").stdout
        assert seen == "makers'\n", "a second up leaves it"

        # What the makers' own programs write is theirs until the manifest is applied again.
        bed.must("kubectl", LAB, "--", "set", "env", "-n", "kube-system", "ds/calico-node",
                 "ROUND=somebody's")  # fmt: skip
        manifest("second", 2)
        bed.must(*up)
        assert not set(agents().values()) & set(before.values())
        words = ("get", "daemonset/calico-node", "-n", "kube-system", "-o", "json")
        found = json.loads(bed.must("kubectl", LAB, "--", *words).stdout)
        (agent,) = found["spec"]["template"]["spec"]["containers"]
        assert agent["env"] == [
            {"name": "CALICO_IPV4POOL_CIDR", "value": "100.96.0.0/16"},
            {"name": "ROUND", "value": "2"},
            *agent["env"][2:],
        ]
        words = ("get", "configmap", "-n", "kube-system", "-o", "name")
        maps = bed.must("kubectl", LAB, "--", *words).stdout
        assert "configmap/second" in maps
        assert "configmap/first" not in maps

        bed.must("down", LAB)
        assert "any-node, testbed/coredns:1, nginx present" in bed.must(*up).stdout, (
            "what was brought is imported once"
        )
    finally:
        bed.must("down", "--all")


@pytest.mark.seconds(45)
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
    """List the kernel's BPF objects, as seen from this machine's own namespaces."""
    program = which("bpftool") or str(Store().binary("bpftool"))
    done = subprocess.run([program, "-j", *words], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.strip() or "null")  # for a cgroup without any: a blank line


def programs() -> set[int]:
    """All programs that are loaded, in whatever namespace."""
    return {one["id"] for one in bpf("prog", "show")}


def machine() -> dict[str, str]:
    """Return the state of this machine that a plugin of a lab must not change."""
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


@pytest.mark.seconds(60)
def test_cilium_stays_in_its_lab(bed: Bed) -> None:
    if why := PLUGINS["cilium"].lacking(Store()):
        pytest.skip(why)
    before, loaded, above = machine(), programs(), on_cgroups_above_the_lab()
    bed.must("up", LAB, "--cni", "cilium", "-q")
    assert programs() - loaded, "none of Cilium's is loaded"
    assert machine() == before
    assert on_cgroups_above_the_lab() == above
    # The programs of a dead agent keep working, and the agent is created again.
    nodes = {one["name"]: one for one in bed.status(LAB)["nodes"]}
    (agent,) = [one for one in nodes["node2"]["services"] if one["name"] == cilium.AGENT]
    bed.must("exec", "-l", LAB, "node2", "--", "kill", "-KILL", agent["detail"].split()[-1])
    bed.must("up", LAB, "--cni", "cilium", "-q")
    assert bed.status(LAB)["ok"]
    checked(bed, "test_cilium.py", "test_policies.py")
    bed.must("down", LAB)
    # A connection that was cut off keeps its node's network namespace for some time yet, and with
    # that what is attached to links there (the kernel's tcp_orphan_retries).
    wait_until(lambda: programs() <= loaded, "the end of Cilium's programs", 300)
    assert machine() == before
