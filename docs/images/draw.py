"""Draws the pictures of README.md from what the commands really print.

docs/images/draw.py        (as root; brings up the lab two-node and removes it)
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.text import Text

from testbed.report.drawing import alone

HERE = Path(__file__).parent
LAB = "two-node"
COLUMNS = 100
COMMANDS = (
    "testbed exec node1/container-1 curl -s 100.96.2.2",
    "testbed exec node1 bridge fdb show dev flannel.1",
    f"testbed verify {LAB} -k fdb",
)
TESTBED = str(Path(sys.executable).with_name("testbed"))


def testbed(command: str) -> str:
    """Run a command on a terminal; return what it prints, with colours."""
    words = command.replace("testbed", TESTBED, 1)
    argv = ["script", "-qec", f"stty cols {COLUMNS}; {words}", "/dev/null"]
    env = {**os.environ, "TERM": "xterm-256color"}
    done = subprocess.run(argv, env=env, capture_output=True, check=True, text=True)
    return done.stdout.replace("\r\n", "\n")


def terminal() -> str:
    """A session as SVG, which loads nothing."""
    console = Console(record=True, width=COLUMNS, file=StringIO(), force_terminal=True)
    for command in COMMANDS:
        console.print(Text.assemble(("# ", "bold"), (command, "bold")))
        console.print(Text.from_ansi(testbed(command)), soft_wrap=False)
    svg = console.export_svg(title=f"testbed verify {LAB}")
    svg = re.sub(r"@font-face \{.*?\}\n", "", svg, flags=re.DOTALL)
    return svg.replace("Fira Code", "DejaVu Sans Mono")


def lab(report: str) -> str:
    """The report's drawing of the lab as a file of its own."""
    (svg,) = re.findall(r'<svg class="picture.*?</svg>', report, re.DOTALL)
    return alone(svg)


def main() -> None:
    testbed(f"testbed up {LAB} -q")
    try:
        (HERE / "terminal.svg").write_text(terminal(), encoding="utf-8")
        with tempfile.TemporaryDirectory() as folder:
            page = Path(folder, "report.html")
            testbed(f"testbed verify {LAB} -k fdb -q --html {page}")
            (HERE / "lab.svg").write_text(lab(page.read_text(encoding="utf-8")), encoding="utf-8")
    finally:
        testbed(f"testbed down {LAB}")


if __name__ == "__main__":
    main()
