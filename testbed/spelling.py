"""Numbers with nouns, suggestions for mistyped words, and paths given instead of names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import islice

LONGEST = 40  #: maximum length of a word in characters; longer text is not a mistyped name
SHORTEST = 3
MOST = 1000  #: maximum number of words to compare
LISTED = 12  #: maximum number of known words that a hint lists


def counted(number: int, noun: str) -> str:
    """Return a number of things in words.

    >>> counted(1, "node"), counted(0, "node")
    ('1 node', '0 nodes')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def closest(word: str, known: Iterable[str]) -> str:
    """Return the known word that differs by few typing mistakes, or an empty string.

    A mistake is one character too many, too few or wrong, or two swapped.  One mistake per four
    characters is allowed, and one in a shorter word.  The first three or more characters of
    exactly one word mean that word.  A different number is never a mistake: ``node3`` is not
    ``node1``, and ``subnet6`` is not ``subnet``.

    >>> closest("dokcer", ["docker", "etcd"]), closest("routes", ["roles"])
    ('docker', '')
    >>> closest("subnet6", ["subnet"]), closest("subnets", ["subnet"])
    ('', 'subnet')
    """
    if len(word) > LONGEST:
        return ""
    words = list(islice(known, MOST))
    begun = [one for one in words if one.startswith(word)]
    if len(word) >= SHORTEST and len(begun) == 1 and _digits(begun[0]) == _digits(word):
        return begun[0]
    best, found = LONGEST, ""
    for one in words:
        most = max(1, max(len(word), len(one)) // 4)
        if abs(len(one) - len(word)) > most or _digits(one) != _digits(word):
            continue
        count = mistakes(word.casefold(), one.casefold())
        if count <= most and count < min(best, len(one)):
            best, found = count, one
    return found


def nearest(word: str, known: Iterable[str], otherwise: str = "", *, form: str = "{!r}") -> str:
    """Return a hint for an unknown word: the closest known word, or else ``otherwise``.

    By default that is a list of the first known words.  ``form`` formats the closest word.

    >>> nearest("dokcer", ["docker", "etcd"]), nearest("x", ["docker", "etcd"])
    ("did you mean 'docker'?", 'known: docker, etcd')
    """
    words = list(known)
    if close := closest(word, words):
        return f"did you mean {form.format(close)}?"
    if otherwise or not words:
        return otherwise or "none is defined yet: add it"
    return "known: " + ", ".join(words[:LISTED]) + (", ..." if len(words) > LISTED else "")


def _digits(word: str) -> str:
    return "".join(re.findall("[0-9]", word))


def mistakes(one: str, other: str) -> int:
    """Return the optimal string alignment distance: edits, with a swap of neighbours as one.

    >>> mistakes("dokcer", "docker"), mistakes("routes", "roles")
    (1, 2)
    """
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        last, row = row, [i]
        for j, b in enumerate(other, 1):
            cost = min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (a != b))
            if i > 1 and j > 1 and a == other[j - 2] and one[i - 2] == b:
                cost = min(cost, before[j - 2] + 1)
            row.append(cost)
        before = last
    return row[-1]


def is_a_path(name: str) -> bool:
    """Tell whether a topology or a lab is given as a path instead of a name.

    >>> is_a_path("./lab"), is_a_path("lab.yaml"), is_a_path("lab")
    (True, True, False)
    """
    return "/" in name or name.endswith((".yaml", ".yml", ".gotmpl"))  # the last is a template
