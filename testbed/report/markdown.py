"""A run as Markdown: a short summary for the page of a CI job."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from testbed.report import data

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Value = Mapping[str, Any]

ROWS = 100  # of what went wrong; services cut a page of more than a megabyte
LENGTH = 300  # characters of a cell
UNDECIDED = {None, "skipped", "not testable"}
#: Characters that Markdown or HTML could take for markup.
MARKUP = re.compile(r"([\\`*_{}\[\]()#+!|<>~$&@])")


def render(run: object) -> str:
    """Return the summary of a run, as :func:`testbed.report.data.to_dict` returns it.

    Raises UsageError for anything else.
    """
    value = data.current(run)
    labs = value["labs"]
    wrong = [row for lab in labs for row in _wrong(lab)]
    wrong += _undecided(value)
    lines = [f"### {_headline(value, len(wrong))}", ""]
    if labs:
        heads = ("lab", "up", "as expected", "not", "skipped", "other checks", "failed", "time")
        lines += [*_table(heads, map(_lab, labs), right=range(1, 8)), ""]
    if wrong:
        lines += [*_table(("lab", "claim or check", "expected", "seen"), wrong[:ROWS]), ""]
    if len(wrong) > ROWS:
        lines += [f"{len(wrong) - ROWS} more are in the other output of the run.", ""]
    if versions := _versions(labs):
        rows = ((_text(name), _text(version)) for name, version in versions)
        lines += ["<details><summary>Versions</summary>", ""]
        lines += [*_table(("program", "version"), rows), "", "</details>", ""]
    return "\n".join([*lines, ""])


def _headline(run: Value, wrong: int) -> str:
    labs = [lab for lab in run["labs"] if lab["topology"]]
    where = f"{len(labs)} labs" if labs else "no lab"
    where = f"`{labs[0]['lab']}`" if len(labs) == 1 else where
    claims = [claim for claim in run["claims"] if claim["verdict"] not in UNDECIDED]
    checks = sum(len(lab["checks"]) for lab in run["labs"])
    words = [f"{len(claims)} {'claim' if len(claims) == 1 else 'claims'}"] if claims else []
    words += [f"{checks} {'check' if checks == 1 else 'checks'}"] if checks else []
    if run["interrupted"]:
        sign, end = "❌", "interrupted"
    elif wrong:
        sign, end = "❌", f"{wrong} not as expected"
    elif not data.tested(run):
        return "❌ testbed: nothing was tested"
    else:
        sign, end = "✅", "all as expected"
    return f"{sign} testbed: {' and '.join(words) or 'nothing'} on {where}, {end}"


def _lab(lab: Value) -> Sequence[str]:
    verdicts = Counter(
        "skipped" if one["verdict"] == "skipped" and one["as_expected"] else one["as_expected"]
        for one in lab["findings"]
    )
    failed = sum(check["outcome"] == "failed" for check in lab["checks"])
    return (
        _text(lab["lab"]),
        f"{lab['up']:.1f} s" if lab["up"] else "-",
        *(str(verdicts[key] or "-") for key in (True, False, "skipped")),
        str(len(lab["checks"]) or "-"),
        str(failed or "-"),
        f"{lab['seconds']:.1f} s",
    )


def _wrong(lab: Value) -> Iterable[Sequence[str]]:
    """Yield a row for everything of a lab that went wrong."""
    name = _text(lab["lab"])
    if lab["error"]:
        yield name, "the lab", "it starts", _text(lab["error"])
    for one in lab["findings"]:
        if not one["as_expected"]:
            seen = one["problem"] or f"{one['verdict']}: {one['reason']}"
            yield name, _text(one["claim"]), _text(str(one["expected"])), _text(seen)
    for one in lab["checks"]:
        if one["outcome"] == "failed":
            yield name, _text(one["name"]), "it passes", _text(one["problem"])
    for text in lab["broken"]:
        yield name, "a suite", "it can be loaded", _text(text)


def _undecided(run: Value) -> Iterable[Sequence[str]]:
    """Yield a row for each claim that a lab of the run should have decided."""
    if run["complete"] and not run["interrupted"]:
        found = {one["claim"] for lab in run["labs"] for one in lab["findings"]}
        for claim in run["claims"]:
            if not claim["as_expected"] and claim["id"] not in found:
                yield "-", _text(claim["id"]), "a verdict", "no lab decided it"


def _versions(labs: Sequence[Value]) -> list[tuple[str, str]]:
    found: dict[str, list[str]] = {}
    for lab in labs:
        for part, version in lab["versions"].items():
            known = found.setdefault(part, [])
            known.extend([version] if version not in known else [])
    return [(part, ", ".join(versions)) for part, versions in sorted(found.items())]


def _table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[int] = ()
) -> list[str]:
    sides = set(right)
    line = "|".join("--:" if at in sides else "---" for at in range(len(heads)))
    return [_row(heads), f"|{line}|", *map(_row, rows)]


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _text(words: str) -> str:
    """Return text as one cell of a table, without markup and of a limited length."""
    line = " ".join("".join(c if c.isprintable() else " " for c in words).split())
    if len(line) > LENGTH:
        line = f"{line[:LENGTH]} …"
    return MARKUP.sub(r"\\\1", line)
