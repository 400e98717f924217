"""`testbed verify` on real labs: every claim ends as expected, and a broken lab is found out."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.claims.catalogue import claims

ROOT = Path(__file__).resolve().parents[2]
LEAST = 60  # claims that must be confirmed on the shipped labs


def testbed(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "testbed", *arguments],
        env={**os.environ, **env}, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip


testbed.__test__ = False  # type: ignore[attr-defined]  # a helper, not a test


@pytest.fixture
def two_node() -> Iterator[str]:
    done = testbed("up", "two-node", "-q")
    assert done.returncode == 0, done.stderr
    yield "two-node"
    assert testbed("down", "two-node", "-q").returncode == 0


def test_every_claim_ends_as_expected_on_every_lab(tmp_path: Path) -> None:
    out = tmp_path / "all.json"
    done = testbed("verify", "--all", "-q", "--json", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    labs = json.loads(out.read_text())
    verdicts: dict[str, set[str]] = {}
    for lab in labs:
        assert lab["claims"], lab["lab"]
        for claim in lab["claims"]:
            assert claim["as_expected"], (lab["lab"], claim["id"], claim["problem"])
            assert claim["verdict"] == "not here" or claim["evidence"], claim["id"]
            verdicts.setdefault(claim["id"], set()).add(claim["verdict"])
    decided = {name for name, found in verdicts.items() if found - {"not here"}}
    assert sum("confirmed" in found for found in verdicts.values()) >= LEAST
    assert decided == set(claims()), set(claims()) - decided
    assert json.loads(testbed("ls", "--json").stdout) == []


def test_a_broken_lab_is_found_out(two_node: str) -> None:
    broken = testbed(
        "exec", "node1", "--", "bridge", "fdb", "flush", "dev", "flannel.1"
    )  # fmt: skip
    if broken.returncode != 0:  # an older iproute2 knows no flush
        entries = json.loads(testbed("exec", "node1", "--", "bridge", "-j", "fdb").stdout)
        (entry,) = [e for e in entries if e["ifname"] == "flannel.1" and "dst" in e]
        argv = ["bridge", "fdb", "del", entry["mac"], "dev", "flannel.1", "dst", entry["dst"]]
        assert testbed("exec", "node1", "--", *argv).returncode == 0
    done = testbed("verify", two_node, "--claim", "flannel-vxlan-fdb-entry")
    assert done.returncode == 1
    assert "flannel-vxlan-fdb-entry" in done.stdout
    assert "expected: confirmed" in done.stdout
    assert "bridge -j" in done.stdout, "the evidence is shown"


def test_selections_and_files(two_node: str, tmp_path: Path) -> None:
    junit, data = tmp_path / "junit.xml", tmp_path / "data.json"
    done = testbed(
        "verify", two_node, "--claim", "bridge-docker0-is-linux-bridge",
        "--junit", str(junit), "--json", str(data),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert [c["id"] for c in json.loads(data.read_text())["claims"]] == [
        "bridge-docker0-is-linux-bridge"
    ]
    assert len(list(ET.parse(junit).iter("testcase"))) == 1
    unknown = testbed("verify", two_node, "--claim", "bridge-docker0-is-linux-brigde")
    assert unknown.returncode == 2
    assert "did you mean bridge-docker0-is-linux-bridge" in unknown.stderr
    assert testbed("verify", two_node, "--document", "999").returncode == 2
    assert testbed("verify", two_node, "-k", "nothing_is_called_so").returncode == 2
    assert testbed("verify", two_node, "--claim", "veth-direct-ping").returncode == 2


def test_the_examples_of_the_documentation_work(two_node: str, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "suites.md").read_text()
    (example,) = re.findall(r"```python\n# tests/network/test_web.py\n(.*?)```", text, re.DOTALL)
    own = tmp_path / "test_web.py"
    own.write_text(example)
    done = testbed("verify", two_node, str(own))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 other checks, 0 failed" in done.stdout
    argv = [sys.executable, "-m", "pytest", "-q", str(own), "--testbed-lab", two_node]
    plain = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert plain.returncode == 0, plain.stdout
    assert "3 passed" in plain.stdout
    own.write_text(example + "\n\ndef test_that_fails(lab):\n    assert lab.name == 'other'\n")
    done = testbed("verify", two_node, str(own))
    assert done.returncode == 1
    assert "test_that_fails" in done.stdout


def test_without_a_lab_a_test_is_skipped_with_its_reason(tmp_path: Path) -> None:
    own = tmp_path / "test_own.py"
    own.write_text("def test_it(lab):\n    raise AssertionError\n")
    argv = [sys.executable, "-m", "pytest", "-rs", str(own)]
    env = {name: value for name, value in os.environ.items() if name != "TESTBED_LAB"}
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=tmp_path, env=env)
    assert done.returncode == 0
    assert "no lab was named" in done.stdout
