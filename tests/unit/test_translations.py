"""The catalogue in other languages: whole, of the catalogue as it is, and saying the same."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.claims import catalogue
from testbed.claims.model import Claim, Otherwise, Translation
from testbed.errors import CatalogueError
from testbed.report.words import LANGUAGES

CHINESE = re.compile(r"[一-鿿]")
CODE = re.compile(r"`[^`]+`")
#: Addresses, versions, lines, counts: figures that are no part of a word such as "layer-3".
FIGURES = re.compile(r"(?<![\w.:/-])\d+(?:[.:/]?[\da-f]+)*", re.ASCII)


@pytest.fixture(autouse=True)
def _read_anew() -> Iterator[None]:
    catalogue.claims.cache_clear()
    catalogue.translated.cache_clear()
    yield
    catalogue.claims.cache_clear()
    catalogue.translated.cache_clear()


def pairs() -> Iterator[tuple[str, str, str]]:
    """Each id with an English text and the Chinese one that is given for it."""
    for name, text in catalogue.translated("zh").items():
        for english, chinese in text.texts(catalogue.claims()[name]).items():
            yield name, english, chinese


# -- the shipped ones -----------------------------------------------------------


def test_every_claim_has_a_translation_and_no_other() -> None:
    claims, texts = catalogue.claims(), catalogue.translated("zh")
    assert sorted(set(claims) - set(texts)) == [], "claims without a translation"
    assert sorted(set(texts) - set(claims)) == [], "translations without a claim"
    assert list(texts) == list(claims), "not in the order of the catalogue"


def test_reasons_are_there_just_where_the_entry_has_them() -> None:
    claims = catalogue.claims()
    for name, text in catalogue.translated("zh").items():
        claim = claims[name]
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
    texts = catalogue.translated("zh")
    for claim in catalogue.claims().values():
        for value in claim.quoted:
            if value in claim.claim:
                assert value in texts[claim.id].claim, (claim.id, value)


def test_commands_and_figures_are_the_same() -> None:
    for name, english, chinese in pairs():
        assert set(CODE.findall(chinese)) == set(CODE.findall(english)), name
        assert set(FIGURES.findall(english)) <= set(FIGURES.findall(chinese)), name


def test_every_other_file_beside_the_catalogue_is_a_language_of_the_report() -> None:
    others = {path.stem for path in (catalogue.FOLDER / "translations").glob("*.yaml")}
    assert others
    assert others <= set(LANGUAGES)


# -- how they are read ------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(catalogue, "FOLDER", tmp_path)
    monkeypatch.chdir(tmp_path)  # paths are told as short as they can be
    (tmp_path / "translations").mkdir()
    return tmp_path / "translations"


def test_a_language_without_a_file_has_no_texts(folder: Path) -> None:
    assert catalogue.translated("en") == {}


def test_an_entry_has_a_claim_and_perhaps_reasons(folder: Path) -> None:
    (folder / "zh.yaml").write_text(
        "one:\n  claim: 一\ntwo:\n  claim: 二\n  why: 因\n  otherwise: [甲, 乙]\n", encoding="utf-8"
    )
    assert catalogue.translated("zh") == {
        "one": Translation("一"),
        "two": Translation("二", "因", ("甲", "乙")),
    }


BAD = {
    "a list": ("- one\n", "1: wanted texts by id, saw"),
    "nothing": ("# none\n", " an empty file"),
    "a text for an entry": ("one: 一\n", "1: one: no claim in"),
    "no claim": ("one:\n  why: 因\n", "2: one: no claim in"),
    "a number": ("one:\n  claim: 1\n", "2: one: claim: wanted text, saw 1"),
    "a text for a list": (
        "one:\n  claim: 一\n  otherwise: 甲\n",
        "3: one: otherwise: wanted a list of texts, saw '甲'",
    ),
    "numbers in a list": (
        "one:\n  claim: 一\n  otherwise: [1]\n",
        "3: one: otherwise: wanted text, saw 1",
    ),
    "a key too many": ("one:\n  claim: 一\n  check: 看\n", "3: one: unknown key 'check'"),
    "no YAML": ("one:\n  claim: [一\n", "3: not YAML: "),
}


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD.keys())
def test_a_bad_entry_is_named(folder: Path, text: str, message: str) -> None:
    (folder / "zh.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(CatalogueError, match=rf"^translations/zh\.yaml:{message}"):
        catalogue.translated("zh")


def test_each_english_text_leads_to_its_translation() -> None:
    other = Otherwise({"docker": ">= 28"}, "contradicted", "It is new.")
    claim = Claim(
        "one", "000", "line 1", "It is so.", "state", ("netns",), "conditional", "Look.",
        why="Because.", otherwise=(other,),
    )  # fmt: skip
    assert Translation("如此。", "因为。", ("新的。",)).texts(claim) == {
        "It is so.": "如此。",
        "Because.": "因为。",
        "It is new.": "新的。",
    }
    assert Translation("如此。").texts(claim) == {"It is so.": "如此。"}
