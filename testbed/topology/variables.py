"""Variables in a topology file, with the rules of Compose (compose-spec, 12-interpolation.md).

They are filled into scalars that the YAML parser has read, so a value can't become a key, a list or
a mapping.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from testbed.errors import UsageError
from testbed.spelling import nearest
from testbed.topology.tree import quote

__all__ = ["Unfilled", "Variables", "assigned", "changed", "escaped"]

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OPERATOR = re.compile(r":?[-?+]")
_WANTED = "a variable as ${NAME}, ${NAME:-default} or ${NAME:?message}"
UNSET = "a value of the variable"  #: begins what is wanted of a variable without a value
_HINT = "write $$ for a dollar sign"
#: YAML ends a text without quotes before the brace of ${.
_HINT_QUOTE = f"quote a value with ${{...}} inside of braces or brackets; {_HINT}"
MAX_DEPTH = 20  # of variables in default values


class Unfilled(Exception):
    """A variable that cannot be filled in."""

    def __init__(self, wanted: str, seen: str, hint: str) -> None:
        super().__init__(wanted, seen, hint)
        self.wanted = wanted
        self.seen = seen
        self.hint = hint


class Variables:
    """The variables of a file: given ones, then those of the environment.

    ``used`` collects the value of each variable that is filled in.
    """

    def __init__(
        self, given: Mapping[str, str] | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        self.given = dict(given or {})
        self.used: dict[str, str] = {}
        self._environment = os.environ if environment is None else environment
        self._named: set[str] = set()

    def fill(self, text: str) -> tuple[str, tuple[str, ...]]:
        """Return a text with its variables filled in, and their names.

        ``$$`` becomes a dollar sign. Raises Unfilled for a variable without a value, and for a
        dollar sign with anything else behind it.
        """
        filler = _Filler(self, text)
        filled = filler.rest(live=True)
        self.used |= filler.found
        return filled, tuple(filler.found)

    def value(self, name: str) -> str | None:
        """Return the value of a variable, or None."""
        self._named.add(name)
        return self.given.get(name, self._environment.get(name))

    def use(self, name: str) -> str | None:
        """Return the value of a variable that a file of another tool needs, or None."""
        value = self.value(name)
        if value is not None:
            self.used[name] = value
        return value

    def refuse_unused(self, source: str) -> None:
        """Raise UsageError for a given variable that no text names."""
        for name in self.given:
            if name not in self._named:
                hint = nearest(name, sorted(self._named), "remove it")
                raise UsageError(f"{source} has no variable {name}", where="--set", hint=hint)


class _Filler:
    """Fills the variables of one text, from left to right."""

    def __init__(self, variables: Variables, text: str) -> None:
        self.found: dict[str, str] = {}
        self._variables = variables
        self._text = text
        self._at = 0

    def rest(self, *, live: bool, depth: int = 0) -> str:
        """Return the text up to its end, or inside of a variable up to the closing brace.

        Variables of a text that is not ``live``, such as an unneeded default, need no value.
        """
        out: list[str] = []
        braces = 0
        while self._at < len(self._text):
            character = self._text[self._at]
            if character == "$":
                out.append(self._variable(live=live, depth=depth))
                continue
            if depth and character == "}":
                if not braces:
                    return "".join(out)
                braces -= 1
            braces += character == "{"
            out.append(character)
            self._at += 1
        if depth:
            raise Unfilled("a closing brace for each ${", quote(self._text), "add a }")
        return "".join(out)

    def _variable(self, *, live: bool, depth: int) -> str:
        begin = self._at
        following = self._text[begin + 1 : begin + 2]
        if following == "$":
            self._at += 2
            return "$"
        name = NAME.match(self._text, begin + 1 + (following == "{"))
        if name is None or depth > MAX_DEPTH:
            hint = _HINT if following else _HINT_QUOTE
            raise Unfilled(_WANTED, quote(self._text[begin:], 20), hint)
        self._at = name.end()
        if following != "{":
            return self._filled(name[0], "", "", live=live)
        operator = _OPERATOR.match(self._text, self._at)
        word = operator[0] if operator else ""
        self._at += len(word)
        value = self._variables.value(name[0])
        lacks = not value if word[:1] == ":" else value is None
        needed = lacks != (word[-1:] == "+")
        argument = self.rest(live=live and needed, depth=depth + 1) if word else ""
        if self._text[self._at : self._at + 1] != "}":
            raise Unfilled(_WANTED, quote(self._text[begin:], 40), _HINT)
        self._at += 1
        return self._filled(name[0], word, argument, live=live)

    def _filled(self, name: str, operator: str, argument: str, *, live: bool) -> str:
        """Return the value of a variable with its operator and the text behind that."""
        value = self._variables.value(name)
        lacks = not value if operator[:1] == ":" else value is None
        kind = operator[-1:]
        if kind == "+":
            filled = "" if lacks else argument
        elif not lacks:
            filled = value or ""
        elif kind == "-":
            filled = argument
        elif not live:
            return ""
        else:
            seen = "none" if value is None else "an empty one"
            message = f" ({quote(argument, 200)[1:-1]})" if argument else ""
            hint = f"add --set {name}=VALUE, or set it in the environment"
            raise Unfilled(f"{UNSET} {name}{message}", seen, hint)
        if live:
            self.found[name] = value if kind == "+" and value is not None else filled
        return filled


def assigned(words: tuple[str, ...]) -> dict[str, str]:
    """Return the variables of ``--set`` options, as VAR=VALUE.

    Raises UsageError.
    """
    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not NAME.fullmatch(name):
            raise UsageError(f"wanted VAR=VALUE, got {quote(word)}", where="--set")
        found[name] = value
    return found


def changed(before: Mapping[str, str], now: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Return the variables with another value than before, with both values."""
    return {
        name: (value, now[name])
        for name, value in before.items()
        if name in now and now[name] != value
    }


def escaped(data: Any) -> Any:
    """Return the data of a topology (``to_dict``) for a file, where ``$`` begins a variable.

    >>> escaped({"command": ["echo", "$HOME"]})
    {'command': ['echo', '$$HOME']}
    """
    if isinstance(data, str):
        return data.replace("$", "$$")
    if isinstance(data, Mapping):
        return {name: escaped(value) for name, value in data.items()}
    return [escaped(value) for value in data] if isinstance(data, (list, tuple)) else data
