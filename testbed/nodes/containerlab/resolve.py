"""Ask containerlab for a topology file: its problems, and its text with all variables filled in.

containerlab reads and checks a file without deploying it (``validate``, ``deploy --dry-run``), yet
asks an engine for its version and for containers of the lab. A stand-in answers these questions, so
that a file can be read on a machine without Docker, and without a look at the user's own.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingUnixStreamServer
from typing import Any

from testbed.nodes.containerlab import topofile
from testbed.nodes.containerlab.format import VALUES, files_of
from testbed.process import Completed, run
from testbed.topology.tree import Problems

LAB_FOLDERS = "clab-*"  # beside the file (types/topo_paths.go, labDirPrefix)
SECONDS = 60.0  # timeout of each call, which takes a tenth of a second
#: Text that containerlab fills in: Go templates, variables of the environment, and those of Git in
#: the lab's name (core/config.go).
FILLED_IN = re.compile(r"\{\{|\$|__git")
GIT = "__git"  #: begins a variable of Git
#: Links whose check looks for interfaces and routes of the host, which are those of the cell.
OF_THE_HOST = re.compile("macvlan|vxlan")
#: Variables that set options of containerlab (cmd/viper.go) which are ours to choose.
OPTIONS = frozenset({"CLAB_DEBUG", "CLAB_NAME", "CLAB_RUNTIME", "CLAB_TOPO", VALUES})
POLL = 0.005  # seconds; the stand-in engine looks so often whether it is to end
HINT = "correct the file; https://containerlab.dev/manual/topo-def-file/ describes it"


def resolve(
    program: Path,
    file: Path,
    text: str,
    problems: Problems,
    variables: Mapping[str, str | None] | None = None,
) -> str:
    """Return the text of a file with all variables filled in; add its problems.

    ``program`` is containerlab. ``variables`` are the file's; None is one without a value. Raises
    CommandError if it cannot be started, TimeoutExpired.
    """
    of_the_host = OF_THE_HOST.search(text) is not None
    given = {name: value for name, value in (variables or {}).items() if value is not None}
    files = files_of(given.pop(VALUES, ""))
    with (
        tempfile.TemporaryDirectory(prefix="testbed-") as folder,
        _engine(Path(folder), given) as env,
    ):
        _show_lab_folders(file.parent, Path(folder))
        if of_the_host or FILLED_IN.search(text):
            rendered = Path(folder, "rendered.yml")
            argv = ["deploy", "--dry-run", "--format", "json", "--export-rendered", str(rendered)]
            argv += [f"--vars={values}" for values in files]
            done = _run(program, file, argv, env)
            with contextlib.suppress(FileNotFoundError):
                text = rendered.read_text(encoding="utf-8", errors="replace")
            if done.status:
                explain(done, text, problems)
            else:
                text = _with_name(text, done.stdout)
            if done.status or of_the_host:
                return text
        done = _run(program, file, ["validate", *(f"--vars={values}" for values in files)], env)
    if done.status:
        explain(done, text, problems)
    return text


def _with_name(text: str, planned: str) -> str:
    """Return a file with the lab's name in the place of one with variables of Git.

    ``planned`` is what containerlab prints for ``--dry-run --format json``.
    """
    name = topofile.parse(text, Problems("")).get("name")
    if not isinstance(name, str) or GIT not in name:
        return text
    return text.replace(name, str(json.loads(planned)["lab-name"]))


def _show_lab_folders(own: Path, folder: Path) -> None:
    """Have the user's files of nodes (``__clabNodeDir__``) in the folder of labs of a check.

    Files are links, folders are not: what containerlab writes is not the user's.
    """
    for there in own.glob(LAB_FOLDERS):
        with contextlib.suppress(OSError, shutil.Error):  # a deployment's own, which is root's
            shutil.copytree(there, folder / there.name, copy_function=os.symlink)


def _run(program: Path, file: Path, argv: list[str], env: dict[str, str]) -> Completed:
    options = ["--topo", str(file), "--log-level", "error"]
    return run([program, *argv, *options], env=env, timeout=SECONDS, check=False)


def explain(done: Completed, text: str, problems: Problems) -> None:
    """Add the problems that containerlab's words name, in its own words, with their lines."""
    words = said(done.stderr) or said(done.stdout) or f"exit status {done.status}"
    first, *more = re.split(r"\s*\bline (\d+): ", words)
    if not more:
        problems.add_at(_line_of(words, text), 0, "a file that containerlab reads", words, HINT)
        return
    first = re.sub(r"[\s:]*(unmarshal errors)?[\s:]*$", "", first)
    for number, about in zip(more[::2], more[1::2], strict=True):
        seen = f"{first}: {about}" if first else about
        problems.add_at(int(number), 0, "a file that containerlab reads", seen, HINT)


def said(output: str) -> str:
    """Return the error that containerlab printed, on one line.

    It breaks lines at the width of a terminal, and puts a title above.
    """
    plain = re.sub(r"\x1b\[[0-9;]*m", "", output)
    lines = [line.strip() for line in plain.splitlines()]
    if "ERROR" in lines:
        lines = lines[lines.index("ERROR") + 1 :]
    return " ".join(line for line in lines if line)


def _line_of(words: str, text: str) -> int:
    """Return the line of the first quoted name of an error in the text; 0 if there is none."""
    names = re.findall(r'["\']([^"\'\s]+)["\']', words)
    return next((line for name in names if (line := topofile.line_of(name, text))), 0)


class _Answers(BaseHTTPRequestHandler):
    """The answers of an engine that has no containers."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = b"[]" if self.path.partition("?")[0].endswith("/json") else b"{}"
        self.send_response(200)
        self.send_header("Api-Version", "1.44")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815  the name that the class looks for

    def address_string(self) -> str:
        return ""

    def log_message(self, *_: Any) -> None:
        """Write nothing."""


class _Server(ThreadingUnixStreamServer):
    daemon_threads = True


@contextlib.contextmanager
def _engine(folder: Path, variables: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Run the stand-in; yield the environment in which containerlab uses it, with variables.

    Its temporary files, such as configurations within the topology file, go to the folder, too.
    """
    socket = folder / "engine.sock"
    with _Server(str(socket), _Answers) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": POLL})
        thread.start()
        try:
            yield {
                **{name: value for name, value in os.environ.items() if name not in OPTIONS},
                **variables,
                "DOCKER_HOST": f"unix://{socket}",
                "CLAB_VERSION_CHECK": "disable",
                "CLAB_LABDIR_BASE": str(folder),
                "TMPDIR": str(folder),
            }
        finally:
            server.shutdown()
            thread.join()
