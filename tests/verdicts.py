"""Labs of other providers: their verdicts are those that `testbed claims --by provider` tells."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catalogues import by_provider

if TYPE_CHECKING:
    from crash.means import Bed

SECONDS = 1800.0  # none takes so long, however slow the machines are


def verified(bed: Bed, folder: Path, lab: str, claims: Sequence[str] = ()) -> Mapping[str, Any]:
    """Verify a lab, or some claims alone; return its part of the run's record."""
    file = folder / "run.json"
    chosen = [word for claim in claims for word in ("--claim", claim)]
    done = bed.run("verify", lab, "-q", *chosen, "--json", str(file), timeout=SECONDS)
    assert file.exists(), done.stderr
    (part,) = json.loads(file.read_text())["labs"]
    file.unlink()
    failed = [check["name"] for check in part["checks"] if check["outcome"] == "failed"]
    assert failed == [], done.stdout
    return dict(part)


def skipped(part: Mapping[str, Any]) -> set[str]:
    """The claims that a lab has not decided, for whatever reason."""
    return {one["claim"] for one in part["findings"] if one["verdict"] == "skipped"}


def compare(part: Mapping[str, Any], provider: str) -> set[str]:
    """Compare a lab's verdicts with those that are known of its provider.

    Return the claims that it has skipped though the provider is no reason to: the lab must be one.
    """
    assert part["facts"]["provider"] == provider
    assert part["findings"]
    wrong, doubtful = [], set()
    for finding in part["findings"]:
        name, verdict = finding["claim"], finding["verdict"]
        known = by_provider()[name][provider].verdict
        if not finding["as_expected"]:
            wrong.append((name, verdict, finding["reason"] or finding["problem"]))
        elif known == "skipped" != verdict:
            wrong.append((name, verdict, "it is known as skipped"))
        elif verdict == "skipped" != known:
            doubtful.add(name)
    assert wrong == []
    return doubtful


def verdicts_hold(bed: Bed, folder: Path, topology: str, provider: str, *options: str) -> None:
    """Create a lab, verify and compare it, and remove it.

    A claim that it has skipped must be known as skipped with the provider, or be skipped on a lab
    of the default provider, too.
    """
    up = bed.run("up", topology, "--provider", provider, *options, "-q", timeout=SECONDS)
    assert up.returncode == 0, up.stderr
    doubtful = compare(verified(bed, folder, topology), provider)
    bed.must("down", topology, "-q")
    if doubtful:
        bed.must("up", topology, "--name", "usual", *options, "-q")
        usual = verified(bed, folder, "usual", sorted(doubtful))
        bed.must("down", "usual", "-q")
        assert doubtful - skipped(usual) == set()
