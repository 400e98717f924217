"""The files that a page of the documentation shows in its blocks of code."""

from __future__ import annotations

import re
from difflib import unified_diff
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"


def files_of(page: str) -> dict[str, str]:
    """The blocks that have the name of a file, by that name."""
    text = (DOCS / page).read_text(encoding="utf-8")
    blocks = re.findall(r'^```\w+ title="(\S+)"\n(.*?)^```$', text, re.MULTILINE | re.DOTALL)
    return dict(blocks)


def write_files(page: str, folder: Path) -> Path:
    """Write the files of a page into a folder, and return it."""
    for name, text in files_of(page).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


CONSOLE = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ANYTHING = "..."  #: a line of a page that stands for any number of lines
#: What differs from run to run in the output of `testbed walk`, `graph` and `capture`.
PASSING = (
    (re.compile(r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}"), "MAC"),
    (re.compile(r"\bveth[0-9a-f]{7}\b"), "VETH"),
    (re.compile(r" *\d+(?:\.\d+)? ms"), " TIME"),
    (re.compile(r"\b(ICMP id|echo id) \d+(?: → \d+)?"), r"\1 NUMBER"),
    (re.compile(r"^\d\d:\d\d:\d\d\.\d{6}", re.MULTILINE), "CLOCK"),
    (re.compile(r"\bid \d+, seq"), "id NUMBER, seq"),
    (re.compile(r"(\d)\.\d{5} >"), r"\1.PORT >"),
    (re.compile(r":\d{5}\b"), ":PORT"),
    (re.compile(r"\((?:REACHABLE|STALE|DELAY|PROBE)\).*"), "(STATE)"),
    # dockerd and flanneld put their rules there, at the same time.
    (re.compile(r"#\d+(?= -A POSTROUTING)"), "#NUMBER"),
)


def sessions(page: str) -> list[tuple[str, str]]:
    """The commands of a page's consoles, each with the output that the page shows."""
    text = (DOCS / page).read_text(encoding="utf-8")
    found = []
    for block in CONSOLE.findall(text):
        _, *parts = re.split(r"^\$ (.*)\n", block, flags=re.MULTILINE)
        found += list(zip(parts[::2], parts[1::2], strict=True))
    return found


def unlike(shown: str, printed: str) -> str:
    """Return how the output of a command differs from that of a page; "" if it does not."""
    wanted, seen = (masked(text).splitlines() for text in (shown, printed))
    pattern = "".join(
        r"(?:.*\n)*?" if line == ANYTHING else f"{re.escape(line)}\n" for line in wanted
    )
    if re.fullmatch(pattern, "".join(f"{line}\n" for line in seen)):
        return ""
    return "\n".join(unified_diff(wanted, seen, "the page", "the output", lineterm=""))


def masked(text: str) -> str:
    """Return a text without what differs from run to run."""
    for pattern, by in PASSING:
        text = pattern.sub(by, text)
    return text
