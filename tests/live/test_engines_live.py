"""Engines that are built on request, if they are: each on a lab, and what the claims say of it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from labs import skip_unless_built

from testbed.artifacts.engines import BUILT, Engine
from testbed.labs.lab import Lab
from testbed.labs.live import LiveLab
from testbed.settings import settings
from testbed.topology import Overrides, load, load_text

NAME = "engines"
TEXT = """
name: engines
networks: {lan: {subnet: 10.168.0.0/24}}
nodes:
  host: {networks: {lan: 10.168.0.2}, roles: [docker]}
  client: {networks: {lan: 10.168.0.3}}
docker: {engine: ENGINE}
containers: {web: {node: host, publish: ["8080:80"]}}
"""
ON_REQUEST = [
    pytest.param(engine, id=release) for release, engine in BUILT.items() if not engine.everywhere
]

pytestmark = [pytest.mark.long, pytest.mark.parametrize("engine", ON_REQUEST)]


@pytest.fixture(autouse=True)
def _of_the_cache(engine: Engine, state: Path) -> Iterator[None]:
    assert state
    skip_unless_built(engine)
    yield
    Lab(NAME, settings()).down()


def test_its_client_its_daemon_and_a_published_port(engine: Engine) -> None:
    Lab(NAME, settings()).up(load_text(TEXT.replace("ENGINE", engine.release), "engines.yaml"))
    live = LiveLab(Lab(NAME, settings()).context())
    try:
        asked = ["docker", "version", "--format={{.Client.Version}} {{.Server.Version}}"]
        assert live.node("host").run(asked).stdout.split() == [engine.version, engine.version]
        page = live.node("client").run(
            ["curl", "-sS", "--max-time", "5", "http://10.168.0.2:8080/"]
        )
        assert page.json()["name"] == "web"
        assert page.json()["client"].startswith("10.168.0.3:")  # its source address is kept
    finally:
        live.close()


@pytest.mark.parametrize("firewall", ["iptables-legacy", "iptables-nft"])
def test_the_claims_about_one_host_end_as_expected(
    engine: Engine, firewall: str, tmp_path: Path
) -> None:
    variant = Overrides(docker=engine.release, firewall=firewall, name=NAME)
    Lab(NAME, settings()).up(load("docker-single", variant))
    out = tmp_path / "verified.json"
    argv = ["verify", NAME, "-q", "--json", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "testbed", *argv],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (lab,) = json.loads(out.read_text())["labs"]
    assert lab["facts"]["docker"] == engine.version
    decided = [one for one in lab["findings"] if one["verdict"] not in ("skipped", "inconclusive")]
    assert len(decided) > 50
    assert all(one["as_expected"] for one in lab["findings"])
