"""Times labs of virtual machines, and prints where the time goes.

    bench/virtual.py [--rounds N] [--providers qemu,vagrant] [--json FILE]

Box and snapshots are made beforehand, by a round that does not count.  With the
seconds come the processor's: on a machine that is busy, or where machines are
emulated, these say more.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from testbed.vm import accel

TESTBED = [sys.executable, "-m", "testbed"]
LAB = "two-node"
WANTED = {
    ("qemu", "ssh"): 5.0, ("qemu", "page"): 30.0, ("qemu", "down"): 3.0,
    ("vagrant", "ssh"): 45.0, ("vagrant", "down"): 15.0,
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--providers", default="qemu,vagrant")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("bench: needs root", file=sys.stderr)
        return 3
    found: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="testbed-bench-") as folder:
        os.environ["TESTBED_STATE"] = f"{folder}/state"
        for provider in options.providers.split(","):
            one(provider, quiet=True)
            found[provider] = [one(provider) for _ in range(options.rounds)]
            show(provider, found[provider])
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def one(provider: str, *, quiet: bool = False) -> dict[str, float]:
    """Run one round: create two machines, inspect and remove them."""
    began = time.monotonic()
    try:
        argv = [*TESTBED, "up", LAB, "--provider", provider, "--json"]
        up = json.loads(subprocess.run(argv, check=True, stdout=subprocess.PIPE).stdout)
        taken = time.monotonic() - began
        work = processor()
    finally:
        began = time.monotonic()
        subprocess.run([*TESTBED, "down", LAB, "-q"], check=True)
    down = time.monotonic() - began
    ends = {step["name"]: step["began"] + step["seconds"] for step in up["steps"]}
    times = {
        "ssh": max(ends["node node1"], ends["node node2"]),
        "page": taken,
        "down": down,
        "processor": sum(work),
    }
    if not quiet:
        print(f"{provider}: where the time went")
        for step in sorted(up["steps"], key=lambda step: -step["seconds"])[:8]:
            if step["seconds"] >= 0.5:
                print(f"  {step['seconds']:6.2f} s from {step['began']:6.2f}  {step['name']}")
    return times


def processor() -> list[float]:
    """Return the processor seconds of each of our QEMU processes so far."""
    ticks = os.sysconf("SC_CLK_TCK")
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes()
            fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        ours = b"/var/lib/testbed/" in words or b"/var/lib/libvirt/" in words
        if words.partition(b"\0")[0].endswith(accel.QEMU.encode()) and ours:
            found.append((int(fields[11]) + int(fields[12])) / ticks)
    return found


def show(provider: str, rounds: list[dict[str, float]]) -> None:
    """Print the median and spread of each figure, and the requirement."""
    labels = {
        "ssh": "ssh on both",
        "page": "both pages",
        "down": "down",
        "processor": "processor, both machines",
    }
    for key, label in labels.items():
        values = [one[key] for one in rounds]
        wanted = WANTED.get((provider, key))
        beside = f"  (at most {wanted:g} on a quiet machine)" if wanted else ""
        print(
            f"{provider:8} {label:26} {statistics.median(values):7.2f} s"
            f"  {min(values):.2f} to {max(values):.2f}{beside}"
        )


if __name__ == "__main__":
    sys.exit(main())
