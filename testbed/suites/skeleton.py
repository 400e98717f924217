"""Begin a lab with its tests: ``testbed new``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from testbed.errors import UsageError
from testbed.suites.beside import TESTS
from testbed.topology import skeleton

LAB, README = "lab.yaml", "README.md"
NAME_MAX = 20  #: characters of a lab's name that stay readable in a prompt

TEST = '''\
"""Tests of the lab {name}: `testbed verify {lab}` runs them on the running lab."""


def test_node1_reaches_node2(lab):
    ping = lab.node("node1").run(["ping", "-c1", "-W2", "10.168.0.3"], check=False)
    assert ping.ok, ping.out
'''

BUG = """\
# The hosts of the report, on one network. Delete what it does not need.
# Docker, on two engines side by side:
#   roles: [docker]                        # Debian's
#   roles: [docker], docker: {{engine: 29}}  # the last one
# `testbed schema --markdown` describes all keys; docs/cookbook.md has small labs.
name: {name}
networks:
  lan: {{subnet: 10.168.0.0/24}}
nodes:
  old: {{networks: {{lan: 10.168.0.2}}}}
  new: {{networks: {{lan: 10.168.0.3}}}}
"""

BUG_TEST = '''\
"""The report {name}: the reported behaviour, and the fix."""


def test_the_reported_behaviour(lab):
    # Do what the report does, and judge what it saw. This line does so in place of the last one:
    # assert not seen.ok
    seen = lab.node("old").run(["ping", "-c1", "-W2", "10.168.0.3"], check=False)
    assert not seen, "this test is complete; it must fail with the fix"


def test_the_fix(lab):
    # The same with the setting, or on the version, that fixes it:
    # assert seen.ok
    seen = lab.node("new").run(["ping", "-c1", "-W2", "10.168.0.2"], check=False)
    assert not seen, "this test is complete; it must fail without the fix"
'''

BUG_README = """\
# {title}

{link}: the report in two sentences.

**Cause.** Why it happens.

**Fix.** The version, the change or the setting that fixes it.

**Look at** `testbed exec old ip route`: where on the lab it is seen.
"""


class Report(NamedTuple):
    """A bug report: a short name, a title, and a link to it in Markdown."""

    name: str
    title: str
    link: str


#: A report on GitHub, GitLab or a forge with the same paths, and the short form of GitHub.
URL = re.compile(
    r"(?:https?://)(?P<host>[^/\s]+)/(?P<path>\S+?)/(?:-/)?"
    r"(?:issues|pull|pulls|merge_requests|discussions)/(?P<number>\d+)(?:[/?#]\S*)?"
)
SHORT = re.compile(r"(?P<path>[\w.-]+/[\w.-]+)#(?P<number>\d+)")
TITLE = "Title: what goes wrong"


def report(text: str) -> Report:
    """Return the report of a link, of OWNER/REPOSITORY#NUMBER, or of a title.

    >>> report("https://github.com/moby/moby/issues/45610").link
    '[moby/moby#45610](https://github.com/moby/moby/issues/45610)'
    >>> report("moby/moby#45610").name
    'moby-45610'

    Raises UsageError for an empty text.
    """
    text = " ".join(text.split())
    if not text:
        raise UsageError("wanted a link or a title", where="--bug")
    found = URL.fullmatch(text) or SHORT.fullmatch(text)
    if found:
        path, number = found["path"], found["number"]
        link = text if "://" in text else f"https://github.com/{path}/issues/{number}"
        repository = path.rpartition("/")[2][: NAME_MAX - len(number) - 1]
        name = skeleton.name_from(f"{repository}-{number}")
        return Report(name, TITLE, f"[{path}#{number}]({link})")
    if re.match(r"https?://\S+$", text):
        last = text.partition("://")[2].rstrip("/")
        return Report(skeleton.name_from(last.rpartition("/")[2]), TITLE, f"[{last}]({text})")
    return Report(skeleton.name_from(text), text, "[The report](https://example.com/its-address)")


def create(folder: Path | None, bug: str | None = None) -> list[Path]:
    """Write a small lab and its tests into a folder, and return the new files.

    With ``bug``, see :func:`report`, it is the lab of a bug report, whose tests fail until they
    are complete; the folder has the name of the report by default.  Raises UsageError, before
    anything is written, if a file exists already.
    """
    about = None if bug is None else report(bug)
    if folder is None:
        if about is None:
            raise UsageError("missing DIR", hint="name a folder, or a bug report by --bug")
        folder = Path(about.name)
    if folder.suffix in {".yaml", ".yml"}:
        raise UsageError(f"wanted a folder, got {folder}", hint=f"{LAB} is written into it")
    folder = folder.resolve()
    name = skeleton.name_from(folder.name)
    test = folder / TESTS / f"test_{name.replace('-', '_')}.py"
    if about:
        texts = {folder / LAB: BUG, test: BUG_TEST, folder / README: BUG_README}
    else:
        texts = {folder / LAB: skeleton.TOPOLOGY, test: TEST}
    if there := [str(path) for path in texts if path.exists()]:
        raise UsageError(
            f"{', '.join(there)}: exists already", hint="choose another folder, or remove it"
        )
    return skeleton.write(
        texts,
        name=name,
        lab=LAB,
        description="Two machines on one network.",
        title=about.title if about else "",
        link=about.link if about else "",
    )
