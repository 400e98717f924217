"""The comparison of a page's output with that of its commands: it must be able to fail."""

from __future__ import annotations

import pytest
from pages import sessions, unlike

SHOWN = """\
│  0.177 ms ● eth0 out         ? 100.96.1.3 is at 02:42:64:60:01:03 (REACHABLE)
│  0.177 ms ● vethdb321c5 in
...
│           ● nat PREROUTING   policy accept
"""
PRINTED = """\
│ 12.250 ms ● eth0 out         ? 100.96.1.3 is at 02:42:99:60:01:03 (STALE)  (ip neigh show)
│  1.001 ms ● veth0000000 in
one
two
│           ● nat PREROUTING   policy accept
"""


def test_what_differs_from_run_to_run_is_no_difference() -> None:
    assert unlike(SHOWN, PRINTED) == ""
    assert unlike(SHOWN, SHOWN.replace("...\n", "")) == ""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("eth0 out", "eth1 out"),
        ("100.96.1.3", "100.96.1.4"),
        ("policy accept", "policy drop"),
        ("│           ● nat", "one more\n│           ● nat"),
    ],
)
def test_anything_else_is_a_difference(old: str, new: str) -> None:
    assert unlike(SHOWN.replace("...\n", ""), SHOWN.replace("...\n", "").replace(old, new))
    assert "+" in unlike(SHOWN.replace("...\n", ""), SHOWN.replace(old, new))


def test_a_page_has_its_five_walks() -> None:
    commands = [command for command, _ in sessions("walk.md")]
    assert len([one for one in commands if one.startswith("testbed walk")]) == 6
    assert all(shown for command, shown in sessions("walk.md") if " > " not in command
               and not command.startswith("testbed exec"))  # fmt: skip
