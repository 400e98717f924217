"""The table of NetworkPolicies: what each plugin is asked for, and the ways of the probes."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest

from testbed.catalogues.shipped import FOLDER
from testbed.roles.kubernetes.plugins import PLUGINS
from testbed.suites import policies


@dataclass
class Outside:
    """A machine that notes its commands; it fails at the one ``fails`` names."""

    fails: str = ""
    calls: list[str] = field(default_factory=list)

    def run(self, argv: list[str], **_: Any) -> None:
        self.calls.append(" ".join(argv))
        if self.fails and self.fails in self.calls[-1]:
            raise RuntimeError(self.fails)


CLUSTER = cast(
    "Any", SimpleNamespace(address=lambda node: {"n1": "10.0.0.1", "n2": "10.0.0.2"}[node])
)
#: As some plugins give out addresses: of no node's range.
PLACES = (("100.96.77.4", "n1"), ("100.96.13.9", "n2"), ("100.96.77.5", "n1"))
PODS = [cast("Any", SimpleNamespace(address=address, node=node)) for address, node in PLACES]


@pytest.mark.parametrize("fails", ["", "replace 100.96.13.9"])
def test_each_pod_is_reached_by_the_node_that_it_is_on(fails: str) -> None:
    outside = Outside(fails)
    seen: list[str] = []
    try:
        with policies.ways_back(CLUSTER, cast("Any", outside), PODS):
            seen = list(outside.calls)
    except RuntimeError:
        assert fails
    if not fails:
        assert seen == [
            "ip route replace 100.96.77.4/32 via 10.0.0.1",
            "ip route replace 100.96.13.9/32 via 10.0.0.2",
            "ip route replace 100.96.77.5/32 via 10.0.0.1",
        ]
    gone = [one for one in outside.calls if "delete" in one]
    assert len(gone) == 3, "none is left, however it ends"


@pytest.mark.parametrize("name", ["cilium", "weave"])
def test_one_that_takes_a_range_for_its_first_port_is_not_asked_for_more(name: str) -> None:
    assert not next(one for one in PLUGINS.values() if one.name == name).port_ranges
    (row,) = (one for one in policies.table("10.0.0.0/24", "10.0.0.1", "10.0.0.2",
                                            port_ranges=False) if "range" in one.what)  # fmt: skip
    assert row.spares == ()


@pytest.mark.parametrize("name", [one.name for one in PLUGINS.values() if one.enforces])
def test_the_table_is_run_on_each_plugin_that_enforces(name: str) -> None:
    wanted = f"pods-by-{name}"
    for path in FOLDER.glob("test_*.py"):
        text = path.read_text(encoding="utf-8")
        if wanted not in text or "policies.enforced(" not in text:
            continue
        tree = ast.parse(text)
        everywhere = any(
            isinstance(one, ast.Assign) and ast.unparse(one.targets[0]) == "pytestmark"
            and wanted in ast.unparse(one.value)
            for one in tree.body
        )  # fmt: skip
        for one in tree.body:
            if isinstance(one, ast.FunctionDef) and "policies.enforced(" in ast.unparse(one):
                marks = " ".join(map(ast.unparse, one.decorator_list))
                if everywhere or f"'{wanted}'" in marks:
                    return
    pytest.fail(f"no test runs it on {name}")
