"""Times of labs whose nodes are Pods of a real cluster, which is a lab of ours.

    bench/pod_labs.py [--rounds N] [--json FILE]

``pair`` is `testbed up` of two Pods with a network, ``two-node`` that of flannel, Docker and pages
until one page is answered, with the ratio to the same lab of namespaces.  ``accepted`` is the time
until the cluster has been told to remove the lab, ``gone`` until nothing of it is left.  Rounds
alternate, so a machine that is busy for a while slows both providers; what counts is the ratio.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from testbed.artifacts import Store
from testbed.artifacts.inventory import NODE_IMAGE
from testbed.artifacts.node_image import IMAGE, PART
from testbed.cli.common import tell_artifact
from testbed.labs.lab import Lab
from testbed.labs.live import LiveLab
from testbed.nodes.kubernetes import LAB as LABEL
from testbed.nodes.kubernetes.cluster import Cluster
from testbed.polling import until
from testbed.settings import settings

TESTBED = [sys.executable, "-m", "testbed"]
CLUSTER, TWO_NODE = "k8s-two-node", "two-node"
PAIR = """\
name: pair
provider: kubernetes
networks: {lan: {subnet: 10.50.0.0/24}}
nodes: {a: {networks: {lan: 10.50.0.2}}, b: {networks: {lan: 10.50.0.3}}}
"""
CTR = ["ctr", "--address=/run/containerd/containerd.sock", "--namespace=k8s.io", "images", "import"]
PAGE = ["curl", "-s", "-m", "10", "http://100.96.2.2/"]  # of container-2
COMMANDS = 100
END = 60.0  # seconds
#: Required figures on a quiet machine: seconds, and a ratio.
WANTED = {"pair": 3.0, "command": 0.015, "accepted": 1.0, "gone": 10.0, "ratio": 3.0}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("bench: needs root", file=sys.stderr)
        return 3
    store = Store(progress=tell_artifact)
    with tempfile.TemporaryDirectory(prefix="testbed-bench-") as name:
        os.environ["TESTBED_STATE"] = f"{name}/state"
        file = Path(name, "pair.yaml")
        file.write_text(PAIR)
        with cluster(Path(name, "kubeconfig"), store):
            rounds = [figures(str(file)) for _ in range(options.rounds)]
    show(rounds)
    if options.json:
        options.json.write_text(json.dumps(rounds, indent=1) + "\n")
    return 0


@contextlib.contextmanager
def cluster(kubeconfig: Path, store: Store) -> Iterator[None]:
    """A cluster whose nodes have the image, as the one of ``KUBECONFIG``."""
    archive = store.keep(PART, NODE_IMAGE) / IMAGE
    try:
        testbed("up", CLUSTER)
        with LiveLab(Lab(CLUSTER, settings()).context()) as lab:
            for node in lab.topology.with_role("kubernetes"):
                with archive.open("rb") as image:
                    assert lab.node(node.name).pipe([*CTR, "-"], stdin=image.fileno()) == 0
        argv = [*TESTBED, "kubeconfig", CLUSTER, "-o", str(kubeconfig)]
        with subprocess.Popen(argv, stderr=subprocess.PIPE) as serving:
            assert serving.stderr
            serving.stderr.readline()  # it serves
            os.environ["KUBECONFIG"] = str(kubeconfig)
            try:
                yield
            finally:
                serving.terminate()
    finally:
        testbed("down", CLUSTER)


def testbed(*words: str) -> float:
    """Run a command and return its seconds."""
    began = time.monotonic()
    subprocess.run([*TESTBED, *words, "-q"], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


def figures(pair: str) -> dict[str, float]:
    """Return the seconds of one round."""
    found = {"pair": testbed("up", pair)}
    with LiveLab(Lab("pair", settings()).context()) as lab:
        node = lab.node("a")
        node.run(["true"])
        found["command"] = statistics.median(seconds_of(node) for _ in range(COMMANDS))
    found |= removed("pair")
    found["pods"] = answered("--provider", "kubernetes")
    found |= {f"{name} {TWO_NODE}": took for name, took in removed(TWO_NODE).items()}
    found["namespaces"] = answered()
    testbed("down", TWO_NODE)
    found["ratio"] = found["pods"] / found["namespaces"]
    return found


def seconds_of(node: Any) -> float:
    began = time.monotonic()
    node.run(["true"])
    return time.monotonic() - began


def answered(*options: str) -> float:
    """Create the lab, and return the seconds until a container has another's page."""
    began = time.monotonic()
    testbed("up", TWO_NODE, *options)
    argv = [*TESTBED, "exec", "-l", TWO_NODE, "node1/container-1", "--", *PAGE]
    said = subprocess.run(argv, check=True, stdout=subprocess.PIPE).stdout
    assert b"container-2" in said, said
    return time.monotonic() - began


def removed(lab: str) -> dict[str, float]:
    """Remove a lab; return the seconds until the cluster was told, and until nothing is left."""
    api = Cluster(os.environ["KUBECONFIG"], "")
    assert objects(api, lab), "there is no such lab"  # the client is loaded now
    began = time.monotonic()
    found: dict[str, float] = {}

    def look() -> None:
        found["accepted"] = (
            time.monotonic() - began if until(lambda: ending(api, lab), END) else END
        )

    looking = threading.Thread(target=look)
    looking.start()
    testbed("down", lab)
    looking.join()
    assert until(lambda: not objects(api, lab), END), "the lab is still there"
    return found | {"gone": time.monotonic() - began}


def objects(api: Cluster, lab: str) -> list[dict[str, Any]]:
    """Return the namespaces and Pods of a lab."""
    kinds = ("namespaces", "pods")
    return [one for kind in kinds for one in api.items("list", f"/api/v1/{kind}", {LABEL: lab})]


def ending(api: Cluster, lab: str) -> bool:
    """Tell whether the lab's namespace is being removed, or is gone."""
    there = api.items("list", "/api/v1/namespaces", {LABEL: lab})
    return all("deletionTimestamp" in one["metadata"] for one in there)


def show(rounds: list[dict[str, float]]) -> None:
    print(f"Labs of Pods on {CLUSTER}, median of {len(rounds)}:")
    for name in rounds[0]:
        wanted = WANTED.get(name.removesuffix(f" {TWO_NODE}"))
        most = f" (at most {wanted:g})" if wanted else ""
        unit = "" if name == "ratio" else " s"
        print(f"  {name:<18} {statistics.median(one[name] for one in rounds):7.3f}{unit}{most}")


if __name__ == "__main__":
    sys.exit(main())
