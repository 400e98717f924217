"""The catalogue in other languages: whole, of the catalogue as it is, and saying the same."""

from __future__ import annotations

import re
from collections.abc import Iterator

from catalogues import claims, shipped

from testbed.catalogues.shipped import FOLDER
from testbed.claims.model import texts
from testbed.report.words import LANGUAGES

CHINESE = re.compile(r"[一-鿿]")
CODE = re.compile(r"`[^`]+`")
#: Addresses, versions, lines, counts: figures that are no part of a word such as "layer-3".
FIGURES = re.compile(r"(?<![\w.:/-])\d+(?:[.:/]?[\da-f]+)*", re.ASCII)


def pairs() -> Iterator[tuple[str, str, str]]:
    """Each id with an English text and the Chinese one that is given for it."""
    for name, text in shipped().translations["zh"].items():
        for english, chinese in texts(claims()[name].to_dict(), text.to_dict()).items():
            yield name, english, chinese


# -- the shipped ones -----------------------------------------------------------


def test_every_claim_has_a_translation_and_no_other() -> None:
    found = shipped().translations["zh"]
    assert sorted(set(claims()) - set(found)) == [], "claims without a translation"
    assert list(found) == list(claims()), "not in the order of the catalogue"


def test_reasons_are_there_just_where_the_entry_has_them() -> None:
    for name, text in shipped().translations["zh"].items():
        claim = claims()[name]
        assert text.claim, claim.id
        assert bool(text.why) == bool(claim.why), claim.id
        assert len(text.otherwise) == len(claim.otherwise), claim.id
        assert all(text.otherwise), claim.id


def test_it_is_chinese_on_one_line() -> None:
    for name, _, chinese in pairs():
        assert CHINESE.search(chinese), name
        assert chinese == chinese.strip(), name
        assert "\n" not in chinese, name  # a folded line would put a blank between characters
        assert not re.search(r"[一-鿿] [一-鿿]", chinese), name


def test_values_that_the_claim_quotes_stay() -> None:
    found = shipped().translations["zh"]
    for claim in claims().values():
        for value in claim.quoted:
            if value in claim.claim:
                assert value in found[claim.id].claim, (claim.id, value)


def test_commands_and_figures_are_the_same() -> None:
    for name, english, chinese in pairs():
        assert set(CODE.findall(chinese)) == set(CODE.findall(english)), name
        assert set(FIGURES.findall(english)) <= set(FIGURES.findall(chinese)), name


def test_every_other_file_beside_the_catalogue_is_a_language_of_the_report() -> None:
    others = {path.stem for path in (FOLDER / "translations").glob("*.yaml")}
    assert others
    assert others <= set(LANGUAGES)
