"""Check of daemon.json by the engine itself, before anything of a lab is created.

``dockerd --validate`` exists since release 23. An earlier engine reports what is wrong when it
starts.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from typing import TYPE_CHECKING

from testbed.errors import CommandError, TimeoutExpired
from testbed.nodes.engine import PARTS, is_folder, parse_version, parts_of, program, version_in
from testbed.process import run
from testbed.roles.docker.daemon_json import REMAP
from testbed.roles.docker.section import ROLE, daemon_of, engine_of
from testbed.topology import tree
from testbed.topology.load import places

if TYPE_CHECKING:
    from testbed.artifacts import Store
    from testbed.nodes.engine import Release
    from testbed.topology.model import Topology
    from testbed.topology.tree import Tree

SECONDS = 60.0
REFUSED = 1  # exit status of a daemon that does not accept its configuration
#: An engine without the option, and the beginning of each refusal (moby, cmd/dockerd/daemon.go).
UNKNOWN = "unknown flag: --validate"
BEGIN = re.compile(r"^unable to configure the Docker daemon with file [^:]*: ")
MERGED = "merged configuration validation from file and command line flags failed: "


def refuse_invalid(store: Store, topology: Topology) -> None:
    """Raise TopologyError for settings that a node's engine refuses, with their place."""
    refused: dict[str, str] = {}
    seen: set[str] = set()
    for node in topology.with_role(ROLE):
        if not (given := daemon_of(topology, node.name)):
            continue
        release = engine_of(topology, node.name)
        said = f"{release} {json.dumps(given, sort_keys=True)}"
        if said in seen:
            continue
        seen.add(said)
        if words := _refusal(store, topology, node.name, release):
            refused[node.name] = words
    if not refused:
        return
    root, problems = places(topology)
    for name, words in refused.items():
        at = place(root, name, words)
        inside = f" in {'.'.join(map(str, at.path))}" if at.line else ""
        wanted = f"settings{inside} that dockerd of {name} accepts"
        problems.add(at, wanted, repr(words), "correct daemon.json here")
    raise problems.error()


def place(root: Tree, node: str, words: str) -> Tree:
    """Return the place of the settings that an engine's words are about, in a topology's tree.

    It is that of a key which the words contain, by default of the whole ``daemon``.
    """
    paths = (("nodes", node, ROLE, "daemon"), (ROLE, "daemon"))
    written = [path for path in paths if tree.keys_at(root, *path)]
    for path in written:
        for name in tree.keys_at(root, *path):
            if re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", words):
                return tree.key_at(root, *path, name)
    return tree.key_at(root, *written[0]) if written else tree.Mapping((ROLE, "daemon"), 0, 0)


def _refusal(store: Store, topology: Topology, node: str, release: Release) -> str:
    """Return the words with which an engine refuses its configuration; empty if it does not.

    Empty, too, if the engine cannot say so without being started.
    """
    from testbed.roles.docker.daemon import daemon_config

    daemon = program(store, release, "dockerd")
    version = version_in(release) if is_folder(release) else store.version(PARTS[release][0])
    if store.is_users("dockerd"):
        version = _words([str(daemon), "--version"], None)
    config = daemon_config(topology, node, parse_version(version))
    if isinstance(config.get(REMAP), str):
        del config[REMAP]  # to read it, the engine adds the user to the machine that it is on
    # It looks for docker-proxy on its PATH.
    folders = [str(folder) for folder in store.path_dirs(*parts_of(release))]
    env = {**os.environ, "PATH": ":".join([*folders, os.environ.get("PATH", "")])}
    with tempfile.NamedTemporaryFile("w", prefix="testbed-daemon-", suffix=".json") as file:
        json.dump(config, file)
        file.flush()
        said = _words([str(daemon), "--validate", "--config-file", file.name], env, REFUSED)
    return BEGIN.sub("", said).removeprefix(MERGED)


def _words(argv: list[str], env: Mapping[str, str] | None, status: int = 0) -> str:
    """Return the last line of a program that ends with this status; empty if it does not."""
    try:
        done = run(argv, env=env, timeout=SECONDS, check=False)
    except (CommandError, TimeoutExpired):
        return ""
    lines = (done.stderr or done.stdout).strip().splitlines()
    if done.status != status or not lines or any(UNKNOWN in line for line in lines):
        return ""
    return lines[-1]
