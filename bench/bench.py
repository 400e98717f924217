"""Times ``testbed`` against a floor, in pairs within one run, and prints the ratios.

    bench/bench.py [--rounds N] [--nodes 2,10,30] [--growth 2,10,30,100] [--idle 2,100]
                   [--plain 100,250] [--containerlab N] [--json FILE]

The floor (``floor.sh``) starts the same daemons with a bare shell script.
Rounds alternate, so a machine that is busy for a while slows both; what counts
is the ratio, not the seconds.

Growth is measured in processor time, of all that runs in the lab and of testbed
itself: other programs hardly change it, where seconds depend on them.  A line
through the labs of ten nodes or more gives the price of one more node; that of
the largest lab against the line through the others tells whether growth is
linear.  An idle lab is measured for as long as the interval at which its
flannelds look at their rules, so that each has looked once.

Plain nodes have a network and no software.  They are started with the limit of
open files that a login has.

A lab of containerlab's own file is timed against ``containerlab deploy`` and ``destroy`` of this
file in the lab's cell, which runs then; two-node of containerlab against namespace nodes.
"""

from __future__ import annotations

import argparse
import io
import ipaddress
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from testbed.artifacts import Store
from testbed.cli.common import tell_artifact
from testbed.nodes.containerlab.cell import Cell
from testbed.nodes.netns import cgroups
from testbed.nodes.netns.node import NetnsNode
from testbed.roles.flannel.daemon import resync
from testbed.settings import settings

HERE = Path(__file__).resolve().parent
TESTBED = [sys.executable, "-m", "testbed"]
CGROUP = "testbed-floor"
WANTED = {2: 1.2, 10: 1.0, 30: 0.75}
UP_WANTED = {100: 45.0}  # seconds, on two quiet cores
PLAIN_WANTED = {250: 8.0}  # seconds, on two quiet cores
FILES = 1024  # soft limit of open files of a login
IDLE_WANTED = {2: 0.01, 100: 0.1}  # cores
GRAPH_WANTED = {2: 0.5, 30: 1.0}  # seconds of `testbed graph`, on two quiet cores
WALK_WANTED = {2: 1.0, 30: 3.0}  # seconds of a walk there and back
GROWTH_WANTED = 1.5  # processor time a node, as a multiple of that in a lab of GROWTH_FROM nodes
GROWTH_FROM = 10
SETTLE = 10.0  # seconds until a new lab is idle
UP_MORE_WANTED = 0.6  # seconds of `up` of containerlab's file more than of its deployment
CELL_WANTED = 2.5  # time of two-node by containerlab, as a multiple of that of namespace nodes
CELL_DOWN_WANTED = 0.5  # seconds
EMPTY = """\
name: bench-clab
topology:
  defaults: {kind: linux, image: nginx, entrypoint: sleep, cmd: infinity}
  nodes: {left: {}, right: {}}
  links:
  - endpoints: ["left:eth1", "right:eth1"]
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--nodes", default="2,10,30")
    parser.add_argument("--growth", default="2,10,30,100", help="none: an empty string")
    parser.add_argument("--idle", default="2,100", help="of those of --growth")
    parser.add_argument("--plain", default="100,250", help="none: an empty string")
    parser.add_argument("--containerlab", type=int, metavar="N", help="rounds; default: --rounds")
    parser.add_argument("--backend", default="vxlan", choices=["udp", "vxlan", "host-gw"])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("bench: needs root", file=sys.stderr)
        return 3
    store = Store(progress=tell_artifact)
    with tempfile.TemporaryDirectory(prefix="testbed-bench-") as folder:
        os.environ["TESTBED_STATE"] = f"{folder}/state"
        found: dict[str, object] = {"start": starts()}
        for nodes in numbers(options.nodes):
            rounds = [
                pair(store, Path(folder), nodes, options.backend) for _ in range(options.rounds)
            ]
            found[f"{nodes} nodes"] = show(nodes, rounds)
        times = options.rounds if options.containerlab is None else options.containerlab
        if times:
            found["containerlab"] = show_containerlab(containerlab(store, Path(folder), times))
        base, used = 0.0, {}
        for nodes in numbers(options.growth):
            grown = growth(nodes, options.backend, idle=nodes in numbers(options.idle))
            base = grown["processor a node"] if nodes <= GROWTH_FROM else base
            used[nodes] = grown["processor a node"] * nodes
            found[f"growth, {nodes} nodes"] = grown
            show_growth(nodes, grown, base)
        show_line({nodes: seconds for nodes, seconds in used.items() if nodes >= GROWTH_FROM})
        for nodes in numbers(options.plain):
            found[f"{nodes} plain nodes"] = plain(Path(folder), nodes)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",") if word]


def growth(nodes: int, backend: str, *, idle: bool) -> dict[str, float]:
    """Figures of one lab: seconds of ``up``, ``graph`` and ``walk``, idle share of a core."""
    lab = f"bench-{nodes}"
    up = [*TESTBED, "up", "two-node", "--nodes", str(nodes), "--backend", backend]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    try:
        wall = timed([*up, "--name", lab, "-q"])
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        own = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        found = {"up": wall, "own processor": own, "lab processor": processor(lab)}
        found["processor a node"] = (own + found["lab processor"]) / nodes
        walk = [*TESTBED, "walk", "-l", lab, "container-1", "container-2", "--reply"]
        found["walk"] = statistics.median(timed(walk) for _ in range(3))
        found["graph"] = statistics.median(timed([*TESTBED, "graph", lab]) for _ in range(3))
        if idle:
            time.sleep(SETTLE)
            found["idle"] = idle_share(lab, float(resync(nodes, slow=False).partition("=")[2]))
    finally:
        timed([*TESTBED, "down", lab])
    return found


def idle_share(lab: str, seconds: float) -> float:
    """Return the processor time of an idle lab, as a share of one core."""
    used, began = processor(lab), time.monotonic()
    time.sleep(seconds)
    return (processor(lab) - used) / (time.monotonic() - began)


def processor(lab: str) -> float:
    """Return the processor seconds, user and system, of a whole lab so far."""
    state = Path(os.environ["TESTBED_STATE"]).resolve()
    below = Path(cgroups.TOP, cgroups.folder_name(lab, state))
    for hierarchy in cgroups.hierarchies():
        if "cpuacct" in hierarchy.controllers:  # cgroup-v1/cpuacct.rst: nanoseconds
            return int((hierarchy.mount / below / "cpuacct.usage").read_text()) / 1e9
    for hierarchy in cgroups.hierarchies():
        if hierarchy.version == 2:  # cgroup-v2.rst: there whatever controllers are
            words = (hierarchy.mount / below / "cpu.stat").read_text().split()
            return int(words[words.index("usage_usec") + 1]) / 1e6
    sys.exit("bench: no cgroup hierarchy here counts processor time")


def show_growth(nodes: int, grown: dict[str, float], base: float) -> None:
    limit = f" (at most {UP_WANTED[nodes]:.0f} on two quiet cores)" if nodes in UP_WANTED else ""
    words = f"{nodes} nodes: up {grown['up']:.2f} s{limit}, "
    words += f"{grown['processor a node']:.2f} s of processor time a node"
    if nodes > GROWTH_FROM and base:
        words += f", {grown['processor a node'] / base:.2f} times that of {GROWTH_FROM} nodes"
        words += f" (at most {GROWTH_WANTED})"
    print(words)
    wanted = f" (at most {GRAPH_WANTED[nodes]})" if nodes in GRAPH_WANTED else ""
    print(f"{nodes} nodes: graph {grown['graph']:.2f} s{wanted}")
    wanted = f" (at most {WALK_WANTED[nodes]})" if nodes in WALK_WANTED else ""
    print(f"{nodes} nodes: walk {grown['walk']:.2f} s{wanted}")
    if "idle" in grown:
        wanted = f" (at most {IDLE_WANTED[nodes]})" if nodes in IDLE_WANTED else ""
        print(f"{nodes} nodes: idle at {grown['idle']:.4f} core{wanted}")


def show_line(used: dict[int, float]) -> None:
    """Print the line through the processor seconds of labs, by their nodes, and how they fit."""
    if len(used) < 3:  # two points are always on a line
        return
    per_node, fixed = statistics.linear_regression(list(used), list(used.values()))
    off = {nodes: seconds / (fixed + per_node * nodes) - 1 for nodes, seconds in used.items()}
    words = ", ".join(f"{nodes} nodes {100 * by:+.0f} %" for nodes, by in off.items())
    print(f"line: {fixed:.1f} s and {per_node:.2f} s of processor time a node; off it: {words}")
    *smaller, largest = sorted(used)
    if len(smaller) > 1:
        slope, start = statistics.linear_regression(smaller, [used[one] for one in smaller])
        ratio = used[largest] / (start + slope * largest)
        print(f"{largest} nodes: {ratio:.2f} times the line through the smaller labs")


def plain(folder: Path, nodes: int) -> dict[str, float]:
    """Create and remove a lab of nodes without software, at a login's limit of open files."""
    lab = f"bench-plain-{nodes}"
    subnet = ipaddress.IPv4Network("10.64.0.0/16")
    lines = [f"  n{i}: {{networks: {{lan: {subnet[i]}}}}}" for i in range(1, nodes + 1)]
    file = folder / f"{lab}.yaml"
    head = [f"name: {lab}", f"networks: {{lan: {{subnet: {subnet}}}}}", "nodes:"]
    file.write_text("\n".join([*head, *lines]) + "\n")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, limits[1]))
    try:
        up = timed([*TESTBED, "up", str(file), "-q"])
        used = processor(lab)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        down = timed([*TESTBED, "down", lab])
    limit = (
        f" (at most {PLAIN_WANTED[nodes]:.0f} on two quiet cores)" if nodes in PLAIN_WANTED else ""
    )
    print(
        f"{nodes} plain nodes: up {up:.2f} s{limit}, {used:.2f} s of processor time of theirs, "
        f"down {down:.2f} s"
    )
    return {"up": up, "lab processor": used, "down": down}


def starts() -> dict[str, float]:
    """Return the wall seconds of commands without an effect: median of five."""
    found = {}
    for argument in ("--version", "--help"):
        found[argument] = statistics.median(timed([*TESTBED, argument]) for _ in range(5))
        print(f"testbed {argument}: {found[argument]:.3f} s (at most 0.15)")
    return found


def timed(argv: list[str]) -> float:
    began = time.monotonic()
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


def pair(store: Store, folder: Path, nodes: int, backend: str) -> dict[str, float]:
    """Run one round: the floor, then testbed up, status and down, with its memory."""
    floor = run_floor(store, folder / "floor", nodes, backend)
    lab = f"bench-{nodes}"
    up = [*TESTBED, "up", "two-node", "--nodes", str(nodes), "--backend", backend]
    try:
        taken = timed([*up, "--name", lab, "-q"])
        status = timed([*TESTBED, "status", lab])
        memory = own_memory() / (nodes + 2)  # with the outside node and the fabric
    finally:
        down = timed([*TESTBED, "down", lab])
    return {"floor": floor, "up": taken, "status": status, "down": down, "memory": memory}


def containerlab(store: Store, folder: Path, times: int) -> list[dict[str, float]]:
    """Run rounds of a user's file and of two-node; a first one fills the cache and is left out."""
    file = folder / "bench.clab.yml"
    file.write_text(EMPTY)
    rounds = []
    for _ in range(times + 1):
        own = two_node("containerlab")
        bare = two_node("netns")
        found = {"two-node": own["up"], "two-node down": own["down"], "netns": bare["up"]}
        rounds.append(found | users_file(store, file))
    return rounds[1:]


def two_node(provider: str) -> dict[str, float]:
    lab = f"bench-{provider}"
    try:
        up = timed([*TESTBED, "up", "two-node", "--provider", provider, "--name", lab, "-q"])
    finally:
        down = timed([*TESTBED, "down", lab])
    return {"up": up, "down": down}


def users_file(store: Store, file: Path) -> dict[str, float]:
    """Run ``up`` and ``down`` of a file, and between them containerlab itself in the same cell."""
    lab = "bench-clab"
    try:
        up = timed([*TESTBED, "up", str(file), "-q"])
        fabric = settings().providers["containerlab"].fabric(lab)
        assert isinstance(fabric, NetnsNode)
        cell = Cell(fabric, store)
        began = time.monotonic()
        cell.destroy(str(file))
        middle = time.monotonic()
        cell.deploy(str(file))
        ended = time.monotonic()
    finally:
        down = timed([*TESTBED, "down", lab])
    return {"up": up, "down": down, "destroy": middle - began, "deploy": ended - middle}


def show_containerlab(rounds: list[dict[str, float]]) -> dict[str, object]:
    medians = {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
    more = [r["up"] - r["deploy"] for r in rounds]
    ratios = [r["two-node"] / r["netns"] for r in rounds]
    difference, ratio = statistics.median(more), statistics.median(ratios)
    print(
        f"containerlab's file of 2 empty nodes: up {medians['up']:.2f} s, containerlab deploy "
        f"{medians['deploy']:.2f} s, {difference:.2f} s more ({spread(more)}, at most "
        f"{UP_MORE_WANTED}); down {medians['down']:.2f} s (at most {CELL_DOWN_WANTED}), "
        f"containerlab destroy {medians['destroy']:.2f} s"
    )
    print(
        f"two-node by containerlab: up {medians['two-node']:.2f} s, by namespace nodes "
        f"{medians['netns']:.2f} s, ratio {ratio:.2f} ({spread(ratios)}, at most {CELL_WANTED}); "
        f"down {medians['two-node down']:.2f} s (at most {CELL_DOWN_WANTED})"
    )
    return {"more": difference, "ratio": ratio, "ratios": ratios, **medians}


def spread(values: Iterable[float]) -> str:
    return " ".join(f"{value:.2f}" for value in values)


def run_floor(store: Store, work: Path, nodes: int, backend: str) -> float:
    programs = work / "bin"
    programs.mkdir(parents=True)
    for name in ("etcd", "etcdctl", "flanneld"):
        (programs / name).symlink_to(store.binary(name))
    path = ":".join([str(programs), *map(str, store.path_dirs("docker"))])
    (work / "image.tar").write_bytes(small_image())
    argv = ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--net", "bash"]
    argv += [str(HERE / "floor.sh"), str(nodes), backend, path, str(work)]
    try:
        done = subprocess.run(
            argv, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=300
        )
        return float(done.stdout.split()[-1])
    finally:
        shutil.rmtree(work, ignore_errors=True)
        remove_cgroups(Path("/sys/fs/cgroup").glob(f"*/{CGROUP}"))


def small_image() -> bytes:
    """Create a root file system with busybox only, as small as the floor's image."""
    busybox = shutil.which("busybox")
    if busybox is None:
        sys.exit("bench: needs a static busybox: apt-get install busybox-static")
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for folder in ("bin", "etc", "tmp", "proc", "sys", "dev", "root"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        tar.add(busybox, "bin/busybox")
        for applet in ("sh", "mkdir", "echo", "httpd"):
            entry = tarfile.TarInfo(f"bin/{applet}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(entry)
    return out.getvalue()


def remove_cgroups(folders: Iterable[Path]) -> None:
    """Remove groups, with those below them, as soon as their processes have ended."""
    deadline = time.monotonic() + 10
    for folder in folders:
        for path, _, _ in os.walk(folder, topdown=False):
            while True:
                try:
                    Path(path).rmdir()
                    break
                except OSError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.01)


def own_memory() -> float:
    """Return the resident bytes of all processes that testbed itself keeps running."""
    total = 0
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            if status.with_name("comm").read_text().strip() == "testbed-init":
                lines = status.read_text().splitlines()
                total += sum(int(x.split()[1]) * 1024 for x in lines if x.startswith("VmRSS"))
        except OSError:
            continue
    return total


def show(nodes: int, rounds: list[dict[str, float]]) -> dict[str, object]:
    ratios = [r["up"] / r["floor"] for r in rounds]
    medians = {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
    ratio = statistics.median(ratios)
    wanted = f", at most {WANTED[nodes]}" if nodes in WANTED else ""
    print(
        f"{nodes} nodes: up {medians['up']:.2f} s, floor {medians['floor']:.2f} s, "
        f"ratio {ratio:.2f} ({spread(ratios)}{wanted}); status {medians['status']:.2f} s, "
        f"down {medians['down']:.2f} s, own memory {medians['memory'] / 1e6:.2f} MB a node"
    )
    return {"ratio": ratio, "ratios": ratios, **medians}


if __name__ == "__main__":
    sys.exit(main())
