"""Mutation testing (mutmut): do the unit tests notice a small change of the program?

    python tests/mutation/mutate.py [--count N] [--seed N] [--only PATTERN ...]
    python tests/mutation/mutate.py --all

A mutant is the program with one small change: ``or`` for ``and``, ``None`` for an argument, 2
for 1.  It is caught when a unit test fails.  When the tests do not end in time it is undecided,
as the mutant may run forever or the machine may be too busy: it is listed, and counts neither
way.  ``[tool.mutmut]`` of pyproject.toml names the modules.  Without ``--all`` a random sample is
drawn, spread over all of them; its seed is printed, and draws it again as long as the program is
the same.

Left out are mutants that only reword a sentence, which no test may pin, or only name the encoding
of a file otherwise, and those that ``same.yaml`` lists as the same program: each with its line
before and after, and the reason.  An entry that fits no mutant any more, or whose mutant was
caught, is reported.

Exits with 1 when less than 85 % are caught, when more than 5 % are undecided, or when an entry of
``same.yaml`` is wrong.
"""

from __future__ import annotations

import argparse
import ast
import fnmatch
import functools
import itertools
import multiprocessing
import os
import random
import re
import shutil
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
SAME = Path(__file__).with_name("same.yaml")
WORK = ROOT / "mutants"  #: mutmut's own folder
MUTMUT = Path(sys.executable).with_name("mutmut")

WANTED = 0.85  #: share of the mutants that is to be caught
OPEN = 0.05  #: share of the mutants that may be undecided
COUNT = 250  #: mutants of a sample, about ten minutes on two cores
SURVIVED = ("survived", "no tests")
CAUGHT = ("killed", "segfault", "suspicious")  # the last: pytest ended in an unusual way

#: A function of a mutated file: its mangled name, with the number of the mutant.
GENERATED = re.compile(r"\bx(?:_|ǁ\w+ǁ)(\w+?)__mutmut_(?:orig|\d+)\b")
#: Fields of a part of a program by which a string within it becomes a part of its text.
PUT = ("values", "value", "left", "right", "body", "orelse", "func")
CHILDREN = len(os.sched_getaffinity(0))


@dataclass(frozen=True, slots=True)
class Mutant:
    """One changed program; ``was`` and ``now`` are the lines that differ."""

    name: str  #: mutmut's
    file: str
    function: str
    was: str
    now: str
    rewords: bool  #: only the words of a sentence differ

    @property
    def key(self) -> tuple[str, ...]:
        """Identity of the mutant, which stays when other lines of the file change."""
        return self.file, self.function, self.was, self.now

    @property
    def module(self) -> str:
        """The module, short, as it is listed."""
        return self.file.removeprefix("testbed/").removesuffix(".py")


@dataclass(frozen=True, slots=True)
class Same:
    """A mutant that is the same program, and why."""

    file: str
    function: str
    was: str
    now: str
    why: str

    @property
    def key(self) -> tuple[str, ...]:
        return self.file, self.function, self.was, self.now


def mutants() -> list[Mutant]:
    """Make every mutant of the modules that pyproject.toml names, in mutmut's own folder.

    Its run takes what is newer there than the program as it is.
    """
    from mutmut.utils.file_utils import copy_src_dir, walk_mutatable_files

    shutil.rmtree(WORK, ignore_errors=True)
    copy_src_dir()
    with multiprocessing.Pool(CHILDREN) as pool:
        found = pool.imap(mutants_of, sorted(walk_mutatable_files()), chunksize=1)
        return [mutant for own in found for mutant in own]


def mutants_of(path: Path) -> list[Mutant]:
    """Make every mutant of a file."""
    from mutmut.__main__ import create_mutants_for_file
    from mutmut.mutation.data import MutantLineSpans, SourceFileMutationData

    changed = WORK / path
    if error := create_mutants_for_file(path, changed).error:
        raise error
    lines = changed.read_text(encoding="utf-8").splitlines()
    index = MutantLineSpans.load(path)
    assert index is not None
    spans = index.span_by_function_name
    data = SourceFileMutationData(path=path)
    data.load()

    @functools.cache
    def source(name: str) -> list[str]:
        span = spans[name]
        return [GENERATED.sub(r"\1", line) for line in lines[span.start - 1 : span.end]]

    @functools.cache
    def tree(name: str) -> ast.AST:
        parsed = ast.parse(textwrap.dedent("\n".join(source(name))))
        return WithoutEncoding().visit(parsed)  # type: ignore[no-any-return]

    found = []
    for whole in data.exit_code_by_key:
        name = whole.rpartition(".")[2]
        original = f"{name.partition('__mutmut_')[0]}__mutmut_orig"
        was, now = differing(source(original), source(name))
        only_words = rewords(tree(original), tree(name))
        found.append(Mutant(whole, str(path), function(name), was, now, only_words))
    return found


class WithoutEncoding(ast.NodeTransformer):
    """Removes the encoding from calls: it is UTF-8 by default wherever Linux runs Python."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        node.keywords = [keyword for keyword in node.keywords if keyword.arg != "encoding"]
        return self.generic_visit(node)


def function(name: str) -> str:
    """The function of a mutant.

    >>> function("x_plan__mutmut_3"), function("xǁLabǁup__mutmut_12")
    ('plan', 'Lab.up')
    """
    mangled = name.partition("__mutmut_")[0]
    return mangled[2:].replace("ǁ", ".") if mangled.startswith("xǁ") else mangled[2:]


def differing(before: Sequence[str], after: Sequence[str]) -> tuple[str, str]:
    """The lines that differ, those of each side as one."""
    first = in_common(before, after)
    rest = before[first:], after[first:]
    last = in_common(*(side[::-1] for side in rest))
    was, now = (side[: len(side) - last] for side in rest)
    return " ".join(line.strip() for line in was), " ".join(line.strip() for line in now)


def in_common(before: Sequence[str], after: Sequence[str]) -> int:
    """The number of lines that both begin with."""
    pairs = zip(before, after, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def rewords(one: object, other: object, *, sentence: bool = False) -> bool:
    """Tell whether two parts of a program differ in the words of a sentence at most.

    A sentence is a string with a blank between its words.  ``sentence`` is true for what is
    put into one.
    """
    if type(one) is not type(other):
        return False
    if isinstance(one, list) and isinstance(other, list):
        pairs = zip(one, other, strict=False)
        return len(one) == len(other) and all(rewords(*p, sentence=sentence) for p in pairs)
    if not isinstance(one, ast.AST):
        return one == other
    if isinstance(one, ast.Constant) and isinstance(other, ast.Constant):
        texts = isinstance(one.value, str) and isinstance(other.value, str)
        return one.value == other.value or (texts and (sentence or is_sentence(one)))
    if isinstance(one, ast.JoinedStr):
        sentence = sentence or any(is_sentence(part) for part in one.values)
    return all(
        rewords(getattr(one, name), getattr(other, name), sentence=sentence and name in PUT)
        for name in one._fields
    )


def is_sentence(part: ast.AST) -> bool:
    """Tell whether a part of a program is a string that people read."""
    if not (isinstance(part, ast.Constant) and isinstance(part.value, str)):
        return False
    return " " in part.value and not part.value.isspace()


def sample(known: Sequence[Mutant], count: int, seed: int) -> list[Mutant]:
    """A random sample in which each module has its share."""
    chance = random.Random(seed)
    files: dict[str, list[Mutant]] = {}
    for mutant in known:
        files.setdefault(mutant.file, []).append(mutant)
    for own in files.values():
        chance.shuffle(own)
    line = [mutant for own in files.values() for mutant in own]
    count = min(count, len(line))
    return [line[at * len(line) // count] for at in range(count)]


def run(chosen: Iterable[Mutant] | None) -> dict[str, str]:
    """Run the tests on mutants, all or some; returns mutmut's word on each by its name."""
    names = [] if chosen is None else [mutant.name for mutant in chosen]
    # It shows its progress with carriage returns, and says last what it wants to be read.
    with (ROOT / "build" / "mutants.log").open("w", encoding="utf-8") as log:
        command = [str(MUTMUT), "run", "--max-children", str(CHILDREN), *names]
        done = subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        said = Path(log.name).read_text(encoding="utf-8", errors="replace").splitlines()
        failed = [line for line in said if line.startswith("FAILED ")]  # without any change
        words = f"mutants: mutmut ended with status {done.returncode}: see {log.name}"
        sys.exit("\n".join([words, *failed]))
    listed = subprocess.run(
        [MUTMUT, "results", "--all", "true"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return dict(line.strip().split(": ", 1) for line in listed.stdout.splitlines() if ": " in line)


def same() -> list[Same]:
    """The entries of ``same.yaml``."""
    return [Same(**entry) for entry in yaml.safe_load(SAME.read_text(encoding="utf-8")) or []]


def show(chosen: Sequence[Mutant], said: dict[str, str]) -> float:
    """Print the survivors and each module's figures; returns the share that was caught."""
    survived = [mutant for mutant in chosen if said[mutant.name] in SURVIVED]
    for mutant in survived:
        show_one(mutant, said[mutant.name])
    total = Counter(mutant.module for mutant in chosen)
    alive = Counter(mutant.module for mutant in survived)
    print(f"\n{'module':<34}{'mutants':>8}{'caught':>8}{'share':>7}")
    for module in sorted(total):
        row(module, total[module], alive[module])
    return row("all", total.total(), alive.total())


def show_one(mutant: Mutant, word: str) -> None:
    print(f"{mutant.file}: {mutant.function}: {word}")
    print(f"  - {mutant.was}\n  + {mutant.now}")


def decided(chosen: Sequence[Mutant], said: dict[str, str]) -> list[Mutant]:
    """The mutants of which mutmut says whether a test caught them; prints the others."""
    rest = [mutant for mutant in chosen if said.get(mutant.name) not in (*CAUGHT, *SURVIVED)]
    for mutant in rest:
        show_one(mutant, said.get(mutant.name) or "not run")
    if rest:
        print(f"{len(rest)} of {len(chosen)} undecided; they are not counted below\n")
    return [mutant for mutant in chosen if mutant not in rest]


def row(what: str, total: int, alive: int) -> float:
    share = (total - alive) / (total or 1)
    print(f"{what:<34}{total:>8}{total - alive:>8}{share:>6.0%}")
    return share


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--count", type=int, default=COUNT, help="mutants of the sample")
    parser.add_argument("--seed", type=int, help="draw the sample of an earlier run again")
    parser.add_argument(
        "--only", nargs="+", default=["*"], help="files, as patterns: 'testbed/labs/*'"
    )
    parser.add_argument("--all", action="store_true", help="no sample: every mutant, for hours")
    options = parser.parse_args()
    os.chdir(ROOT)  # where mutmut looks for its settings
    (ROOT / "build").mkdir(exist_ok=True)

    known = mutants()
    listed = {entry.key: entry for entry in same()}
    keys = {mutant.key for mutant in known}
    stale = [entry for key, entry in listed.items() if key not in keys]
    chosen = {
        file for only in options.only for file in fnmatch.filter({m.file for m in known}, only)
    }
    counted = [m for m in known if not m.rewords and m.file in chosen]
    seed = random.randrange(10**6) if options.seed is None else options.seed
    whole = options.all and chosen == {m.file for m in known}
    drawn = counted if options.all else sample(counted, options.count, seed)
    how = "all" if options.all else f"a sample, seed {seed}"
    print(f"{len(drawn)} of {len(counted)} mutants ({how})")
    sys.stdout.flush()

    said = run(None if whole else drawn)
    sure = decided(drawn, said)
    caught = [m for m in sure if m.key in listed and said[m.name] not in SURVIVED]
    share = show([mutant for mutant in sure if mutant.key not in listed], said)
    for entry in stale:
        print(f"same.yaml: no such mutant: {entry.file}: {entry.function}: {entry.now}")
    for mutant in caught:
        print(f"same.yaml: caught, so not the same program: {mutant.file}: {mutant.now}")
    print(f"{share:.1%} caught, {WANTED:.0%} wanted ({how})")
    vague = len(drawn) - len(sure) > OPEN * len(drawn)
    if vague:
        print("too many are undecided: run it again on a machine that is less busy")
    return 1 if share < WANTED or vague or stale or caught else 0


if __name__ == "__main__":
    sys.exit(main())
