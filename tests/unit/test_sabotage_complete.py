"""The list of sabotages: whole, and each with its words.  They are carried out on labs."""

from __future__ import annotations

from pathlib import Path

from sabotage import every
from sabotage.trials import NO_LAB, SABOTAGES, can_be_refuted

MODULES = {module.__name__.rpartition(".")[2] for module in every.MODULES}


def test_every_module_of_sabotages_is_loaded() -> None:
    assert every.__file__
    folder = Path(every.__file__).parent
    assert {path.stem for path in folder.glob("of_*.py")} == MODULES


def test_every_testable_claim_has_a_sabotage() -> None:
    listed = {claim for one in SABOTAGES for claim in one.flips}
    assert listed <= set(can_be_refuted()), "no such claims, or not testable"
    assert [claim for claim in can_be_refuted() if claim not in listed] == []


def test_every_sabotage_says_what_it_does_and_has_a_name_of_its_own() -> None:
    assert all(one.what.endswith(".") and one.flips for one in SABOTAGES)
    assert len({one.name for one in SABOTAGES}) == len(SABOTAGES)
    assert all(one.lab != NO_LAB or not one.ruins for one in SABOTAGES)
