"""Whatever a topology may be, everything that shows it does so (hypothesis)."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from catalogues import claims, selection, shipped
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from report_runs import EVIL, link, node
from test_html_report import Page
from test_topology_properties import LONG, QUICK, loaded, topologies

from testbed import cli, pytest_checks
from testbed.claims.model import Evidence, Finding, Measurement
from testbed.cli import common
from testbed.exports.base import dump
from testbed.labs.lab import Lab
from testbed.labs.live import LiveLab
from testbed.report import picture, terminal
from testbed.report.data import to_dict
from testbed.report.html import render
from testbed.report.junit import to_xml
from testbed.roles.docker import Docker
from testbed.roles.flannel.section import FlannelSection
from testbed.suites.model import Check, LabRun, Results, Run
from testbed.testing.fakes import Bench
from testbed.topology import Topology, load_text
from testbed.topology.variables import escaped

#: Without shrinking, which would take minutes: what is generated is small as it is.
FEW = settings(QUICK, max_examples=50 if LONG else 5, phases=[Phase.explicit, Phase.generate])
ONE = next(c.id for c in claims().values() if c.expect == "confirmed")
#: What a file may hold: a topology's texts have neither NUL nor surrogates.
WORDS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20),
    st.sampled_from(["", " ", EVIL, "x" * 5000, "容器\n网络", "\x1b[31m\x7f", "{{ 1 }}%s%n"]),
)
#: What commands may print beside that.
TEXTS = WORDS | st.sampled_from(["\0", "\ud800"])


@st.composite
def described(draw: st.DrawFn) -> dict[str, Any]:
    """A topology with everything in it that may be any text, or may be left out."""
    data = draw(topologies())
    if (text := draw(st.none() | WORDS)) is not None:
        data["description"] = text
    for container in data.get("containers", {}).values():
        if draw(st.booleans()):
            container["env"] = {"VALUE": draw(WORDS)}
    for made in data["nodes"].values():
        if draw(st.booleans()):
            made |= {"cpus": 0.5, "memory": "64M"}
    return data


@st.composite
def results(draw: st.DrawFn) -> Results:
    """Texts of checks: none, or any."""
    text = draw(TEXTS)
    found = Finding(
        ONE, "confirmed", expected="confirmed", evidence=[Evidence(text, text)], reason=text,
        measurements=[Measurement(text, "ms", {text: (0.0, 1.5)}, "lower")],
    )  # fmt: skip
    check = Check(text, draw(st.sampled_from(["passed", "failed", "skipped"])), 0.1, text)
    return draw(st.sampled_from([
        Results(), Results([found]), Results([], [check]), Results([found], [check], broken=[text]),
    ]))  # fmt: skip


def drawn(topology: Topology) -> dict[str, Any]:
    """The picture of a lab of that topology: its nodes, interfaces and containers."""
    nodes = []
    for made in topology.nodes.values():
        links = [
            link(port.name, i + 2, "veth", *map(str, port.subnetted))
            for i, port in enumerate(made.ports)
        ]
        spaces = [
            {"name": c.name, "kind": "container", "mode": c.network, "links": [], "published": []}
            for c in topology.containers.values()
            if c.node == made.name
        ]
        nodes.append(node(made.name, roles=list(made.roles), links=links, spaces=spaces))
    networks = [
        {
            "name": n.name,
            "subnet": str(n.subnet or ""),
            "ports": [
                [m.name, port.name] for m in topology.nodes.values() for port in m.on(n.name)
            ],
        }
        for n in topology.networks.values()
    ]
    return {"networks": networks, "nodes": nodes, "overlay": None}


MINIMAL: dict[str, Any] = {"name": "a", "nodes": {"a": {}}}


@pytest.mark.thorough
@FEW
@given(described(), results())
@example(MINIMAL, Results())
@example({**MINIMAL, "description": ""}, Results())
@example({**MINIMAL, "description": EVIL}, Results([], [Check(EVIL, "failed", 0.1, EVIL)]))
def test_reports(data: dict[str, Any], found: Results) -> None:
    topology = loaded(data)
    for seen in ({}, drawn(topology)):
        lab = LabRun(topology.name, topology, found, picture=seen)
        run = Run(selection(claims=(ONE,)), [lab])
        value = json.loads(json.dumps(to_dict(run)))
        for lang in ("en", "zh"):
            page = Page(render(value, lang=lang))
            assert {"p", "section"} <= {name for name, _ in page.elements}
            assert len(page.all("svg")) >= bool(seen)
            assert len(page.all("script")) == 1, "no text becomes markup"
        ET.fromstring(to_xml(run))
        shown = [
            terminal.failures(lab, shipped()), terminal.table(run), terminal.measured(run),
            terminal.differences(run), terminal.slowest(run), terminal.undecided(run),
            [terminal.closing(run), terminal.lab_line(lab)], terminal.overview(run),
            terminal.errors(run),
            [terminal.line(finding, shipped()) for finding in found.findings],
            [terminal.line(check, shipped()) for check in found.checks],
        ]  # fmt: skip
        assert all(isinstance(line, str) for lines in shown for line in lines)


def says(*argv: str, ends: tuple[int, ...] = (0,)) -> str:
    """The output of a command, which ends with one of these statuses."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        status = cli.run(list(argv))
    assert status in ends, out.getvalue()
    return out.getvalue()


@pytest.mark.thorough
@FEW
@given(described())
@example(MINIMAL)
@example({**MINIMAL, "description": ""})
def test_commands(data: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        bench = Bench(Path(folder, "state"))
        bench.install(patch)
        patch.setattr(os, "geteuid", lambda: 0)
        patch.setattr(common, "make_settings", lambda **_: bench.settings)
        patch.setattr(Docker, "drawn", lambda *_: ())  # it asks the daemon
        path = Path(folder, "t.yaml")
        path.write_text(dump(escaped(data)), encoding="utf-8")
        topology = load_text(path.read_text(encoding="utf-8"), str(path))
        assert pytest_checks.features(topology) is not None
        assert says("plan", str(path)).startswith(f"{topology.name}: ")
        assert json.loads(says("plan", str(path), "--json"))
        if FlannelSection.find(topology) is not None:  # whose keys are etcd's to know
            return
        assert f"{topology.name} is up" in says("up", str(path))
        # No daemon answers for the containers of a fake.
        ends = (0, 1) if "docker" in topology.software else (0,)
        found = json.loads(says("status", "--json", ends=ends))
        assert [one["name"] for one in found["nodes"]] == list(topology.nodes)
        shown = says("status", ends=ends)
        assert all(name in shown for name in topology.nodes)
        assert topology.name in says("ls")
        assert json.loads(says("ls", "--json"))[0]["lab"] == topology.name
        live = LiveLab(Lab(topology.name, bench.settings).context())
        part = LabRun(topology.name, topology)
        part.look(live)
        live.close()
        assert [one["name"] for one in part.picture["nodes"]] == list(topology.nodes)
        assert picture.draw(part.picture, id="p", title="t").startswith("<svg")
        assert f"{topology.name}: removed" in says("down")
