"""Words as people type them: the one that was meant, and paths in place of names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import islice

LONGEST = 40  #: characters; nobody mistypes a page of text
SHORTEST = 3
MOST = 1000  #: words that are compared


def closest(word: str, known: Iterable[str]) -> str:
    """The known word that differs by a typing mistake or two, or an empty string.

    One mistake for every four characters is allowed, and one in a shorter word: a character too
    many, too few or wrong, or two swapped.  The beginning of one word alone, of three characters
    at least, means that word.  Numbers are never a mistake: ``node3`` is not
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


def _digits(word: str) -> str:
    return "".join(re.findall("[0-9]", word))


def mistakes(one: str, other: str) -> int:
    """The optimal string alignment distance: edits, where swapping two neighbours counts one.

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
    """Tell whether what means a topology or a lab is written as a path, and not as a name.

    >>> is_a_path("./lab"), is_a_path("lab.yaml"), is_a_path("lab")
    (True, True, False)
    """
    return "/" in name or name.endswith((".yaml", ".yml"))
