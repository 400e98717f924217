"""Labs of 10, 100 and 1,000 Pods on a simulated cluster of 100 nodes: API calls, seconds, memory.

    bench/pods.py [--sizes N...] [--json FILE]

The control plane is real (etcd, kube-apiserver, kube-controller-manager, kube-scheduler), the
cluster's nodes are simulated by kwok, which marks each Pod as running.  All of it runs in a network
namespace of its own and ends with this program.  No command runs in such a Pod, so the figures are
those of objects: create, see them run, look at them, remove.  Exits with status 1 if the API calls
per node grow with the lab.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from testbed.artifacts import Store
from testbed.artifacts.gomod import GoModule
from testbed.cli.common import tell_artifact
from testbed.nodes.base import NodeSpec
from testbed.nodes.kubernetes import LAB, manifests
from testbed.nodes.kubernetes.cluster import Cluster, Refused
from testbed.nodes.kubernetes.remembered import Place
from testbed.nodes.kubernetes.settings import IDLE, LONGEST, seconds
from testbed.nodes.kubernetes.site import Site
from testbed.polling import until

HERE = Path(__file__).resolve().parent
STAGES = ("node/fast/node-initialize", "pod/fast/pod-ready", "pod/fast/pod-delete")
KWOK = GoModule(
    module=str(HERE / "go" / "kwok"),
    packages={"kwok": "sigs.k8s.io/kwok/cmd/kwok"},
    files={f"{Path(one).name}.yaml": f"kustomize/stage/{one}.yaml" for one in STAGES},
)
PROGRAMS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
WORKERS = 100  # nodes of the cluster
SIZES = (10, 100, 1000)
ADDRESS, SERVICES, PODS = "10.255.0.1", "10.97.0.0/16", "10.128.0.1/9"
TOKEN = "bench"  # noqa: S105  (of a server that nobody else reaches)
START = 120.0  # seconds
SHARE = 1.05  # a lab's calls per node, at most, of those of the next smaller lab


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--client", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        print(json.dumps(client(str(options.client), options.sizes[0])))
        return 0
    if options.inside:
        print(json.dumps(inside(options.inside, options.sizes)))
        return 0
    if os.geteuid() != 0:
        print("bench: needs root", file=sys.stderr)
        return 3
    rows = json.loads(simulated(options.sizes))
    show(rows)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    each = [row["calls per node"] for row in rows]
    grown = any(more > few * SHARE for few, more in itertools.pairwise(each))
    if grown:
        print("bench: the API calls per node grow with the lab", file=sys.stderr)
    return int(grown)


def simulated(sizes: list[int]) -> str:
    """Return the figures in JSON, from a child in namespaces that end with it."""
    store = Store(progress=tell_artifact)
    with tempfile.TemporaryDirectory(prefix="testbed-bench-") as name:
        folder = Path(name)
        for program in PROGRAMS:
            (folder / program).symlink_to(store.binary(program))
        kwok = store.keep("kwok", KWOK)
        (folder / "kwok").symlink_to(kwok / "bin" / "kwok")
        for one in STAGES:
            shutil.copy(kwok / f"{Path(one).name}.yaml", folder)
        argv = ["unshare", "--net", "--pid", "--fork", "--kill-child", sys.executable, __file__]
        argv += ["--inside", name, "--sizes", *map(str, sizes)]
        return subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout


def inside(folder: Path, sizes: list[int]) -> list[dict[str, Any]]:
    """Start the cluster, measure a lab of each size, and return the figures."""
    for words in (["link", "set", "lo", "up"], ["address", "add", f"{ADDRESS}/32", "dev", "lo"]):
        subprocess.run(["ip", *words], check=True)
    config = control_plane(folder)
    cluster = Cluster(config, "", patience=START)
    for number in range(WORKERS):
        cluster.ask("create a node", "POST", "/api/v1/nodes", worker(f"worker-{number}"))
    run(folder, "kwok", f"--kubeconfig={config}", "--manage-all-nodes", f"--cidr={PODS}",
        *(f"--config={folder / Path(one).name}.yaml" for one in STAGES))  # fmt: skip
    assert until(lambda: ready(cluster) == WORKERS, START), "the simulated nodes are not Ready"
    found = []
    for size in sizes:
        argv = [sys.executable, __file__, "--client", config, "--sizes", str(size)]
        said = subprocess.run(argv, check=True, stdout=subprocess.PIPE).stdout
        found.append(json.loads(said))
    return found


def control_plane(folder: Path) -> str:
    """Start the programs of the control plane; return the path of a kubeconfig."""
    key = folder / "service-accounts.key"
    subprocess.run(["openssl", "genrsa", "-out", str(key), "2048"], check=True, capture_output=True)
    (folder / "tokens.csv").write_text(f'{TOKEN},bench,bench,"system:masters"\n')
    etcd = "http://127.0.0.1:2379"
    run(folder, "etcd", f"--data-dir={folder}/etcd-data", f"--listen-client-urls={etcd}",
        f"--advertise-client-urls={etcd}", "--listen-peer-urls=http://127.0.0.1:2380",
        "--unsafe-no-fsync", "--log-level=error")  # fmt: skip
    run(folder, "kube-apiserver", f"--etcd-servers={etcd}", "--bind-address=127.0.0.1",
        f"--advertise-address={ADDRESS}", f"--cert-dir={folder}/certificates",
        f"--service-cluster-ip-range={SERVICES}", f"--token-auth-file={folder}/tokens.csv",
        f"--service-account-key-file={key}", f"--service-account-signing-key-file={key}",
        "--service-account-issuer=https://bench.invalid",
        "--authorization-mode=Node,RBAC")  # fmt: skip
    config, certificate = folder / "kubeconfig", folder / "certificates" / "apiserver.crt"
    server = {"server": "https://127.0.0.1:6443", "certificate-authority": str(certificate)}
    assert until(certificate.exists, START), "the API server has not started"
    config.write_text(
        json.dumps(
            {
                "apiVersion": "v1", "kind": "Config", "current-context": "bench",
                "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "bench"}}],
                "clusters": [{"name": "bench", "cluster": server}],
                "users": [{"name": "bench", "user": {"token": TOKEN}}],
            }
        )
    )  # fmt: skip
    cluster = Cluster(str(config), "", patience=START)
    assert until(lambda: answers(cluster), START), "the API server is not ready"
    run(folder, "kube-controller-manager", f"--kubeconfig={config}", "--leader-elect=false",
        f"--service-account-private-key-file={key}",
        f"--root-ca-file={certificate}")  # fmt: skip
    run(folder, "kube-scheduler", f"--kubeconfig={config}", "--leader-elect=false")
    return str(config)


def answers(cluster: Cluster) -> bool:
    """Tell whether the API server is ready."""
    try:
        cluster.ask("get ready", "GET", "/readyz")
    except Refused:
        return False
    return True


def run(folder: Path, program: str, *words: str) -> None:
    """Start a program, which ends with the process namespace."""
    with (folder / f"{program}.log").open("wb") as log:
        subprocess.Popen([folder / program, *words], stdout=log, stderr=log, cwd=folder)


def worker(name: str) -> dict[str, Any]:
    labels = {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"}
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}}


def ready(cluster: Cluster) -> int:
    """Return the number of the cluster's nodes that are Ready."""
    conditions = [
        one
        for node in cluster.items("list nodes", "/api/v1/nodes", {})
        for one in node.get("status", {}).get("conditions") or ()
    ]
    return sum(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


class Counting(Cluster):
    """A cluster that counts the requests to it, by method and resource."""

    def __init__(self, config: str) -> None:
        super().__init__(config, "")
        self.asked: Counter[str] = Counter()
        self._counting = threading.Lock()

    def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> Any:
        words = path.split("/")
        last = words[-1] if method in {"POST", "GET"} else words[-2]
        verb = "WATCH" if "watch" in (query or {}) else method
        with self._counting:
            self.asked[f"{verb} {last}"] += 1
        return super()._send(method, path, query, body, **more)


class Received:
    """The number of bytes of answers, as they are before TLS."""

    def __init__(self) -> None:
        self.bytes = 0
        real = socket.SocketIO.readinto

        def readinto(it: socket.SocketIO, buffer: Any) -> int | None:
            got = real(it, buffer)
            self.bytes += got or 0
            return got

        setattr(socket.SocketIO, "readinto", readinto)  # noqa: B010  (mypy allows no other way)


def client(config: str, size: int) -> dict[str, Any]:
    """Create, look at and remove a lab; return the figures."""
    received = Received()
    cluster = Counting(config)
    name = f"lab-{size}"
    place = Place(config, "bench", f"testbed-{name}", own=True, owner="bench")
    site, terms = Site(name, place, cluster), manifests.Terms(seconds(IDLE), LONGEST)
    specs = [NodeSpec(f"n{number}", "digest") for number in range(size)]
    names = [spec.name for spec in specs]
    row: dict[str, Any] = {"nodes": size}

    def timed(what: str, began: float) -> None:
        row[what] = time.monotonic() - began

    began = time.monotonic()
    site.try_rights("testbed/node:1", terms, privileged=False)
    site.make("testbed/node:1", terms, privileged=False)
    site.create(specs, ())
    timed("create", began)
    began = time.monotonic()
    spread = Counter(pod.worker for pod in site.started(names).values())
    timed("run", began)
    row["workers"], row["fullest"] = len(spread), max(spread.values())
    began = time.monotonic()
    assert len(site.used()) == size
    timed("look", began)
    path = f"/api/v1/namespaces/{place.namespace}/pods"
    before = received.bytes
    pods = Cluster(config, "").items("list Pods", path, {LAB: name})
    received.bytes = before
    row["objects"] = len(pods) + len(("namespace", "Job", *manifests.rights("", {})))
    began = time.monotonic()
    site.remove()
    timed("remove", began)
    # A look at Pods that start or go is a list of all, and then their changes by watches, each of
    # which lasts some seconds, however many they are.
    row["lists"] = cluster.asked["GET pods"] + cluster.asked["GET jobs"]
    row["watches"] = cluster.asked["WATCH pods"]
    row["calls"] = sum(cluster.asked.values())
    row["calls per node"] = (row["calls"] - row["lists"] - row["watches"]) / size
    row["received"] = received.bytes
    row["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return row


def show(rows: list[dict[str, Any]]) -> None:
    print(f"Labs of Pods on a simulated cluster of {WORKERS} nodes:")
    print("  nodes  workers  fullest  objects  API calls  lists  watches  others per node  "
          "received MB  create s  run s  look s  remove s  client MB")  # fmt: skip
    for row in rows:
        print(
            f"  {row['nodes']:5}  {row['workers']:7}  {row['fullest']:7}  "
            f"{row['objects']:7}  {row['calls']:9}  {row['lists']:5}  {row['watches']:7}  "
            f"{row['calls per node']:15.2f}  {row['received'] / 1e6:11.1f}  "
            f"{row['create']:8.2f}  {row['run']:5.2f}  {row['look']:6.2f}  "
            f"{row['remove']:8.2f}  {row['memory'] / 1e6:9.0f}"
        )


if __name__ == "__main__":
    sys.exit(main())
