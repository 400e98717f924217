"""Tables of the page on verdicts by provider, from the shipped catalogue."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from testbed.claims.choose import SHIPPED, choose
from testbed.suites.by_provider import reasons, table, verdicts

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from testbed.suites.by_provider import Known

VERDICTS = ("confirmed", "contradicted", "conditional", "skipped", "not testable")


def found() -> Mapping[str, Mapping[str, Known]]:
    """Return the verdict of each shipped claim with each provider."""
    return verdicts(choose((SHIPPED,)))


def counts(known: Mapping[str, Mapping[str, Known]]) -> str:
    """Return the table with the number of claims by provider and verdict."""
    names = next(iter(known.values()))
    rows = [("provider", *VERDICTS)]
    for name in names:
        count = Counter(row[name].verdict for row in known.values())
        rows.append((f"`{name}`", *(str(count[verdict]) for verdict in VERDICTS)))
    return markdown(rows)


def whys(known: Mapping[str, Mapping[str, Known]]) -> str:
    """Return the table with the verdicts that have a provider as their reason."""
    rows = [("provider", "claims", "verdict", "reason")]
    for name, counted in reasons(known).items():
        rows += [(f"`{name}`", str(n), one.verdict, one.why) for one, n in counted.most_common()]
    return markdown(rows)


def every(known: Mapping[str, Mapping[str, Known]]) -> str:
    """Return the section with all claims."""
    head, *rows = table(known)
    return "\n## Every claim\n\n" + markdown([head, *((f"`{id_}`", *row) for id_, *row in rows)])


def markdown(rows: Iterable[Sequence[str]]) -> str:
    head, *rest = [f"| {' | '.join(row)} |\n" for row in rows]
    return "".join([head, "|---" * (head.count("|") - 1) + "|\n", *rest])
