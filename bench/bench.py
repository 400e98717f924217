"""Times ``testbed`` against a floor, in pairs within one run, and prints the ratios.

    bench/bench.py [--rounds N] [--nodes 2,10,30] [--json FILE]

The floor (``floor.sh``) starts the same daemons with a bare shell script.
Rounds alternate, so a machine that is busy for a while slows both; what counts
is the ratio, not the seconds.
"""

from __future__ import annotations

import argparse
import io
import json
import os
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

HERE = Path(__file__).resolve().parent
TESTBED = [sys.executable, "-m", "testbed"]
CGROUP = "testbed-floor"
WANTED = {2: 1.2, 10: 1.0, 30: 0.75}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--nodes", default="2,10,30")
    parser.add_argument("--backend", default="vxlan", choices=["udp", "vxlan", "host-gw"])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("bench: needs root", file=sys.stderr)
        return 3
    store = Store(progress=lambda name, words: print(f"  {name}: {words}", file=sys.stderr))
    with tempfile.TemporaryDirectory(prefix="testbed-bench-") as folder:
        os.environ["TESTBED_STATE"] = f"{folder}/state"
        found: dict[str, object] = {"start": starts()}
        for nodes in map(int, options.nodes.split(",")):
            rounds = [
                pair(store, Path(folder), nodes, options.backend) for _ in range(options.rounds)
            ]
            found[f"{nodes} nodes"] = show(nodes, rounds)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def starts() -> dict[str, float]:
    """Wall seconds of the commands that touch nothing: median of five."""
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
    """One round: the floor, then testbed up, status and down, with the memory of its own."""
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
    """A root file system with nothing but busybox, as small as the floor's image was."""
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
    """Bytes of resident memory of all processes that testbed itself leaves running."""
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
    spread = " ".join(f"{r:.2f}" for r in ratios)
    print(
        f"{nodes} nodes: up {medians['up']:.2f} s, floor {medians['floor']:.2f} s, "
        f"ratio {ratio:.2f} ({spread}{wanted}); status {medians['status']:.2f} s, "
        f"down {medians['down']:.2f} s, own memory {medians['memory'] / 1e6:.2f} MB a node"
    )
    return {"ratio": ratio, "ratios": ratios, **medians}


if __name__ == "__main__":
    sys.exit(main())
