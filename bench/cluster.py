"""Times of a Kubernetes cluster: until its nodes are Ready, its first Pod runs, names are answered.

    bench/cluster.py [--rounds N] [--no-claims] [--json FILE]

Rounds alternate with the floor (``cluster.sh``), a bare shell script that starts the same
programs, so a machine that is busy for a while slows both; what counts is the ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench import remove_cgroups
from testbed.artifacts import Store
from testbed.cli.common import tell_artifact

HERE = Path(__file__).resolve().parent
TESTBED = [sys.executable, "-m", "testbed"]
LAB = "k8s-two-node"
CGROUP = "testbed-floor-cluster"
PROGRAMS = (
    "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy",
    "kubectl", "etcd", "flanneld",
)  # fmt: skip
#: Required figures on a quiet machine: seconds, and bytes.
WANTED = {"ready": 8.0, "pod": 9.0, "dns": 12.0, "down": 1.0, "claims": 90.0}
FIRST, FURTHER = 750e6, 200e6
FLOOR = 1.1  # times the floor's


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-claims", action="store_true", help="leave out how long they take")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("bench: needs root", file=sys.stderr)
        return 3
    store = Store(progress=tell_artifact)
    with tempfile.TemporaryDirectory(prefix="testbed-bench-") as folder:
        os.environ["TESTBED_STATE"] = f"{folder}/state"
        rounds = []
        for turn in range(options.rounds):
            last = turn == options.rounds - 1
            rounds.append(
                floor(store, Path(folder, "floor")) | cluster(claims=last and not options.no_claims)
            )
    show(rounds)
    if options.json:
        options.json.write_text(json.dumps(rounds, indent=1) + "\n")
    return 0


def cluster(*, claims: bool) -> dict[str, float]:
    """Figures of one cluster: seconds of each stage, bytes of memory of each node."""
    found: dict[str, float] = {}
    began = time.monotonic()
    up = [*TESTBED, "up", LAB, "--json"]
    try:
        said = json.loads(subprocess.run(up, check=True, stdout=subprocess.PIPE).stdout)
        before = time.monotonic() - began - said["seconds"]  # until the first step, and the end
        ends = {step["name"]: before + step["began"] + step["seconds"] for step in said["steps"]}
        found["api"] = ends["kube-apiserver"]
        found["ready"] = max(at for name, at in ends.items() if name.startswith("ready "))
        found["dns"] = ends["dns ready"]
        found["pod"] = found["ready"] + first_pod()
        for node in json.loads(kubectl("get", "nodes", "-o", "json"))["items"]:
            name = node["metadata"]["name"]
            found[f"memory {name}"] = memory(name)
        if claims:
            began = time.monotonic()
            subprocess.run([*TESTBED, "verify", LAB, "-q"], check=False, stdout=subprocess.DEVNULL)
            found["claims"] = time.monotonic() - began
    finally:
        began = time.monotonic()
        subprocess.run([*TESTBED, "down", LAB, "-q"], check=True, stdout=subprocess.DEVNULL)
        found["down"] = time.monotonic() - began
    return found


def kubectl(*words: str, text: str = "") -> str:
    argv = [*TESTBED, "kubectl", LAB, "--", *words]
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE, input=text, text=True).stdout


def first_pod() -> float:
    """Return the seconds from the creation of a Pod until it runs."""
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "first"},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "web", "image": "nginx", "imagePullPolicy": "IfNotPresent"}],
        },
    }
    began = time.monotonic()
    kubectl("apply", "-f", "-", text=json.dumps(pod))
    kubectl("wait", "--for=jsonpath={.status.phase}=Running", "pod/first")
    return time.monotonic() - began


def memory(node: str) -> float:
    """Return the bytes of a node's processes, shared memory counted once (PSS, proc(5))."""
    script = "cat /proc/[0-9]*/smaps_rollup 2>/dev/null | awk '/^Pss:/ { n += $2 } END { print n }'"
    argv = [*TESTBED, "exec", "-l", LAB, node, "--", "sh", "-c", script]
    return float(subprocess.run(argv, check=True, stdout=subprocess.PIPE).stdout) * 1024


def floor(store: Store, work: Path) -> dict[str, float]:
    """Run the bare script; return when all nodes were Ready, and when a Pod ran."""
    programs = work / "bin"
    programs.mkdir(parents=True)
    for name in PROGRAMS:
        (programs / name).symlink_to(store.binary(name))
    for image, name in (("pause", "testbed/pause:1"), ("nginx", "nginx")):
        shutil.copy(store.image(name), work / f"{image}.tar")
    folders = [programs, *store.path_dirs("docker")]
    plugins = store.path_dirs("cni-plugins")[0]
    cgroups = [
        hierarchy / CGROUP / f"node{n}"
        for hierarchy in Path("/sys/fs/cgroup").iterdir()
        if (hierarchy / "cgroup.procs").exists() and not hierarchy.is_symlink()
        for n in (1, 2)
    ]
    script = (HERE / "cluster.sh").read_text().replace("/usr/lib/cni", str(plugins))
    try:
        for cgroup in cgroups:
            make_cgroup(cgroup)
        done = subprocess.run(
            ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--net", "bash", "-c",
             script, "bash", "2", ":".join(map(str, folders)), str(work), f"/{CGROUP}"],
            check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=300,
        )  # fmt: skip
        said = dict(line.split() for line in done.stdout.splitlines())
        return {f"floor {name}": float(seconds) for name, seconds in said.items()}
    finally:
        shutil.rmtree(work, ignore_errors=True)
        remove_cgroups({path.parent for path in cgroups})


def make_cgroup(path: Path) -> None:
    """Create a cgroup for a node; a new cpuset has no CPUs at first."""
    for folder in (path.parent, path):
        folder.mkdir(exist_ok=True)
        for name in ("cpuset.cpus", "cpuset.mems"):
            if (folder / name).exists() and "cpuset" in folder.parts:
                (folder / name).write_text((folder.parent / name).read_text())


def show(rounds: list[dict[str, float]]) -> None:
    def median(name: str) -> float:
        return statistics.median(r[name] for r in rounds if name in r)

    print(f"{LAB}, median of {len(rounds)}:")
    for name in ("api", "ready", "pod", "dns", "down", "claims"):
        if not any(name in r for r in rounds):
            continue
        wanted = f" (at most {WANTED[name]:g})" if name in WANTED else ""
        ratio = ""
        if f"floor {name}" in rounds[0]:
            ratios = [r[name] / r[f"floor {name}"] for r in rounds]
            each = " ".join(f"{one:.2f}" for one in ratios)
            ratio = (
                f"; floor {median(f'floor {name}'):.2f} s, ratio {statistics.median(ratios):.2f} "
                f"({each}, at most {FLOOR})"
            )
        print(f"  {name:<8} {median(name):6.2f} s{wanted}{ratio}")
    nodes = [name for name in rounds[0] if name.startswith("memory ")]
    for at, name in enumerate(nodes):
        most = FURTHER if at else FIRST
        print(f"  {name}  {median(name) / 1e6:.0f} MB (at most {most / 1e6:.0f})")


if __name__ == "__main__":
    sys.exit(main())
