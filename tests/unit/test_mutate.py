"""The script of `make mutants`: how it names, compares, draws and judges mutants."""

from __future__ import annotations

import ast
import subprocess
import tomllib
from collections import Counter

import mutate
import pytest


def made(number: int, file: str, *, was: str = "a and b", now: str = "a or b") -> mutate.Mutant:
    return mutate.Mutant(f"{file}.x_f__mutmut_{number}", file, "f", was, now, rewords=False)


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ('f("no such lab")', 'f("NO SUCH LAB")', True),
        ('f("no such lab", 1)', 'f("NO SUCH LAB", 2)', False),
        ('f("lab")', 'f("LAB")', False),
        ('" ".join(x)', '"XX XX".join(x)', False),
        ("f(f\"no lab {name or 'none'}\")", "f(f\"no lab {name or 'NONE'}\")", True),
        ("f(f\"{name or 'none'}\")", "f(f\"{name or 'NONE'}\")", False),
        ("f(f\"no lab {labs['a']}\")", "f(f\"no lab {labs['A']}\")", False),
        ("f(a and b)", "f(a or b)", False),
        ("f(a, b)", "f(a)", False),
    ],
)
def test_only_what_people_read_is_no_change(before: str, after: str, *, same: bool) -> None:
    assert mutate.rewords(ast.parse(before), ast.parse(after)) is same


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ('f(x, encoding="utf-8")', "f(x, encoding=None)", True),
        ('f(x, encoding="utf-8")', "f(x, )", True),
        ('f(x, encoding="utf-8")', 'f(None, encoding="utf-8")', False),
    ],
)
def test_the_encoding_of_a_file_is_no_change(before: str, after: str, *, same: bool) -> None:
    trees = (mutate.WithoutEncoding().visit(ast.parse(text)) for text in (before, after))
    assert mutate.rewords(*trees) is same


def test_the_lines_that_differ_are_shown() -> None:
    before = ["def f():", "    a = 1", "    b = g(", "        a,", "    )", "    return b"]
    after = ["def f():", "    a = 1", "    b = g(", "        None,", "    )", "    return b"]
    assert mutate.differing(before, after) == ("a,", "None,")
    assert mutate.differing(before, [*before[:2], "    b = None", before[5]]) == (
        "b = g( a, )",
        "b = None",
    )


def test_a_sample_is_spread_over_the_files_and_drawn_again_by_its_seed() -> None:
    known = [made(n, file) for file, count in (("a", 80), ("b", 20)) for n in range(count)]
    drawn = mutate.sample(known, 10, 7)
    assert Counter(mutant.file for mutant in drawn) == {"a": 8, "b": 2}
    assert drawn == mutate.sample(known, 10, 7)
    assert drawn != mutate.sample(known, 10, 8)
    assert len(set(mutate.sample(known, 1000, 7))) == len(known)


@pytest.mark.parametrize("word", ["killed", "segfault", "suspicious"])
def test_what_ends_badly_is_caught(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    both = [made(1, "a"), made(2, "a", now="b")]
    said = {both[0].name: word, both[1].name: "survived"}
    assert mutate.show(both, said) == 0.5
    printed = capsys.readouterr().out
    assert "+ b" in printed
    assert "+ a or b" not in printed


@pytest.mark.parametrize("word", ["timeout", "not checked", "check was interrupted by user", None])
def test_what_was_not_decided_is_listed_and_not_counted(
    word: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    both = [made(1, "a"), made(2, "a", now="b")]
    said = {both[0].name: "killed"} | ({both[1].name: word} if word else {})
    assert mutate.decided(both, said) == both[:1]
    assert "+ b" in capsys.readouterr().out


def test_untested_code_counts_as_survived() -> None:
    one = made(1, "a")
    assert mutate.show([one], {one.name: "no tests"}) == 0


def test_each_that_is_the_same_program_is_listed_once_with_its_reason() -> None:
    entries = mutate.same()
    assert all(entry.why and entry.was != entry.now for entry in entries)
    assert len({entry.key for entry in entries}) == len(entries)


@pytest.mark.source
def test_the_changed_program_has_all_files_of_the_project() -> None:
    if not (mutate.ROOT / ".git").exists():
        pytest.skip("not a clone: its files are not known")
    listed = subprocess.run(
        ["git", "ls-files"], cwd=mutate.ROOT, check=True, capture_output=True, text=True
    )
    settings = tomllib.loads((mutate.ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    copied = {*settings["tool"]["mutmut"]["also_copy"], "pyproject.toml", "testbed", "tests"}
    assert {line.split("/")[0] for line in listed.stdout.splitlines()} == copied
