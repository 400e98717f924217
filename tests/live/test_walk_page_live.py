"""The walks of docs/walk.md: what the page shows is what the commands print."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from commands import call
from pages import sessions, unlike, write_files


def test_the_page_shows_what_the_commands_print(tmp_path: Path) -> None:
    write_files("walk.md", tmp_path)
    env = {"TESTBED_STATE": str(tmp_path / "state"), "TESTBED_LAB": "shop"}
    up = call(tmp_path, "up", str(tmp_path / "shop.yaml"), "-q", env=env)
    assert up.status == 0, up.err
    try:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        given = {**os.environ, **env, "PATH": path, "COLUMNS": "100"}
        for command, shown in sessions("walk.md"):
            done = subprocess.run(
                ["bash", "-c", command], cwd=tmp_path, env=given, capture_output=True, text=True,
                timeout=300, check=False,
            )  # fmt: skip
            assert done.returncode == (1 if "--expect" in command else 0), done.stderr
            assert done.stderr == ""
            assert not (difference := unlike(shown, done.stdout)), f"{command}\n{difference}"
    finally:
        down = call(tmp_path, "down", "--all", env=env)
    assert down.status == 0, down.err
