"""`testbed verify` on real labs: every claim ends as expected, and a broken lab is found out."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest
from catalogues import claims, of_a_cluster, shipped

from testbed import machine_state
from testbed.report.data import VERSION
from testbed.settings import settings
from testbed.suites.everything import NO_LAB

ROOT = Path(__file__).resolve().parents[2]
LEAST = 140  # claims that must be confirmed on the shipped labs
LEAST_WITHOUT = 100  # without clusters
#: The long form is `verify --all` as it is. The short form leaves clusters, which take as long as
#: all the rest, to tests/k8s, and claims without a lab to tests/unit.
LONG = "TESTBED_LONG" in os.environ
LATE = "001"  # a document whose labs are not among the first


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


@pytest.mark.seconds(60)
def test_every_claim_ends_as_expected_on_every_lab(tmp_path: Path) -> None:
    out = tmp_path / "all.json"
    some = [wanted.name for wanted in shipped().labs if LONG or not wanted.only]
    chosen = [] if LONG else [word for name in some for word in ("--lab", name)]
    done = testbed("verify", "--all", *chosen, "-q", "--json", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    run = json.loads(out.read_text())
    assert (run["version"], run["complete"], run["interrupted"]) == (VERSION, LONG, False)
    assert [lab["lab"] for lab in run["labs"]] == [*([NO_LAB] if LONG else []), *some]
    verdicts: dict[str, set[str]] = {}
    clusters = {wanted.name for wanted in shipped().labs if wanted.only}
    for lab in run["labs"]:
        if lab["absent"]:  # its software takes long to make, and nobody has asked for it yet
            assert lab["lab"] in clusters
            assert {finding["verdict"] for finding in lab["findings"]} == {"skipped"}
            continue
        assert lab["findings"], lab["lab"]
        assert lab["topology"] or lab["lab"] == NO_LAB
        for finding in lab["findings"]:
            assert finding["as_expected"], (lab["lab"], finding["claim"], finding["problem"])
            assert finding["verdict"] == "skipped" or finding["evidence"], finding["claim"]
            verdicts.setdefault(finding["claim"], set()).add(finding["verdict"])
    testable = {claim.id for claim in claims().values() if claim.is_testable}
    testable -= {c.id for c in claims().values() if of_a_cluster(c)}
    testable -= {c.id for c in claims().values() if "none" in c.needs and not LONG}
    decided = {name for name, found in verdicts.items() if found - {"skipped"}}
    assert testable <= decided, testable - decided
    ids = [claim["id"] for claim in run["claims"]]
    assert ids == [name for name in claims() if LONG or name in ids]
    assert testable <= set(ids)
    least = LEAST if LONG else LEAST_WITHOUT
    assert sum(claim["verdict"] == "confirmed" for claim in run["claims"]) >= least
    assert json.loads(testbed("ls", "--json").stdout) == []


class Verifying:
    """A `testbed verify --all` that goes on, and what it says."""

    def __init__(self, *arguments: str) -> None:
        self._before = machine_state.snapshot(settings().state.path)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "testbed", "verify", "--all", "-v", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # a group of its own, as a terminal gives
        )

    def wait_for_a_verdict(self) -> str:
        """Wait until a lab has decided a claim; its name."""
        assert self._process.stdout
        for line in self._process.stdout:
            found = re.match(r"(\S+)  (confirmed|conditional|contradicted) ", line)
            if found and found[1] != "no":  # no lab
                return found[1]
        raise AssertionError("it has ended without a verdict")

    def press_ctrl_c(self) -> None:
        os.killpg(self._process.pid, signal.SIGINT)

    def kill_a_lab_process(self) -> None:
        """Kill one of those that it has forked."""
        children = [
            int(stat.parent.name)
            for stat in Path("/proc").glob("[0-9]*/stat")
            if _parent(stat) == self._process.pid
        ]
        os.kill(min(children), signal.SIGKILL)

    def end(self) -> tuple[int, str]:
        """Its exit status and the rest of what it says; nothing of it may be left."""
        said, _ = self._process.communicate(timeout=300)
        assert json.loads(testbed("ls", "--json").stdout) == []
        left = machine_state.left(self._before, seconds=60, below=settings().state.path)
        assert left == []
        return self._process.returncode, said


def _parent(stat: Path) -> int:
    try:
        return int(stat.read_text().rpartition(")")[2].split()[1])  # proc(5): state, ppid
    except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
        return 0


@pytest.mark.thorough
@pytest.mark.seconds(20)
def test_ctrl_c_in_the_middle_writes_what_there_is_and_the_rest_can_be_run(tmp_path: Path) -> None:
    data, junit = tmp_path / "all.json", tmp_path / "all.xml"
    verifying = Verifying("--json", str(data), "--junit", str(junit))
    verifying.wait_for_a_verdict()
    verifying.press_ctrl_c()
    status, said = verifying.end()
    assert status == 130, said
    assert "; interrupted (" in said
    assert "Traceback" not in said
    run = json.loads(data.read_text())
    assert (run["complete"], run["interrupted"]) == (True, True)
    labs = [lab for lab in run["labs"] if lab["lab"] != NO_LAB]
    assert any(lab["findings"] for lab in labs)
    assert any(lab["interrupted"] for lab in labs)
    assert [lab["error"] for lab in labs] == [""] * len(labs)
    decided = {finding["claim"] for lab in run["labs"] for finding in lab["findings"]}
    undecided = {claim["id"] for claim in run["claims"] if claim["verdict"] is None}
    testable = {claim.id for claim in claims().values() if claim.is_testable}
    assert undecided == testable - decided
    assert undecided, "it was in the middle"
    names = {case.get("name") for case in ET.parse(junit).iter("testcase")}  # our own
    assert names == decided | {check["name"] for lab in run["labs"] for check in lab["checks"]}

    # What is missing is run, and no more of it than is asked for.
    missing = {name for name in undecided if claims()[name].document == LATE}
    assert missing, "the labs of this document are among the last"
    again = testbed("verify", "--all", "--rerun-failed", "--document", LATE, "--json", str(data))
    assert again.returncode == 0, again.stdout + again.stderr
    run = json.loads(data.read_text())
    assert {claim["id"] for claim in run["claims"]} == missing
    assert all(claim["as_expected"] for claim in run["claims"])
    done = testbed("verify", "--all", "--rerun-failed")
    assert (done.returncode, done.stdout) == (0, "nothing failed in the last run\n")


@pytest.mark.thorough
@pytest.mark.seconds(10)
def test_a_lab_process_that_is_killed_leaves_nothing_and_the_others_go_on(tmp_path: Path) -> None:
    data = tmp_path / "all.json"
    verifying = Verifying("--document", LATE, "--lab", "docker-*", "--json", str(data))
    verifying.wait_for_a_verdict()
    verifying.kill_a_lab_process()
    status, said = verifying.end()
    assert status == 1, said
    labs = json.loads(data.read_text())["labs"]
    assert sorted(lab["error"] for lab in labs) == ["", "its process ended with status -9"]
    (other,) = [lab for lab in labs if not lab["error"]]
    mine = [one for one in claims().values() if one.document == LATE]
    without_a_cluster = [one for one in mine if not of_a_cluster(one)]
    assert len(other["findings"]) == len(without_a_cluster)
    assert "1 lab failed" in said


def test_a_broken_lab_is_found_out(two_node: str) -> None:
    broken = testbed("exec", "node1", "--", "bridge", "fdb", "flush", "dev", "flannel.1")
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
    run = json.loads(data.read_text())
    (claim,) = run["claims"]
    (lab,) = run["labs"]
    (finding,) = lab["findings"]
    assert claim["id"] == finding["claim"] == "bridge-docker0-is-linux-bridge"
    assert (claim["verdict"], claim["as_expected"]) == ("confirmed", True)
    assert (lab["lab"], lab["topology"]["name"]) == (two_node, two_node)
    assert lab["facts"]["backend"] == "vxlan"
    assert lab["versions"]["docker"]
    assert len(list(ET.parse(junit).iter("testcase"))) == 1
    unknown = testbed("verify", two_node, "--claim", "bridge-docker0-is-linux-brigde")
    assert unknown.returncode == 2
    assert "did you mean 'bridge-docker0-is-linux-bridge'" in unknown.stderr
    assert testbed("verify", two_node, "--document", "999").returncode == 2
    assert testbed("verify", two_node, "-k", "nothing_is_called_so").returncode == 5
    assert testbed("verify", two_node, "--claim", "veth-direct-ping").returncode == 5


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


def test_without_a_lab_nothing_is_tested_and_that_is_not_green(tmp_path: Path) -> None:
    own = tmp_path / "test_own.py"
    own.write_text("def test_it(lab):\n    raise AssertionError\n")
    argv = [sys.executable, "-m", "pytest", "-rs", str(own)]
    env = {name: value for name, value in os.environ.items() if name != "TESTBED_LAB"}
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=tmp_path, env=env)
    assert done.returncode == 5
    assert "no lab is named" in done.stdout
