"""Catalogues of one's own: how a folder is read, what is refused, and which one a command uses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from testbed import cli
from testbed.claims import choose, skeleton
from testbed.claims.catalogue import Catalogue, combine
from testbed.claims.load import load
from testbed.claims.model import Claim, Order, Otherwise, Sabotage, Translation
from testbed.errors import CatalogueError, UsageError
from testbed.registry import CATALOGUES
from testbed.testing.fakes import declare
from testbed.topology.load import Overrides

DOCUMENT = """\
title: Das Handbuch
language: de
titles: {en: The manual}
link: https://example.com/manual
claims:
- id: a-claim
  place: line 1
  claim: It is so.
  kind: state
  needs: [docker, netns]
  expect: confirmed
  check: Look.
"""
CHECK = """\
import pytest


@pytest.mark.testbed_claim("a-claim")
def test_it(observe):
    observe.holds(True, "it")
"""
TOPOLOGY = "name: small\nnodes: {node1: {}}\n"

Folder = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """Write a catalogue; files are given by name, with None for no file."""
    monkeypatch.chdir(tmp_path)  # paths are told as short as they can be

    def write(name: str = "claims", files: dict[str, str | None] | None = None) -> Path:
        found: dict[str, str | None] = {"manual.yaml": DOCUMENT, "test_it.py": CHECK}
        for file, text in {**found, **(files or {})}.items():
            if text is not None:
                path = tmp_path / name / file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
        return tmp_path / name

    return write


def problems(folder: Path) -> list[tuple[str, int, str, str, str]]:
    """The problems of a folder: file, line, what was wanted, what was seen, what to do."""
    with pytest.raises(CatalogueError) as caught:
        load(folder)
    assert caught.value.exit_code == 2
    return [
        (Path(file).name, one.line, one.wanted, one.seen, one.hint)
        for file, one in caught.value.problems
    ]


# -- what is read ----------------------------------------------------------------------


def test_the_least_that_a_catalogue_has(folder: Folder) -> None:
    found = load(folder())
    assert found.claims == {
        "a-claim": Claim(
            "a-claim", "manual", "line 1", "It is so.", "state", ("docker", "netns"), "confirmed",
            "Look.",
        )
    }  # fmt: skip
    document = found.documents["manual"]
    assert (document.title, document.language, document.claims_in) == ("Das Handbuch", "de", "en")
    assert (document.titles, document.link) == (
        {"en": "The manual"},
        "https://example.com/manual",
    )
    (source,) = found.sources
    assert (source.name, source.folder.name, source.language) == (
        Path.cwd().name,  # the folder that it belongs to
        "claims",
        "en",
    )
    assert (found.labs, found.sabotages, found.translations) == ((), (), {})
    place = found.checked_by("a-claim")
    assert place
    assert (place.file.name, place.line, place.name) == ("test_it.py", 5, "test_it")


def test_the_least_that_a_claim_has(folder: Folder) -> None:
    """Claims have defaults for everything but an ID and a statement."""
    text = "title: x\nclaims:\n- id: a-claim\n  claim: It is so.\n"
    text += "- {id: a-motive, claim: It was to be so., expect: not testable}\n"
    claim, motive = load(folder(files={"manual.yaml": text})).claims.values()
    assert (claim.kind, claim.needs, claim.expect) == ("state", ("netns",), "confirmed")
    assert (claim.place, claim.check, claim.origin) == ("", "", "manual")
    assert motive.kind == "definition"


def test_all_that_a_catalogue_can_have(folder: Folder, tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(TOPOLOGY)
    more = """\
  why: Because.
  quoted: [docker0, '80']
  otherwise:
  - {when: {docker: ">= 28"}, expect: contradicted, why: It is new.}
"""
    path = folder(
        files={
            "catalogue.yaml": "name: manual\ntitle: Handbücher\nlanguage: de\n"
            "titles: {en: Manuals}\nlabs:\n- {topology: two-node, backend: udp, nodes: 3}\n"
            "- {topology: ../small.yaml, measures: false, only: [a-*, docker]}\n",
            "manual.yaml": DOCUMENT.replace("confirmed", "conditional") + more,
            "translations/en.yaml": "a-claim: {claim: So., why: As., otherwise: [New.]}\n",
            "sabotages.yaml": "- name: cut\n  what: It is cut.\n  claims: [a-claim]\n"
            "  faults: ['partition node1:node2']\n  do: [node1/web: rm x]\n"
            "  undo: [node1: touch x]\n",
        }
    )
    found = load(path)
    claim = found.claims["a-claim"]
    assert (claim.why, claim.quoted, claim.expect) == ("Because.", ("docker0", "80"), "conditional")
    assert claim.otherwise == (Otherwise({"docker": ">= 28"}, "contradicted", "It is new."),)
    assert found.translations == {"en": {"a-claim": Translation("So.", "As.", ("New.",))}}
    assert found.languages == ("de", "en")
    first, second = found.labs
    assert (first.name, first.overrides) == (
        "two-node-udp-3-nodes",
        Overrides(backend="udp", nodes=3),
    )
    assert first.documents == ("manual",)
    assert (second.name, second.measures, second.only) == ("small", False, ("a-claim", "docker"))
    assert second.load().name == "all-small"
    assert found.sabotages == (
        Sabotage(
            "cut", "It is cut.", ("a-claim",), ("partition node1:node2",),
            (Order("node1/web", "rm x"),), (Order("node1", "touch x"),),
        ),
    )  # fmt: skip


def test_the_labs_of_a_folder_claims_are_the_topologies_beside_it(
    folder: Folder, tmp_path: Path
) -> None:
    for name in ("b.yaml", "a.yaml"):
        (tmp_path / name).write_text(TOPOLOGY)
    (tmp_path / "compose.yaml").write_text("services: {web: {}}\n")
    assert [lab.name for lab in load(folder()).labs] == ["a", "b"]
    assert load(folder("other")).labs == ()


def test_documents_are_in_the_order_of_their_names(folder: Folder) -> None:
    texts = {f"{name}.yaml": DOCUMENT.replace("a-claim", f"of-{name}") for name in ("c", "a", "b")}
    check = "\n".join(CHECK.replace("a-claim", f"of-{name}") for name in "abc")
    found = load(folder(files={"manual.yaml": None, **texts, "test_it.py": check}))
    assert list(found.claims) == ["of-a", "of-b", "of-c"]
    assert list(found.documents) == ["a", "b", "c"]


def test_a_claim_is_marked_in_any_way_that_python_knows(folder: Folder) -> None:
    names = [f"claim-{n}" for n in range(4)]
    text = DOCUMENT.partition("- id")[0] + "".join(
        DOCUMENT[DOCUMENT.index("- id") :].replace("a-claim", name) for name in names
    )
    check = """
import pytest
mark = pytest.mark.testbed_claim
WORD = "claim-" + "1"

@mark(WORD)
def test_one(): ...

@pytest.mark.parametrize("x", [pytest.param(1, marks=pytest.mark.testbed_claim('claim-2'))])
def test_two(x): ...

class TestAll:
    @pytest.mark.testbed_claim(
        "claim-3",
    )
    def test_three(self): ...
"""
    path = folder(files={"manual.yaml": text, "test_it.py": check + CHECK.replace("a-claim", "z")})
    (unknown, *others) = problems(path)
    assert (unknown[0], unknown[3]) == ("test_it.py", "'z'")
    # A mark in a variable of another name cannot be found, and is told when pytest collects it.
    assert {seen for _, _, seen, _, _ in others} <= {
        f"{name}: a check in a test_*.py of this catalogue" for name in names[:2]
    }


# -- what is refused --------------------------------------------------------------------

BAD: dict[str, tuple[dict[str, str | None], str, int, str, str]] = {
    # files; file and line of the problem, a word of what was wanted or seen, one of the hint
    "no claim key": ({"manual.yaml": DOCUMENT.replace("  claim: It is so.\n", "")}, "manual.yaml",
                     6, "'claim'", "table"),
    "a name of the catalogue": ({"catalogue.yaml": "name: 7\n"}, "catalogue.yaml", 1, "'name'",
                                'quote it: "7"'),
    "an unknown key": ({"manual.yaml": DOCUMENT + "  because: x\n"}, "manual.yaml", 13,
                       "because", "known: id"),
    "a mistyped key": ({"manual.yaml": DOCUMENT.replace("expect:", "expects:")}, "manual.yaml", 11,
                       "expects", "'expect'"),
    "a key of the document": ({"manual.yaml": "titel: x\n" + DOCUMENT}, "manual.yaml", 1,
                              "titel", "'title'"),
    "no title": ({"manual.yaml": DOCUMENT.replace("title: Das Handbuch\n", "")}, "manual.yaml", 1,
                 "'title'", "title"),
    "a language": ({"manual.yaml": DOCUMENT.replace("language: de", "language: German")},
                   "manual.yaml", 2, "BCP 47", "de"),
    "a link": ({"manual.yaml": DOCUMENT.replace("https:", "javascript:")}, "manual.yaml", 4,
               "address", "https://"),
    "a kind": ({"manual.yaml": DOCUMENT.replace("state", "sttae")}, "manual.yaml", 9,
               "sttae", "'state'"),
    "a verdict": ({"manual.yaml": DOCUMENT.replace("confirmed", "skipped")}, "manual.yaml", 11,
                  "skipped", "known: confirmed"),
    "a feature": ({"manual.yaml": DOCUMENT.replace("docker", "dokcer")}, "manual.yaml", 10,
                  "dokcer", "'docker'"),
    "no need": ({"manual.yaml": DOCUMENT.replace("[docker, netns]", "[]")}, "manual.yaml", 10,
                "needs", "[netns]"),
    "no list": ({"manual.yaml": DOCUMENT.replace("[docker, netns]", "docker")}, "manual.yaml", 10,
                "'docker'", "[docker"),
    "no reason": ({"manual.yaml": DOCUMENT.replace("confirmed", "conditional")}, "manual.yaml", 11,
                  "conditional", "why"),
    "a number": ({"manual.yaml": DOCUMENT.replace("line 1", "1")}, "manual.yaml", 7,
                 "the integer 1", 'quote it: "1"'),
    "nothing": ({"manual.yaml": DOCUMENT.replace("It is so.", "")}, "manual.yaml", 8,
                "nothing", "write"),
    "an empty text": ({"manual.yaml": DOCUMENT.replace("It is so.", "' '")}, "manual.yaml", 8,
                      "empty", "write"),
    "a key twice": ({"manual.yaml": DOCUMENT + "  check: Again.\n"}, "manual.yaml", 13,
                    "line 12", "remove"),
    "an id": ({"manual.yaml": DOCUMENT.replace("a-claim", "a claim")}, "manual.yaml", 6,
              "'a claim'", "letters"),
    "an anchor": ({"manual.yaml": DOCUMENT.replace("a-claim", "labs"),
                   "test_it.py": CHECK.replace("a-claim", "labs")}, "manual.yaml", 6, "anchor",
                  "topic"),
    "a definition": ({"manual.yaml": DOCUMENT.replace("confirmed", "not testable")},
                     "manual.yaml", 9, "state", "definition"),
    "a skip": ({"manual.yaml": DOCUMENT.replace("confirmed", "skipped")}, "manual.yaml", 11,
               "'skipped'", "contradicted"),
    "a fact": ({"manual.yaml": DOCUMENT + "  otherwise: [{when: {dokcer: x}, expect: confirmed, "
                "why: y}]\n"}, "manual.yaml", 13, "dokcer", "'docker'"),
    "a comparison": ({"manual.yaml": DOCUMENT + "  otherwise: [{when: {docker: '>=28'}, "
                      "expect: confirmed, why: y}]\n"}, "manual.yaml", 13, ">=28", ">= 28"),
    "no condition": ({"manual.yaml": DOCUMENT + "  otherwise: [{expect: confirmed, why: y}]\n"},
                     "manual.yaml", 13, "'when'", "add"),
    "a colon": ({"manual.yaml": DOCUMENT.replace("It is so.", "It is: so.")}, "manual.yaml", 8,
                "mapping values", "': '"),
    "not YAML": ({"manual.yaml": DOCUMENT + '  why: "x\n'}, "manual.yaml", 14, "YAML", "quote"),
    "a byte": ({"manual.yaml": "\0"}, "manual.yaml", 1, "NUL", "remove"),
    "an anchor of YAML": ({"manual.yaml": DOCUMENT.replace("It is so.", "&a It is so.")},
                          "manual.yaml", 8, "&a", "remove"),
    "an alias": ({"manual.yaml": DOCUMENT.replace("[docker, netns]", "*a")}, "manual.yaml", 10,
                 "*a", "write"),
    "a word with two meanings": ({"manual.yaml": DOCUMENT.replace("It is so.", "no")},
                                 "manual.yaml", 8, "boolean", 'quote it: "no"'),
    "an empty file": ({"manual.yaml": "# to come\n"}, "manual.yaml", 0, "empty", "remove"),
    "a list for a document": ({"manual.yaml": "- id: a-claim\n"}, "manual.yaml", 1, "a list",
                              "title"),
    "a word for claims": ({"manual.yaml": "title: x\nclaims: none\n"}, "manual.yaml", 2,
                          "'none'", "- id"),
    "no document": ({"manual.yaml": None, "test_it.py": "x = 1\n"}, "claims", 0, "none", "new"),
    "a name of a file": ({"my manual.yaml": "title: x\nclaims: []\n"}, "my manual.yaml", 0,
                         "my manual", "name"),
    "no check": ({"test_it.py": "def test_it(): ...\n"}, "manual.yaml", 6, "a-claim", "mark"),
    "a check too many": ({"test_it.py": CHECK + CHECK.replace("a-claim", "a-clam")}, "test_it.py",
                         11, "a-clam", "a-claim"),
    "a check of a definition": (
        {"manual.yaml": DOCUMENT.replace("confirmed", "not testable").replace(
            "state", "definition")}, "test_it.py", 5, "definition", "verdict"),
    "a translation too many": ({"translations/de.yaml": "a-clam: {claim: x}\n"}, "de.yaml", 1,
                               "a-clam", "a-claim"),
    "a translation without a text": ({"translations/de.yaml": "a-claim: {why: x}\n"}, "de.yaml",
                                     1, "'claim'", "translate"),
    "reasons": ({"translations/de.yaml": "a-claim: {claim: x, otherwise: [y]}\n"}, "de.yaml", 1,
                "otherwise", "order"),
    "a language of a file": ({"translations/german.yaml": "a-claim: {claim: x}\n"},
                             "german.yaml", 0, "BCP 47", "de.yaml"),
    "a sabotage of none": ({"sabotages.yaml": "- {name: x, what: y, claims: [a-clam], "
                            "faults: [partition node1:node2]}\n"}, "sabotages.yaml", 1, "a-clam",
                           "a-claim"),
    "a sabotage of nothing": ({"sabotages.yaml": "- {name: x, what: y, claims: [a-claim]}\n"},
                              "sabotages.yaml", 1, "'do'", "breaks"),
    "no way back": ({"sabotages.yaml": "- {name: x, what: y, claims: [a-claim], do: [n: z]}\n"},
                    "sabotages.yaml", 1, "'undo'", "repairs"),
    "a fault": ({"sabotages.yaml": "- {name: x, what: y, claims: [a-claim], "
                 "faults: [partitoin node1:node2]}\n"}, "sabotages.yaml", 1,
                "partitoin", "partition"),
    "a command": ({"sabotages.yaml": "- {name: x, what: y, claims: [a-claim], do: [ls], "
                   "undo: [n: z]}\n"}, "sabotages.yaml", 1, "'ls'", "NODE: COMMAND"),
    "a sabotage twice": ({"sabotages.yaml": 2 * "- {name: x, what: y, claims: [a-claim], "
                          "faults: [partition node1:node2]}\n"}, "sabotages.yaml", 2,
                         "again", "rename"),
    "a key of the catalogue": ({"catalogue.yaml": "labs: []\nlab: x\n"}, "catalogue.yaml", 2,
                               "lab", "labs"),
    "a topology": ({"catalogue.yaml": "labs: [{topology: two-nod}]\n"}, "catalogue.yaml", 1,
                   "two-nod", "two-node"),
    "a path": ({"catalogue.yaml": "labs: [{topology: ../none.yaml}]\n"}, "catalogue.yaml", 1,
               "exist", "path"),
    "a document of a lab": ({"catalogue.yaml": "labs: [{topology: two-node, documents: [x]}]\n"},
                            "catalogue.yaml", 1, "'x'", "manual"),
    "a pattern": ({"catalogue.yaml": "labs: [{topology: two-node, only: ['x*']}]\n"},
                  "catalogue.yaml", 1, "x*", "known"),
    "a boolean": ({"catalogue.yaml": "labs: [{topology: two-node, measures: never}]\n"},
                  "catalogue.yaml", 1, "never", "true"),
    "nodes": ({"catalogue.yaml": "labs: [{topology: two-node, nodes: many}]\n"},
              "catalogue.yaml", 1, "many", "change"),
}  # fmt: skip


@pytest.mark.parametrize(("files", "file", "line", "word", "hint"), BAD.values(), ids=BAD.keys())
def test_a_problem_is_named(
    files: dict[str, str | None], file: str, line: int, word: str, hint: str, folder: Folder
) -> None:
    found = problems(folder(files=files))
    (one,) = [found for found in found if word in found[2] + found[3]]
    assert one[:2] == (file, line)
    assert hint in one[4]


def test_a_problem_has_its_column(folder: Folder) -> None:
    text = DOCUMENT.replace("[docker, netns]", "[docker, nets]") + "  why: 7\n"
    with pytest.raises(CatalogueError) as caught:
        load(folder(files={"manual.yaml": text}))
    places = [(one.line, one.column) for _, one in caught.value.problems]
    assert places == [(10, 19), (13, 8)]
    assert "claims/manual.yaml:10:19: wanted a-claim: " in str(caught.value)


def test_more_problems_than_anybody_reads_are_cut_off(folder: Folder) -> None:
    text = "title: x\nclaims:\n" + "- 7\n" * 2000
    with pytest.raises(CatalogueError) as caught:
        load(folder(files={"manual.yaml": text}))
    assert 100 < len(caught.value.problems) < 1000


def test_a_file_that_is_no_text_is_named(folder: Folder) -> None:
    path = folder()
    (path / "manual.yaml").write_bytes(b"title: \xff\n")
    (path / "sabotages.yaml").mkdir()
    found = {name: wanted for name, _, wanted, _, _ in problems(path)}
    assert found["manual.yaml"] == "UTF-8 text"
    assert "sabotages.yaml" in found


def test_of_a_file_that_is_too_large_only_a_part_is_read(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder(files={"manual.yaml": "title: x\n" * 200_000})
    monkeypatch.setattr(Path, "read_bytes", lambda self: pytest.fail(f"{self} was read whole"))
    assert "manual.yaml" in {name for name, *_ in problems(path)}


def test_all_problems_are_said_at_once(folder: Folder) -> None:
    path = folder(
        files={
            "catalogue.yaml": "title: [x]\n",
            "manual.yaml": DOCUMENT.replace("state", "sttae").replace("Look.", "3"),
            "other.yaml": DOCUMENT,
            "test_it.py": CHECK.replace("a-claim", "other"),
            "translations/de.yaml": "other: {claim: x}\n",
            "sabotages.yaml": "- {name: x}\n",
        }
    )
    found = [(file, line) for file, line, *_ in problems(path)]
    assert set(found) == {
        ("catalogue.yaml", 1),
        ("manual.yaml", 9),
        ("manual.yaml", 12),
        ("other.yaml", 6),  # the same ID again
        ("test_it.py", 5),
        ("de.yaml", 1),
        ("sabotages.yaml", 1),
    }


@pytest.mark.parametrize("path", ["nowhere", "file"])
def test_what_is_no_folder_is_refused(path: str, folder: Folder, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (one,) = problems(tmp_path / path)
    assert "testbed claims new" in one[4]


def test_a_file_that_python_cannot_read_is_left_to_pytest(folder: Folder) -> None:
    assert load(folder(files={"test_it.py": f"{CHECK}def test_other(:\n"})).claims


# -- several -------------------------------------------------------------------------------


def test_claims_and_documents_of_two_must_differ(folder: Folder) -> None:
    one, two = folder("one"), folder("two")
    with pytest.raises(CatalogueError) as caught:
        combine([load(one), load(two)])
    said = str(caught.value)
    for place in ("one/manual.yaml:6", "two/manual.yaml:6", "'a-claim'", "'manual'"):
        assert place in said
    assert all("--catalogue" in problem.hint for _, problem in caught.value.problems)


def test_two_are_one_with_all_that_both_have(folder: Folder) -> None:
    labs = "labs: [{topology: two-node}]\n"
    one = folder("one", {"catalogue.yaml": labs, "translations/de.yaml": "a-claim: {claim: X}\n"})
    two = folder(
        "two",
        {
            "catalogue.yaml": labs,
            "manual.yaml": None,
            "guide.yaml": DOCUMENT.replace("a-claim", "other"),
            "test_it.py": CHECK.replace("a-claim", "other"),
            "translations/de.yaml": "other: {claim: Y}\n",
        },
    )
    found = combine([load(one), load(two)])
    assert list(found.claims) == ["a-claim", "other"]
    assert {name: text.claim for name, text in found.translations["de"].items()} == {
        "a-claim": "X",
        "other": "Y",
    }
    assert [(lab.name, lab.documents) for lab in found.labs] == [
        ("two-node", ("manual",)),
        ("two-node-2", ("guide",)),
    ]
    assert found.folders == (one, two)


# -- which one ------------------------------------------------------------------------------


def chosen(**more: Any) -> list[str]:
    return [one.name for one in choose.choose(more.pop("names", ()), **more).folders]


def test_the_nearest_is_used(folder: Folder, tmp_path: Path) -> None:
    topology = tmp_path / "lab" / "small.yaml"
    topology.parent.mkdir()
    topology.write_text(TOPOLOGY)
    assert chosen(source=str(topology)) == ["shipped"]
    folder("project")
    (tmp_path / "pyproject.toml").write_text('[tool.testbed]\ncatalogues = ["project"]\n')
    assert chosen(source=str(topology)) == ["project"]
    assert chosen() == ["project"]
    assert chosen(project=tmp_path / "lab" / "deep") == ["project"]
    folder("lab/claims")
    assert chosen(source=str(topology)) == ["claims"]
    assert chosen(names=["shipped"], source=str(topology)) == ["shipped"]
    assert chosen(names=["project", "./project"], source=str(topology)) == ["project"]
    assert chosen() == ["project"]


def test_a_folder_claims_without_documents_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "claims").mkdir()
    (tmp_path / "claims" / "letter.txt").write_text("of an insurance")
    assert chosen(source=str(tmp_path / "small.yaml")) == ["shipped"]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("[tool.testbed\n", "TOML"),
        ('[tool.testbed]\ncatalogues = "claims"\n', "list"),
        ("[tool.testbed]\ncatalogues = [3]\n", "list"),
        ('[tool.testbed]\ncatalogues = ["nowhere"]\n', "nowhere"),
    ],
)
def test_a_wrong_project_file_is_named(text: str, word: str, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(text)
    with pytest.raises(UsageError) as caught:
        choose.choose(project=tmp_path)
    assert "pyproject.toml" in caught.value.message
    assert word in caught.value.message


def test_the_folder_above_a_catalogue_is_told(tmp_path: Path) -> None:
    skeleton.create(tmp_path / "mine")
    with pytest.raises(UsageError) as caught:
        choose.folder_of("mine/", tmp_path)
    assert "mine/claims" in (caught.value.hint or "")
    assert choose.folder_of("mine/claims", tmp_path) == tmp_path / "mine" / "claims"


def test_a_project_file_of_others_is_passed_over(tmp_path: Path, folder: Folder) -> None:
    folder("project")
    (tmp_path / "pyproject.toml").write_text('[tool.testbed]\ncatalogues = ["project"]\n')
    below = tmp_path / "below"
    below.mkdir()
    (below / "pyproject.toml").write_text("[tool.other]\nx = 1\n")
    assert chosen(project=below) == ["project"]


def test_a_distribution_brings_one(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder("rack")
    declare(monkeypatch, CATALOGUES, "rack-manual", "theirs")
    monkeypatch.setattr(CATALOGUES, "_made", {})
    monkeypatch.setitem(sys.modules, "theirs", SimpleNamespace(__path__=[str(path)]))
    assert choose.installed() == ["shipped", "rack-manual"]
    assert chosen(names=["rack-manual"]) == ["rack"]
    with pytest.raises(UsageError) as caught:
        choose.folder_of("rack-manul")
    assert "rack-manual" in (caught.value.hint or "")


# -- the commands ---------------------------------------------------------------------------


def test_claims_are_listed_and_shown(folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    folder()
    assert cli.run(["claims", "--catalogue", "claims", "--json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)
    assert (one["id"], one["document"]) == ("a-claim", "manual")
    for argv in (
        ["claims", "--catalogue", "claims", "show", "a-claim"],
        ["claims", "show", "a-claim", "--catalogue", "claims"],
    ):
        assert cli.run(argv) == 0
        said = capsys.readouterr().out
        assert "claims/test_it.py:5, test_it" in said
        assert "--catalogue claims --claim a-claim" in said
    assert cli.run(["claims", "--catalogue", "claims", "--document", "000"]) == 2
    assert cli.run(["claims", "--catalogue", "nowhere"]) == 2


def test_a_problem_is_wrong_use_for_every_command(
    folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    folder(files={"manual.yaml": DOCUMENT.replace("state", "status")})
    for command in (["claims"], ["claims", "show", "a-claim"]):
        assert cli.run([*command, "--catalogue", "claims"]) == 2
        said = capsys.readouterr().err
        assert "claims/manual.yaml:9" in said
        assert "Traceback" not in said


def test_words_are_completed(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.shell_completion import ShellComplete

    folder()
    shell = ShellComplete(cli.cli, {}, "testbed", "_TESTBED_COMPLETE")

    def complete(*args: str, word: str = "") -> list[str]:
        return [item.value for item in shell.get_completions([*args], word)]

    monkeypatch.setenv("TESTBED_STATE", str(Path.cwd() / "state"))
    own = ("--catalogue", "claims")
    assert complete("claims", *own, "show") == ["a-claim"]
    assert complete("claims", "show", *own, word="a-") == ["a-claim"]
    assert complete("verify", *own, "--claim") == ["a-claim"]
    assert complete("verify", *own, "--document") == ["manual"]
    assert "shipped" in complete("verify", "--catalogue", word="sh")
    (Path.cwd() / "claims" / "manual.yaml").write_text("- word\n")
    assert complete("verify", *own, "--claim") == []


# -- a new one ------------------------------------------------------------------------------


def test_a_new_one_loads_and_is_not_written_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(["claims", "new", "My Course"]) == 0
    written = capsys.readouterr().out.splitlines()
    assert [line for line in written if not Path(line).is_file()] == []
    found = load(tmp_path / "My Course" / "claims")
    assert [lab.load().name for lab in found.labs] == ["all-my-course"]
    assert {name for one in found.sabotages for name in one.claims} == set(found.claims)
    readme = (tmp_path / "My Course" / "README.md").read_text()
    assert len(readme.splitlines()) <= 12
    assert all(Path("My Course", path).exists() for path in ("claims/my-course.yaml",))
    assert cli.run(["claims", "new", "My Course"]) == 2
    assert cli.run(["claims", "new", str(tmp_path / "My Course" / "README.md")]) == 2


def test_a_topology_and_a_readme_that_are_there_are_kept(tmp_path: Path) -> None:
    topology = "name: own\nnodes: {router: {}}\n"
    (tmp_path / "net.yaml").write_text(topology)
    (tmp_path / "README.md").write_text("mine")
    skeleton.create(tmp_path)
    assert (tmp_path / "net.yaml").read_text() == topology
    assert (tmp_path / "README.md").read_text() == "mine"
    (sabotage,) = load(tmp_path / "claims").sabotages
    assert sabotage.do[0].place == "router"
    assert 'lab.node("router")' in next((tmp_path / "claims").glob("test_*.py")).read_text()


@pytest.mark.parametrize("name", ["000", "host", "Ω", "a" * 60])
def test_any_folder_gives_a_name(name: str, tmp_path: Path) -> None:
    skeleton.create(tmp_path / name)
    assert isinstance(load(tmp_path / name / "claims"), Catalogue)


@pytest.mark.parametrize("argv", [["--help"], ["up", "--help"], ["plan", "two-node"]])
def test_commands_that_need_no_claims_load_none(argv: list[str]) -> None:
    text = (
        "import sys; from testbed import cli; cli.run(sys.argv[1:])\n"
        "heavy = ('testbed.claims', 'testbed.suites', 'testbed.catalogues')\n"
        "sys.exit(', '.join(name for name in sys.modules if name.startswith(heavy)) or 0)"
    )
    command = [sys.executable, "-c", text, *argv]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
