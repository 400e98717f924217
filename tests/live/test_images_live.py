"""Images of other people: what their layers hold is in the container, from a seed too."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import archives
import every_kind
import pytest

from testbed.nodes.seed import FAITHFUL
from testbed.process import run

FILE = """\
name: kinds
networks:
  lan: {subnet: 10.168.0.0/24}
nodes:
  host: {networks: {lan: 10.168.0.2}, roles: [docker]}
containers:
  web: {node: host, image: kinds}
"""
#: Argument: the name of a container.  Prints what is below its /kinds.  The module comes along:
#: a node does not see every folder of this machine.
LOOK = f"""{Path(every_kind.__file__).read_text(encoding="utf-8")}
import json, subprocess, sys
from pathlib import Path
url = f"http://docker/containers/{{sys.argv[1]}}/json"
argv = ["curl", "-s", "--unix-socket", "/run/docker.sock", url]
pid = json.loads(subprocess.run(argv, capture_output=True, check=True).stdout)["State"]["Pid"]
print(repr(described(Path(f"/proc/{{pid}}/root/kinds"))))
"""


@pytest.fixture
def cache() -> Iterator[Path]:
    with archives.cache() as made:
        yield made


def layer(tree: Path, *more: str) -> bytes:
    argv = ["tar", "-C", str(tree), "-cf", "-", "--sort=name", *FAITHFUL, *more, "kinds"]
    return run(argv).out


@pytest.mark.parametrize("engine", [pytest.param("20.10", marks=pytest.mark.thorough), "29"])
def test_a_layer_with_every_kind_of_file(tmp_path: Path, cache: Path, engine: str) -> None:
    below, tree = tmp_path / "below", tmp_path / "tree"
    (below / "kinds" / "opaque").mkdir(parents=True)
    (below / "kinds" / "gone").touch()
    (below / "kinds" / "opaque" / "hidden").touch()
    tree.mkdir()
    every_kind.make(tree / "kinds")
    # In an image a whiteout is a file of a special name (OCI image specification, "Layers").
    (tree / "kinds" / "whiteout").unlink()
    os.removexattr(tree / "kinds" / "opaque", every_kind.OPAQUE)
    wanted = every_kind.described(tree / "kinds")
    (tree / "kinds" / ".wh.gone").touch()
    (tree / "kinds" / "opaque" / ".wh..wh..opq").touch()
    archives.write(tmp_path / "kinds.tar", "kinds:latest", [layer(below), layer(tree)])
    (tmp_path / "config.toml").write_text(f'[images]\nkinds = {{path = "{tmp_path}/kinds.tar"}}\n')
    (tmp_path / "kinds.yaml").write_text(FILE)
    env = {
        **os.environ,
        "TESTBED_STATE": str(tmp_path / "state"),
        "TESTBED_CONFIG": str(tmp_path / "config.toml"),
        "TESTBED_CACHE": str(cache),
    }

    def testbed(*words: str) -> str:
        argv = [sys.executable, "-m", "testbed", *words]
        done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    try:
        for how in ("loaded", "present"):  # by the daemon, then from what the first one made of it
            said = testbed("up", str(tmp_path / "kinds.yaml"), "--docker", engine)
            assert f"kinds {how}\n" in said
            found = testbed("exec", "host", "--", "python3", "-c", LOOK, "web")
            assert ast.literal_eval(found) == wanted, how
            testbed("down", "kinds")
    finally:
        testbed("down", "--all")
