"""Exported diagrams in Mermaid itself, which draws them without a complaint."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, opened
from exported import ODD
from report_runs import EVIL, graph
from walks import all_walks

from testbed.artifacts.store import Store
from testbed.exports.base import Subject
from testbed.registry import EXPORTS
from testbed.report import diagrams
from testbed.topology import load, load_text, names
from testbed.walk.render.mermaid import diagram

WALKS = all_walks()
MERMAID = Path(sys.prefix) / "mermaid.min.js"  #: `make web` puts it there
PAGE = f'<meta charset="utf-8"><script src="{MERMAID.as_uri()}"></script><body></body>'
DRAW = """
const [text, done] = arguments;
mermaid.initialize({startOnLoad: false, securityLevel: 'strict'});
mermaid.parse(text).then(() => mermaid.render('drawn', text)).then(({svg}) => {
  document.body.innerHTML = svg;
  const all = (selector) => [...document.querySelectorAll(selector)].map(e => e.textContent.trim());
  done({nodes: all('g.node').length, machines: all('g.cluster'),
        words: all('text,p,span').join(' '),
        edges: document.querySelectorAll('path.flowchart-link').length});
}).catch(error => done({error: String(error)}));
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert MERMAID.is_file(), "run it by `make web`"
    yield from opened(tmp_path_factory.mktemp("browser"))


@pytest.mark.parametrize("name", [*names(), "odd"])
def test_mermaid_draws_the_lab(name: str, browser: Browser, tmp_path: Path) -> None:
    topology = load_text(ODD, "odd") if name == "odd" else load(name)
    subject = Subject(topology, dict, Store(tmp_path))
    (text,) = EXPORTS["mermaid"].export(subject).files.values()
    page = tmp_path / "page.html"
    page.write_text(PAGE)
    browser.open(page.as_uri())
    browser.driver.set_script_timeout(60)
    drawn: dict[str, Any] = browser.driver.execute_async_script(DRAW, text)
    assert "error" not in drawn, drawn
    links = sum(len(node.ports) for node in topology.nodes.values())
    joined = [one for one in topology.containers.values() if one.network.startswith("container:")]
    assert drawn["edges"] == links + len(topology.veths) + len(joined)
    parts = [topology.networks, topology.containers, topology.namespaces, topology.bridges]
    empty = len(topology.nodes) - len(drawn["machines"])  # drawn as plain nodes
    assert drawn["nodes"] == links + sum(map(len, parts)) + empty
    for word in (topology.name, *topology.nodes, *topology.containers, *topology.networks):
        assert word in drawn["words"], word


@pytest.mark.parametrize("name", WALKS)
def test_mermaid_draws_the_walk(name: str, browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(PAGE)
    browser.open(page.as_uri())
    browser.driver.set_script_timeout(60)
    drawn: dict[str, Any] = browser.driver.execute_async_script(DRAW, diagram(WALKS[name]))
    assert "error" not in drawn, drawn
    hops = [hop for leg in WALKS[name].legs for hop in leg.hops]
    for word in {word for hop in hops for word in (hop.spot.machine, hop.spot.space)}:
        assert word in drawn["words"], word
    assert ("LOST" in drawn["words"]) is not WALKS[name].arrived


@pytest.mark.parametrize("title", ["lab", EVIL])
def test_mermaid_draws_the_network_of_a_running_lab(
    title: str, browser: Browser, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    page.write_text(PAGE)
    browser.open(page.as_uri())
    browser.driver.set_script_timeout(60)
    text = diagrams.mermaid(graph(), title)
    drawn: dict[str, Any] = browser.driver.execute_async_script(DRAW, text)
    assert "error" not in drawn, drawn
    made = diagrams.Diagram(graph())
    assert drawn["edges"] == len(made.edges)
    assert drawn["nodes"] == len(made.items) + sum(len(one.items) for one in made.groups)
    for word in ("docker0", "web", "eth0", "10.168.0.2/24"):
        assert word in drawn["words"], word
