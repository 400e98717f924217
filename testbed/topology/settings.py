"""What a node has besides its roles: kernel settings, routes, rules."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from testbed.topology import tree
from testbed.topology.shapes import Shape, table, whole
from testbed.topology.tree import describe, quote

if TYPE_CHECKING:
    from testbed.topology.read import Reader
    from testbed.topology.tree import Tree

#: A sysctl's name: words with dots between. In a link's name a slash stands for a dot (sysctl(8)).
SYSCTL = r"[a-z0-9_]+(\.[A-Za-z0-9_/:@-]+)+"
#: Sysctls of the network stack, which each network namespace has by itself.
NETWORK = "net."


class Sysctls(Shape[Mapping[str, str]]):
    """Kernel settings by name; a value is a number or a text."""

    def schema(self) -> dict[str, Any]:
        value = {"anyOf": [{"type": "integer"}, {"type": "string", "minLength": 1}]}
        return table(whole(SYSCTL), value)

    def read(self, read: Reader, at: Tree | None) -> dict[str, str] | None:
        found = read.table(at, "a mapping of sysctls")
        out = {}
        for entry in found.entries.values() if found else ():
            name = self._name(read, entry.key)
            value = self._value(read, entry.value)
            if name is not None and value is not None:
                out[name] = value
        return out if found else None

    @staticmethod
    def _name(read: Reader, at: tree.Scalar) -> str | None:
        if re.fullmatch(SYSCTL, at.text):
            return at.text
        wanted = "a sysctl, like net.ipv4.conf.all.rp_filter"
        hint = "write its words with dots between"
        if "/" in at.text:
            hint = f"write {at.text.removeprefix('/proc/sys/').strip('/').replace('/', '.')}"
        read.problems.add(at, wanted, quote(at.text), hint)
        return None

    @staticmethod
    def _value(read: Reader, at: Tree) -> str | None:
        if isinstance(at, tree.Broken):
            return None
        if isinstance(at, tree.Scalar):
            if isinstance(at.value, int) and not isinstance(at.value, bool):
                return str(at.value)
            words = " ".join(at.value.split()) if isinstance(at.value, str) else ""
            if words and not at.surprise and "\0" not in words:
                return words
        wanted, hint = "a number, or text such as '4096 87380 6291456'", "write 1 for on, 0 for off"
        read.problems.add(at, wanted, describe(at), hint)
        return None

    def plain(self, value: Mapping[str, str]) -> dict[str, Any]:
        return {name: int(one) if one.isdecimal() else one for name, one in value.items()}
