"""docs/claims.md: its catalogue can be used, and its tables name all that there is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from pages import DOCS, files_of, write_files

from testbed.claims.load import (
    CATALOGUE,
    OF_CATALOGUE,
    OF_CLAIM,
    OF_DOCUMENT,
    OF_LAB,
    SABOTAGES,
    TRANSLATIONS,
    load,
)
from testbed.claims.model import EXPECTED, Kind
from testbed.cli.verify import command
from testbed.topology.variant import options

PAGE = (DOCS / "claims.md").read_text(encoding="utf-8")


def test_the_catalogue_of_the_page_is_whole(tmp_path: Path) -> None:
    found = load(write_files("claims.md", tmp_path) / "claims")
    assert {claim.expect for claim in found.claims.values()} == {"confirmed", "contradicted"}
    assert {name for one in found.sabotages for name in one.claims} == set(found.claims)
    assert set(found.translations["de"]) == set(found.claims)
    (lab,) = found.labs
    topology = lab.load()
    assert str(topology.address("web")) == "10.168.0.2"
    orders = [order for one in found.sabotages for order in (*one.do, *one.undo)]
    assert {order.place for order in orders} <= set(topology.nodes)


def test_each_kind_of_file_is_shown() -> None:
    names = {name.removeprefix("claims/") for name in files_of("claims.md")}
    assert {CATALOGUE, SABOTAGES, f"{TRANSLATIONS}/de.yaml"} <= names


def test_all_keys_and_words_are_on_the_page() -> None:
    words = set(re.findall(r"`([\w ]+)(?::[^`]*)?`", PAGE))
    varied = {"provider", *options()}
    for known in (OF_CATALOGUE, OF_CLAIM, OF_DOCUMENT, OF_LAB, EXPECTED, get_args(Kind), varied):
        assert set(known) <= words, known


def test_options_that_the_page_names_exist() -> None:
    known = {option for param in command.params for option in param.opts}
    lines = [line for line in PAGE.splitlines() if line.startswith("testbed verify")]
    used = {word for line in lines for word in re.findall(r"\s(--?[a-z-]+)", line)}
    assert used
    assert used <= known
