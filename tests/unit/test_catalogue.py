"""The catalogue: each claim well formed, and decided by one test, no more and no less."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import get_args

import pytest

from testbed import cli, pytest_checks
from testbed.catalogues.shipped import FOLDER
from testbed.claims import catalogue
from testbed.claims.model import FEATURES, Claim, Kind, Otherwise, Verdict, fits
from testbed.cli.claims import complete_claims
from testbed.errors import CatalogueError
from testbed.suites.everything import WANTED
from testbed.topology import load, names
from testbed.topology.load import Overrides
from testbed.topology.model import PLUGINS


@pytest.fixture(autouse=True)
def _read_anew() -> Iterator[None]:
    catalogue.claims.cache_clear()
    yield
    catalogue.claims.cache_clear()


def marked_tests() -> dict[str, list[str]]:
    """The tests of the suites that carry a claim's mark, read without running anything."""
    found: dict[str, list[str]] = {}
    for name, node, _ in functions():
        for claim in marks("testbed_claim", node.decorator_list):
            found.setdefault(claim, []).append(name)
    return found


def functions() -> Iterator[tuple[str, ast.FunctionDef, ast.Module]]:
    """Each function of the suites as file::name, with its file."""
    for path in sorted(FOLDER.glob("test_*.py")):
        module = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(module):
            if isinstance(node, ast.FunctionDef):
                yield f"{path.name}::{node.name}", node, module


def marks(name: str, found: Iterable[ast.expr]) -> Iterator[str]:
    """The arguments of the marks of a name."""
    for mark in found:
        if isinstance(mark, ast.Call) and ast.unparse(mark.func) == f"pytest.mark.{name}":
            yield from map(ast.literal_eval, mark.args)


def of_module(module: ast.Module) -> Iterator[ast.expr]:
    """The marks in a module's ``pytestmark``: one, or a list of them."""
    for node in module.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark":
            yield from node.value.elts if isinstance(node.value, ast.List) else [node.value]


def marks_anywhere() -> Counter[str]:
    """How often each file has the mark in its code: also where marked_tests does not look."""
    found: Counter[str] = Counter()
    for path in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node).endswith("mark.testbed_claim"):
                found[path.name] += 1
    return found


# -- the shipped one -----------------------------------------------------------


def test_all_documents_are_there_in_order() -> None:
    documents = [claim.document for claim in catalogue.claims().values()]
    assert documents == sorted(documents)
    assert set(documents) == {path.stem for path in catalogue.FOLDER.glob("[0-9]*.yaml")}
    assert set(documents) == {"000", "001", "002", "003", "004"}


def test_ids_are_words_and_the_keys() -> None:
    for key, claim in catalogue.claims().items():
        assert key == claim.id
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", key), key


def test_every_claim_is_complete() -> None:
    for claim in catalogue.claims().values():
        for text in (claim.place, claim.claim, claim.check):
            assert text, claim.id
            assert text == text.strip(), claim.id
        assert claim.kind in get_args(Kind), claim.id
        assert claim.expect in get_args(Verdict), claim.id
        assert claim.needs, claim.id
        assert len(set(claim.needs)) == len(claim.needs), claim.id
        assert claim.expect in {"confirmed", "not testable"} or claim.why, claim.id


def test_every_claim_expects_what_a_check_can_come_to() -> None:
    for claim in catalogue.claims().values():
        expected = {claim.expect, *(other.expect for other in claim.otherwise)}
        if claim.is_testable:
            assert expected <= {"confirmed", "conditional", "contradicted"}, claim.id
        else:
            assert expected == {"not testable"}, claim.id


def features_of_shipped_labs() -> list[set[str]]:
    """What each shipped topology has, each variant of `verify --all`, and each network plugin."""
    shipped = [load(name) for name in names()] + [wanted.load() for wanted in WANTED]
    shipped += [load("k8s-two-node", Overrides(cni=plugin)) for plugin in PLUGINS]
    return [pytest_checks.features(topology) for topology in shipped]


def test_a_feature_that_a_lab_has_is_a_word_of_the_catalogue() -> None:
    had = set().union(*features_of_shipped_labs())
    assert had == set(FEATURES), "none is missing, none is had by no shipped lab"


def test_what_a_claim_needs_is_had_by_a_shipped_lab() -> None:
    labs = features_of_shipped_labs()
    for claim in catalogue.claims().values():
        assert any(set(claim.needs) <= lab for lab in labs), (claim.id, claim.needs)


def test_every_claim_has_one_test_and_every_mark_a_claim() -> None:
    marked = marked_tests()
    testable = {claim.id for claim in catalogue.claims().values() if claim.is_testable}
    assert sorted(set(marked) - testable) == [], "marks without a claim that can be tested"
    assert sorted(testable - set(marked)) == [], "claims without a test"
    assert {claim: tests for claim, tests in marked.items() if len(tests) > 1} == {}


def test_what_an_entry_needs_its_test_is_marked_with() -> None:
    """The mark decides where the test runs, the entry which labs are brought up for it.

    The mark may ask for more, such as ``gateway``, where the statement itself does not.
    """
    catalogued = catalogue.claims()
    for name, node, module in functions():
        marked = set(marks("testbed_needs", [*node.decorator_list, *of_module(module)]))
        assert marked <= set(FEATURES), name
        for claim in marks("testbed_claim", node.decorator_list):
            needs = set(catalogued[claim].needs)
            if needs == {"none"}:
                assert marked <= {"none"}, (claim, name)
            else:  # any lab has netns
                assert needs - {"netns"} <= marked - {"none"}, (claim, name)
                assert marked, (claim, name)


def test_no_mark_is_overlooked() -> None:
    marked = [name for names in marked_tests().values() for name in names]
    assert Counter(name.partition("::")[0] for name in marked) == marks_anywhere()


def test_no_test_hides_another_of_the_same_name() -> None:
    for path in FOLDER.glob("test_*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        seen = Counter(node.name for node in tree.body if isinstance(node, ast.FunctionDef))
        assert [name for name, count in seen.items() if count > 1] == [], path.name


# -- bad ones ------------------------------------------------------------------

GOOD = """\
- id: a-claim
  document: "002"
  place: line 1
  claim: It is so.
  kind: state
  needs: [docker, netns]
  expect: confirmed
  check: Look.
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(catalogue, "FOLDER", tmp_path)
    monkeypatch.chdir(tmp_path)  # paths are told as short as they can be
    return tmp_path


def test_the_least_that_a_claim_has(folder: Path) -> None:
    (folder / "002.yaml").write_text(GOOD)
    claim = catalogue.claims()["a-claim"]
    assert claim == Claim(
        "a-claim", "002", "line 1", "It is so.", "state", ("docker", "netns"), "confirmed", "Look."
    )
    assert set(claim.to_dict()) == {
        *("id", "document", "place", "claim", "kind", "needs", "expect", "check", "why", "quoted"),
        "otherwise",
    }


def test_all_that_a_claim_can_have(folder: Path) -> None:
    more = "  why: Because.\n  quoted: [docker0, '80']\n"
    (folder / "002.yaml").write_text(GOOD.replace("confirmed", "conditional") + more)
    claim = catalogue.claims()["a-claim"]
    assert (claim.why, claim.quoted, claim.expect) == ("Because.", ("docker0", "80"), "conditional")


def test_files_are_read_by_name(folder: Path) -> None:
    for number in ("003", "000", "002"):
        (folder / f"{number}.yaml").write_text(
            GOOD.replace("002", number).replace("a-claim", f"c{number}")
        )
    (folder / "notes.txt").write_text("not of the catalogue")
    assert list(catalogue.claims()) == ["c000", "c002", "c003"]


OTHERWISE = """\
  otherwise:
  - when: {docker: ">= 28", firewall: nftables}
    expect: contradicted
    why: It is new.
"""


def test_what_is_expected_on_other_labs(folder: Path) -> None:
    more = OTHERWISE + "  - when: {docker: '>= 28'}\n    expect: conditional\n    why: It may be.\n"
    (folder / "002.yaml").write_text(GOOD + more)
    claim = catalogue.claims()["a-claim"]
    assert claim.otherwise == (
        Otherwise({"docker": ">= 28", "firewall": "nftables"}, "contradicted", "It is new."),
        Otherwise({"docker": ">= 28"}, "conditional", "It may be."),
    )
    assert claim.to_dict()["otherwise"][1] == {
        "when": {"docker": ">= 28"},
        "expect": "conditional",
        "why": "It may be.",
    }
    new = {"docker": "29.8.1", "firewall": "nftables"}
    assert claim.expected(new) == ("contradicted", "It is new.")  # the first that fits
    assert claim.expected({**new, "firewall": "iptables-nft"}) == ("conditional", "It may be.")
    assert claim.expected({**new, "docker": "20.10.24"}) == ("confirmed", "")
    assert claim.expected({"firewall": "nftables"}) == ("confirmed", "")  # a lab without docker
    assert claim.expected({}) == ("confirmed", "")


def test_a_definition_is_not_testable(folder: Path) -> None:
    text = GOOD.replace("confirmed", "not testable").replace("state", "definition")
    (folder / "002.yaml").write_text(text)
    assert not catalogue.claims()["a-claim"].is_testable


@pytest.mark.parametrize(
    ("wanted", "seen", "fit"),
    [
        ("nftables", "nftables", True),
        ("nftables", "iptables-nft", False),
        ("vxlan", "", False),
        (">= 28", "28.0.0", True),
        (">= 28", "29.8.1", True),
        (">= 28", "27.5.1", False),
        ("< 28", "20.10.24", True),
        ("< 28", "28.0.1", False),
        ("> 20.10", "20.10.24", False),  # in as many numbers as the condition has
        ("<= 20.10", "20.10.24", True),
        (">= 20.10.24", "20.10.24+dfsg1", True),
        (">= 20.10", "20.9.30", False),  # as numbers, not as text
        ("< 3", "20.10", False),
        (">= 28", "", False),
        ("< 28", "unknown", False),
    ],
)
def test_whether_a_fact_fits(wanted: str, seen: str, fit: bool) -> None:
    assert fits(wanted, seen) is fit


BAD: dict[str, tuple[str, str, str]] = {  # text, what is said, the hint
    "no id": (
        GOOD.replace("- id: a-claim\n  document", "- document"),
        "1: ?: 'id' is missing",
        "table of the keys",
    ),
    **{
        f"no {key}": (
            re.sub(rf"  {key}:.*\n", "", GOOD),
            f"1: a-claim: '{key}' is missing",
            "table of the keys",
        )
        for key in ("document", "place", "claim", "kind", "needs", "expect", "check")
    },
    "a key too many": (
        GOOD + "  because: x\n",
        "9: a-claim: unknown key 'because'",
        "known: id, document, place",
    ),
    "a mistyped key": (
        GOOD.replace("expect:", "expects:"),
        "7: a-claim: unknown key 'expects'",
        "did you mean 'expect'?",
    ),
    "an unknown kind": (
        GOOD.replace("state", "sttae"),
        "5: a-claim: unknown kind 'sttae'",
        "did you mean 'state'? known: state, reach, path, isolation, arith, perf, definition, api",
    ),
    "an unknown verdict": (
        GOOD.replace("confirmed", "true-ish"),
        "7: a-claim: unknown verdict 'true-ish'",
        "known: confirmed, contradicted, conditional",
    ),
    "an unknown feature": (
        GOOD.replace("docker", "dokcer"),
        "6: a-claim: unknown feature 'dokcer'",
        "did you mean 'docker'? known: none, netns",
    ),
    "a feature in a line of its own": (
        GOOD.replace("[docker, netns]", "\n  - docker\n  - moon"),
        "8: a-claim: unknown feature 'moon'",
        "known: ",
    ),
    "no need": (GOOD.replace("[docker, netns]", "[]"), "6: a-claim: needs: an empty", "[none]"),
    "no reason": (
        GOOD.replace("confirmed", "conditional"),
        "7: a-claim: expects 'conditional' and does not say why",
        "add `why`",
    ),
    "an id twice": (GOOD + GOOD, "9: a-claim: is there twice", "rename"),
    "a number": (
        GOOD.replace('"002"', "002"),
        "2: a-claim: document: wanted text, saw 2",
        "quote it",
    ),
    "a text for a list": (
        GOOD.replace("[docker, netns]", "docker"),
        "6: a-claim: needs: wanted a list of texts, saw 'docker'",
        "[one, two]",
    ),
    "nothing for a list": (
        GOOD.replace("[docker, netns]", ""),
        "6: a-claim: needs: wanted a list of texts, saw None",
        "[one, two]",
    ),
    "numbers in a list": (
        GOOD + "  quoted: [80]\n",
        "9: a-claim: quoted: wanted text, saw 80",
        "quote it",
    ),
    "a condition on no fact": (
        GOOD + OTHERWISE.replace("firewall", "firewal"),
        "10: a-claim: unknown fact 'firewal'",
        "did you mean 'firewall'?",
    ),
    "a condition that is a number": (
        GOOD + OTHERWISE.replace('">= 28"', "28"),
        "10: a-claim: otherwise: docker: wanted text, saw 28",
        "quote it",
    ),
    "a condition that is mistyped": (
        GOOD + OTHERWISE.replace(">= 28", ">=28"),
        "10: a-claim: otherwise: docker: '>=28'",
        'such as ">= 28"',
    ),
    "no condition": (
        GOOD + re.sub(r"\{docker.*\}", "{}", OTHERWISE),
        "10: a-claim: otherwise: 'when' is missing",
        "",
    ),
    "no mapping of conditions": (
        GOOD + re.sub(r"\{docker.*\}", "docker", OTHERWISE),
        "10: a-claim: otherwise: when: wanted facts, saw 'docker'",
        "",
    ),
    "otherwise without a reason": (
        GOOD + OTHERWISE.replace("It is new.", '""'),
        "10: a-claim: otherwise: 'why' is missing",
        "",
    ),
    "otherwise a number for a reason": (
        GOOD + OTHERWISE.replace("It is new.", "7"),
        "12: a-claim: otherwise: why: wanted text, saw 7",
        "",
    ),
    "otherwise an unknown verdict": (
        GOOD + OTHERWISE.replace("contradicted", "wrong"),
        "11: a-claim: unknown verdict 'wrong'",
        "known: confirmed",
    ),
    "otherwise an unknown key": (
        GOOD + OTHERWISE.replace("why", "reason"),
        "12: a-claim: unknown key 'reason'",
        "known: when, expect, why",
    ),
    "otherwise that is no list": (
        GOOD + "  otherwise: {when: {}}\n",
        "9: a-claim: otherwise: wanted a list",
        "",
    ),
    "otherwise a word": (
        GOOD + "  otherwise: [never]\n",
        "9: a-claim: otherwise: wanted an expectation, saw 'never'",
        "`when`",
    ),
    "a state that is not testable": (
        GOOD.replace("confirmed", "not testable"),
        "5: a-claim: only a definition is not testable",
        "kind: definition",
    ),
    "a word": ("- word\n", "1: wanted a claim, saw 'word'", "- id: NAME"),
    "a mapping": ("id: a-claim\n", "1: wanted claims, saw {'id'", "- id: NAME"),
    "a word alone": ("nothing\n", "1: wanted claims, saw 'nothing'", "- id: NAME"),
    "nothing": ("# to come\n", " an empty file", "remove it"),
    "a colon in a text": (
        GOOD.replace("It is so.", "It is: so."),
        "4: not YAML: mapping values",
        "quote a text that holds ': '",
    ),
    "a quote that is not closed": (GOOD + '  why: "because\n', "10: not YAML: ", "indentation"),
    "a byte that is none": ("\0", " not YAML: ", ""),
}


@pytest.mark.parametrize(("text", "message", "hint"), BAD.values(), ids=BAD.keys())
def test_a_bad_entry_is_named(folder: Path, text: str, message: str, hint: str) -> None:
    (folder / "002.yaml").write_text(text)
    with pytest.raises(CatalogueError) as caught:
        catalogue.claims()
    assert caught.value.message.startswith(f"002.yaml:{message}")
    assert hint in (caught.value.hint or "")


def test_an_id_is_not_used_by_two_documents(folder: Path) -> None:
    (folder / "001.yaml").write_text(GOOD)
    (folder / "002.yaml").write_text(GOOD)
    with pytest.raises(CatalogueError, match=r"^002\.yaml:1: a-claim: is there twice"):
        catalogue.claims()


@pytest.mark.parametrize("command", [["claims"], ["claims", "show", "a-claim"]])
def test_a_bad_entry_is_wrong_use_for_every_command(
    folder: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "002.yaml").write_text(GOOD.replace("state", "status"))
    assert cli.run(command) == 2
    said = capsys.readouterr().err
    assert "testbed: 002.yaml:5: a-claim: unknown kind 'status'" in said
    assert "Traceback" not in said


def test_a_bad_entry_keeps_the_shell_from_completing_and_no_more(folder: Path) -> None:
    (folder / "002.yaml").write_text("- word\n")
    assert complete_claims(None, None, "") == []
