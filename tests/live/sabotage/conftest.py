"""The labs that are sabotaged, and the order of the trials."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sabotage.gather import JUDGEMENTS
from sabotage.table import write_judgements
from sabotage.trials import JUDGED, Labs, Share

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One share after the other: walks, sabotages of claims, the check that its lab is whole.

    Sabotages that ruin the lab are among those of claims.
    """
    shares: dict[Share, int] = {}

    def order(item: pytest.Item) -> tuple[int, bool, bool]:
        share: Share = item.callspec.params["share"]  # type: ignore[attr-defined]
        whole = "sabotage" not in item.callspec.params  # type: ignore[attr-defined]
        item.add_marker(pytest.mark.xdist_group(f"sabotage {share}"))
        walks = item.originalname == "test_a_walk_names_what_ended_it"  # type: ignore[attr-defined]
        return shares.setdefault(share, len(shares)), whole, not walks

    here = [item for item in items if item.path.parent == Path(__file__).parent]
    ordered = iter(sorted(here, key=order))
    chosen = set(here)
    items[:] = [next(ordered) if item in chosen else item for item in items]


@pytest.fixture(scope="module")
def labs() -> Iterator[Labs]:
    """Labs of this module, one at a time: the tests of others find none of them."""
    kept = Labs()
    yield kept
    kept.drop()


@pytest.fixture(autouse=True)
def _judgements(record_property: Callable[[str, object], None]) -> Iterator[None]:
    """Report the judgements of this test alone."""
    JUDGED.clear()
    yield
    record_property(JUDGEMENTS, write_judgements())
