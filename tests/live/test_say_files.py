"""A topology from standard input, with variables and a Compose file that Compose runs on a node."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import Said, call

TEXT = """\
name: say-files
include: networks.yaml
x-node: &node {roles: [docker], compose: "${COMPOSE:-compose.yaml}"}
nodes:
  node1: {<<: *node, networks: {lan: 10.168.0.2}}
"""
NETWORKS = "networks: {lan: {subnet: '${SUBNET}'}}\n"
COMPOSE = """\
services:
  web:
    image: nginx
    env_file: [web.env]
    volumes: ["./html:/srv/html:ro", "./data:/srv/data", "/run/docker.sock:/run/docker.sock"]
    configs: [note]
    ports: ["${PORT:-8080}:81"]
  client:
    image: nginx
    depends_on: [web]
    healthcheck: {test: curl -fs web:81, interval: 1s, retries: 60}
configs: {note: {file: note.txt}}
"""
ON = ("-l", "say-files")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a lab's files, in which the lab runs."""
    folder = tmp_path_factory.mktemp("say-files")
    (folder / "networks.yaml").write_text(NETWORKS)
    (folder / "compose.yaml").write_text(COMPOSE)
    (folder / "web.env").write_text("PORT=81\n")
    (folder / "note.txt").write_text("a note")
    (folder / "html").mkdir()
    (folder / "html" / "page").write_text("a page")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TESTBED_STATE", str(folder / "state"))
        patch.chdir(folder)
        up = piped(folder, "--set", "SUBNET=10.168.0.0/24")
        assert up.status == 0, up.err
        yield folder
        call(folder, "down", "say-files")


def piped(folder: Path, *options: str) -> Said:
    return call(folder, "up", "-", *options, given=TEXT)


def on(folder: Path, node: str, *argv: str) -> str:
    done = call(folder, "exec", *ON, node, *argv)
    assert done.status == 0, done.err
    return done.out


def test_a_compose_project(folder: Path) -> None:
    page = json.loads(on(folder, "node1/say-files-client-1", "curl", "-s", "web:81"))
    assert page["server"].endswith(":81"), "env_file has arrived"
    published = on(folder, "node1", "curl", "-s", "localhost:8080")
    assert json.loads(published)["server"] == page["server"]
    web = "node1/say-files-web-1"
    assert on(folder, web, "cat", "/srv/html/page", "/note") == "a pagea note"
    on(folder, web, "sh", "-c", "echo x > /srv/data/x && test -S /run/docker.sock")
    assert not (folder / "data").exists(), "what containers write stays on the node"
    assert on(folder, "node1", "docker", "compose", "ls", "-q") == "say-files\n"
    found = json.loads(call(folder, "status", "say-files", "--json").out)
    containers = {one["name"]: one["state"] for one in found["nodes"][0]["containers"]}
    assert containers == {"say-files-client-1": "healthy", "say-files-web-1": "running"}
    assert found["variables"] == {"SUBNET": "10.168.0.0/24", "COMPOSE": "compose.yaml"}


def test_what_differs_is_changed(folder: Path) -> None:
    again = piped(folder, "--set", "SUBNET=10.168.0.0/24")
    assert "unchanged" in again.out
    on(folder, "node1", "docker", "rm", "-f", "say-files-client-1")
    assert call(folder, "status", "say-files").status == 1
    (folder / "compose.yaml").write_text(COMPOSE.replace("8080", "8081"))
    # The lab came from standard input, so its name alone says what to restore.
    restored = call(folder, "up", *ON)
    assert "compose node1" in restored.out, restored.err
    assert json.loads(on(folder, "node1", "curl", "-s", "localhost:8081"))["name"]
    assert call(folder, "status", "say-files").status == 0


def test_what_compose_refuses_changes_nothing(folder: Path) -> None:
    (folder / "compose.yaml").write_text(COMPOSE.replace("[web]", "[wob]"))
    refused = call(folder, "up", *ON)
    assert refused.status == 2
    assert "undefined service" in refused.err
    assert str(folder / "compose.yaml") in refused.err
    built = COMPOSE.replace("image: nginx\n    depends_on", "build: .\n    depends_on")
    (folder / "compose.yaml").write_text(built)
    refused = call(folder, "up", *ON)
    assert (refused.status, "client would be built" in refused.err) == (2, True)
    (folder / "compose.yaml").write_text(COMPOSE.replace("8080", "8081"))
    assert call(folder, "status", "say-files").status == 0
