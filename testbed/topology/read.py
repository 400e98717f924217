"""Read values from a tree, one method per form; report invalid ones.

Every method accepts None for a missing key. It returns None for a missing key and for an invalid
value, so callers need no checks of their own.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from typing import TYPE_CHECKING, Any

from testbed.topology import keys, reserved, tree
from testbed.topology.source import resolve
from testbed.topology.tree import Problems, Tree, describe, nearest, quote

if TYPE_CHECKING:
    from collections import abc

    from testbed.topology.declare import Keys
    from testbed.topology.reserved import Reserved

__all__ = ["Reader", "host_in"]

IPV4 = 4  # the version; IPv6 has no broadcast
#: Returns the hint for an invalid text; an empty string for a valid one.
Correct = Callable[[str], str]
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_MEMORY_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
#: Addresses that a host in a lab cannot have: this network (RFC 1122), loopback,
#: multicast (RFC 5771) and reserved ones (RFC 1112, section 4).
_NO_HOSTS = tuple(
    IPv4Network(n) for n in ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/4", "240.0.0.0/4")
)
#: The unspecified address and loopback, link-local addresses, which each link has by itself, and
#: multicast (RFC 4291).
_NO_HOSTS6 = tuple(IPv6Network(n) for n in ("::/127", "fe80::/10", "ff00::/8"))


class Reader:
    """Reads values, and adds those of a wrong form to ``problems``."""

    def __init__(self, problems: Problems, root: tree.Mapping | None = None) -> None:
        self.problems = problems
        self.root = root  #: the whole file

    def mapping(
        self, at: Tree | None, known: Keys, wanted: str = "a mapping"
    ) -> tree.Mapping | None:
        """Read a mapping that has only known keys and all required ones.

        Keys that begin with ``x-`` are ignored (compose-spec, 11-extension.md).
        """
        found = self.table(at, wanted, empty=not known.required)
        if found is None:
            return None
        self.known_only(found, known, hints=known.elsewhere)
        for name in known.required:
            if name not in found.entries:
                about = known[name].description
                # The first word may be an abbreviation, such as AS.
                first = about[0] if about[1:2].isupper() else about[0].lower()
                hint = f"add it: {first}{about[1:].rstrip('.')}"
                self.problems.add(found, f"the key {name!r}", "none", hint)
        return found

    def known_only(
        self,
        found: tree.Mapping,
        known: abc.Collection[str],
        *,
        ignored: str = keys.EXTENSION,
        hints: abc.Mapping[str, str] | None = None,
    ) -> None:
        """Refuse the unknown keys of a mapping, except those with the ``ignored`` beginning.

        ``hints`` say where a key belongs that is unknown here.
        """
        for name, entry in found.entries.items():
            if name not in known and not (ignored and name.startswith(ignored)):
                hint = (hints or {}).get(name) or nearest(name, known)
                self.problems.add(entry.key, "a known key", quote(name), hint)

    def table(
        self, at: Tree | None, wanted: str = "a mapping", *, empty: bool = True, hint: str = ""
    ) -> tree.Mapping | None:
        """Read a mapping whose keys are names; ``empty`` permits one without keys."""
        if isinstance(at, tree.Mapping):
            return at
        if at is not None and not isinstance(at, tree.Broken):
            usual = "write 'key: value' lines below it" + (", or {} for none" if empty else "")
            self.problems.add(at, wanted, describe(at), hint or usual)
        return None

    def items(
        self, at: Tree | None, wanted: str, hint: str = "write a list: [a, b]"
    ) -> tuple[Tree, ...]:
        """Read the items of a list."""
        if isinstance(at, tree.Sequence):
            return at.items
        if at is not None and not isinstance(at, tree.Broken):
            self.problems.add(at, wanted, describe(at), hint)
        return ()

    def text(
        self, at: Tree | None, wanted: str = "text", correct: Correct = lambda _: ""
    ) -> str | None:
        """Read a text without changes.

        ``correct`` returns the hint for a text that the caller rejects, and an empty string for a
        valid one. A number gets the hint to quote it only if the quoted text would be valid.
        """
        if at is None or isinstance(at, tree.Broken):
            return None
        if isinstance(at, tree.Scalar) and isinstance(at.value, str) and not at.surprise:
            if "\0" not in at.value and at.value.isprintable():
                return at.value
            return self._long_text(at, at.value)
        if isinstance(at, tree.Filled):
            return self._long_text(at, at.text)
        hint = "write text here"
        if isinstance(at, tree.Scalar) and at.value is not None:
            quoted = f'quote it: "{at.text}"' if len(at.text) < 60 else "quote it"
            hint = correct(at.text) or quoted
        self.problems.add(at, wanted, describe(at), hint)
        return None

    def _long_text(self, at: Tree, value: str) -> str | None:
        # Arguments and variables cannot contain NUL, or characters that UTF-8 cannot encode.
        if "\0" not in value and not re.search("[\ud800-\udfff]", value):
            return value
        self.problems.add(at, "text without NUL and surrogates", quote(value), "remove them")
        return None

    def data(self, at: Tree) -> Any:
        """Read any value that JSON has; None stands for an invalid one, too."""
        if isinstance(at, tree.Mapping):
            return {name: self.data(entry.value) for name, entry in at.entries.items()}
        if isinstance(at, tree.Sequence):
            return [self.data(item) for item in at.items]
        if not isinstance(at, tree.Scalar) or (isinstance(at.value, str) and not at.surprise):
            return self.text(at)
        if at.surprise:
            meant = {True: "write true, or", False: "write false, or"}.get(at.value is True, "")
            if not isinstance(at.value, bool):
                meant = "write the value itself, or"
            self.problems.add(at, "one meaning", describe(at), f'{meant} quote it: "{at.text}"')
            return None
        if isinstance(at.value, float) and not math.isfinite(at.value):
            self.problems.add(at, "a finite number", describe(at), "change it, or quote it")
            return None
        return at.value

    def path(
        self,
        at: Tree | None,
        wanted: str = "a path",
        *,
        expand: Callable[[str], str] = os.path.expanduser,  # of any text
    ) -> str | None:
        """Read a path on this machine, for :attr:`Topology.folder`.

        ``expand`` fills in a home folder.
        It is absolute if it was relative to another folder: in an included file, or in a topology
        from standard input.
        """
        value = self.text(at, wanted)
        if at is None or value is None:
            return None
        if not value:
            self.problems.add(at, wanted, "none", "write the path of a file")
            return None
        return self.problems.beside(at, expand(value))

    def matching(self, at: Tree | None, pattern: str, wanted: str, hint: str) -> str | None:
        """Read a text that matches a pattern completely."""
        value = self.text(at, wanted, lambda text: "" if re.fullmatch(pattern, text) else hint)
        if at is None or value is None:
            return None
        if re.fullmatch(pattern, value):
            return value
        self.problems.add(at, wanted, quote(value), hint)
        return None

    def name(
        self,
        at: Tree,
        what: str,
        pattern: str,
        limit: int,
        *,
        taken: abc.Iterable[Reserved] = (),
    ) -> str | None:
        """Read a name that matches a pattern and is not taken.

        It has at most ``limit`` characters.
        """

        def refused(value: str) -> tuple[str, str, str] | None:
            """Return wanted, seen and hint for an invalid name."""
            if len(value) > limit:
                wanted = f"a name of at most {limit} characters for {what}"
                return wanted, f"{quote(value)} with {len(value)}", "shorten it"
            if not re.fullmatch(pattern, value):
                return _wanted_name(what, value, pattern, taken)
            if why := reserved.why(value, taken):
                wanted = f"a name for {what} that has no other meaning"
                return wanted, f"{quote(value)}, {why}", "choose another"
            return None

        def correct(text: str) -> str:
            why = refused(text)
            return why[2] if why else ""

        value = self.text(at, f"the name of {what}", correct)
        if value is None:
            return None
        if why := refused(value):
            self.problems.add(at, *why)
            return None
        return value

    def choice(self, at: Tree | None, what: str, known: abc.Sequence[str]) -> str | None:
        """Read one of a few words."""
        wanted = f"{what}: {', '.join(known)}"
        value = self.text(at, wanted, lambda text: "" if text in known else nearest(text, known))
        if at is None or value is None or value in known:
            return value
        self.problems.add(at, wanted, quote(value), nearest(value, known))
        return None

    def release(
        self,
        at: Tree | None,
        what: str,
        known: abc.Sequence[str],
        aliases: abc.Mapping[str, str],
        others: str = "",
    ) -> str | None:
        """Read one of a few releases, given as text or as a number.

        ``others`` is a hint on other releases.
        """
        wanted = f"{what}: {', '.join(known)}"
        if isinstance(at, tree.Scalar) and isinstance(at.value, (int, float)):
            value = None if isinstance(at.value, bool) else at.text
        else:
            value = self.text(at, wanted, lambda text: nearest(text, known))
        if at is None or (value is None and self.problems.touched(*at.path)):
            return None
        if value is not None and (value := aliases.get(value, value)) in known:
            return value
        if not isinstance(at, tree.Broken):
            hint = nearest(value or "", known)
            self.problems.add(at, wanted, describe(at), f"{hint}; {others}" if others else hint)
        return None

    def boolean(self, at: Tree | None) -> bool | None:
        """Read ``true`` or ``false``."""
        if at is None or isinstance(at, tree.Broken):
            return None
        if isinstance(at, tree.Scalar) and isinstance(at.value, bool):
            return at.value
        self.problems.add(at, "true or false", describe(at), "write true or false, unquoted")
        return None

    def integer(self, at: Tree | None, what: str, low: int, high: int) -> int | None:
        """Read an integer from ``low`` to ``high``."""
        if at is None or isinstance(at, tree.Broken):
            return None
        value = at.value if isinstance(at, tree.Scalar) else None
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
            return value
        wanted = f"{what}, an integer from {low} to {high}"
        self.problems.add(at, wanted, describe(at), _unquoted(at, low, high) or "change it")
        return None

    def duration(self, at: Tree | None, least: float = 0.001) -> float | None:
        """Read a duration and return it in seconds."""
        wanted = "a duration, like 500ms, 5s or 1m30s"
        hint = "write a number with its unit: ms, s, m or h"
        if isinstance(at, tree.Scalar) and isinstance(at.value, (int, float)):
            if re.fullmatch(keys.DURATION, f"{at.text}s") and _in_range(float(at.value), least):
                hint = f"add the unit: {at.text}s"
            self.problems.add(at, wanted, describe(at), hint)
            return None
        value = self.matching(at, keys.DURATION, wanted, hint)
        if at is None or value is None:
            return None
        parts = re.findall(r"([0-9.]+)(ms|s|m|h)", value)
        seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
        if not _in_range(seconds, least):
            wanted = f"a duration from {least:g}s to {keys.DURATION_MAX / 3600:g}h"
            self.problems.add(at, wanted, quote(value), "change it")
            return None
        return round(seconds, 3)

    def cpus(self, at: Tree | None) -> float | None:
        """Read a number of CPUs."""
        if at is None or isinstance(at, tree.Broken):
            return None
        value = at.value if isinstance(at, tree.Scalar) else None
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if isinstance(value, (int, float)) and number and value >= keys.MIN_CPUS:
            return float(value)
        wanted = f"a number of CPUs, {keys.MIN_CPUS} or more"
        hint = "0.5 is half a CPU; remove the key for no limit"
        hint = _unquoted(at, keys.MIN_CPUS, math.inf) or hint
        self.problems.add(at, wanted, describe(at), hint)
        return None

    def memory(self, at: Tree | None, least: int = keys.MIN_MEMORY) -> int | None:
        """Read an amount of memory of ``least`` bytes or more, and return it in bytes."""
        if at is None or isinstance(at, tree.Broken):
            return None
        value: object = at.value if isinstance(at, tree.Scalar) and not at.surprise else None
        if isinstance(value, str) and re.fullmatch(keys.MEMORY, value):
            digits = value.rstrip("KMGTkmgtb")
            value = int(digits) << _MEMORY_UNITS[value[len(digits) :].rstrip("b").upper()]
        # The kernel stores a memory limit as a signed 64-bit number.
        if isinstance(value, int) and least <= value < 1 << 63:
            return int(value)
        wanted = f"an amount of memory, {least >> 20}M or more"
        hint = "write bytes, or 512M, 2G; remove the key for no limit"
        self.problems.add(at, wanted, describe(at), hint)
        return None

    def address(self, at: Tree | None) -> IPv4Address | None:
        """Read an IPv4 address without a prefix."""
        wanted = "an IPv4 address, like 10.168.0.2"
        value = self.text(at, wanted, _address_hint)
        if at is None or value is None:
            return None
        try:
            return IPv4Address(value)
        except ValueError:
            hint = _address_hint(value)
            if _is_address(value.partition("/")[0]):
                hint = "remove the prefix; the network has it"
            self.problems.add(at, wanted, quote(value), hint)
            return None

    def interface(self, at: Tree | None, longest: int = 32) -> IPv4Interface | None:
        """Read an IPv4 host address with a prefix of at most ``longest`` bits."""
        wanted = "an IPv4 address with its prefix, like 192.168.10.200/24"
        value = self.text(at, wanted, _prefix_hint)
        if at is None or value is None:
            return None
        try:
            found = IPv4Interface(_with_prefix(value))
        except ValueError:
            self.problems.add(at, wanted, quote(value), _prefix_hint(value))
            return None
        if found.network.prefixlen > longest:
            wanted = f"a prefix of at most {longest} bits"
            self.problems.add(at, wanted, quote(value), "use a larger network")
            return None
        if not host_in(self.problems, at, found.ip, found.network, str(found.network)):
            return None
        return found if self._unicast(at, found.network) else None

    def network(self, at: Tree | None, low: int, high: int) -> IPv4Network | None:
        """Read an IPv4 network with a prefix of ``low`` to ``high`` bits."""
        wanted = "an IPv4 network, like 10.168.0.0/24"
        value = self.text(at, wanted, _prefix_hint)
        if at is None or value is None:
            return None
        try:
            found = IPv4Network(_with_prefix(value), strict=False)
        except ValueError:
            self.problems.add(at, wanted, quote(value), _prefix_hint(value))
            return None
        if not low <= found.prefixlen <= high:
            self.problems.add(at, f"a prefix of {low} to {high} bits", quote(value), "change it")
        elif self._unicast(at, found):
            if str(found) == value:
                return found
            hint = f"write {found}; the bits after the prefix are for hosts"
            self.problems.add(at, "a network's own address", quote(value), hint)
        return None

    def address6(self, at: Tree | None) -> IPv6Address | IPv6Interface | None:
        """Read an IPv6 address, with a prefix or without one."""
        wanted = "an IPv6 address, like fd00:1::2"
        value = self.text(at, wanted)
        if at is None or value is None:
            return None
        try:
            # Without a zone, which only the node itself could know.
            found = IPv6Interface(value) if "/" in value else IPv6Address(value.replace("%", "?"))
        except ValueError:
            hint = "write groups of hexadecimal digits with colons between"
            self.problems.add(at, wanted, quote(value), hint)
            return None
        return found if self._unicast6(at, IPv6Network(found.packed)) else None

    def network6(self, at: Tree | None, low: int, high: int) -> IPv6Network | None:
        """Read an IPv6 network with a prefix of ``low`` to ``high`` bits."""
        wanted = "an IPv6 network, like fd00:1::/64"
        value = self.text(at, wanted)
        if at is None or value is None:
            return None
        try:
            found = IPv6Network(value if "/" in value else f"{value}/?", strict=False)
        except ValueError:
            hint = "write an IPv6 address and a prefix, like fd00:1::/64 (RFC 4193)"
            if "/" not in value and re.fullmatch(keys.ADDRESS6, value):
                hint = "add the prefix, like /64"
            self.problems.add(at, wanted, quote(value), hint)
            return None
        if not low <= found.prefixlen <= high:
            self.problems.add(at, f"a prefix of {low} to {high} bits", quote(value), "change it")
        elif self._unicast6(at, found):
            if IPv6Address(value.partition("/")[0]) == found.network_address:
                return found
            hint = f"write {found}; the bits after the prefix are for hosts"
            self.problems.add(at, "a network's own address", quote(value), hint)
        return None

    def _unicast6(self, at: Tree, network: IPv6Network) -> bool:
        for taken in _NO_HOSTS6:
            if network.overlaps(taken):
                hint = "use a private one, like fd00:1::/64 (RFC 4193)"
                self.problems.add(at, f"addresses outside {taken}", str(network), hint)
                return False
        return True

    def _unicast(self, at: Tree, network: IPv4Network) -> bool:
        for taken in _NO_HOSTS:
            if network.overlaps(taken):
                hint = "use a private one: 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 (RFC 1918)"
                self.problems.add(at, f"addresses outside {taken}", str(network), hint)
                return False
        return True


def host_in(
    problems: Problems,
    at: Tree,
    ip: IPv4Address | IPv6Address,
    network: IPv4Network | IPv6Network,
    name: str,
) -> bool:
    """Tell whether a host of the network can have this address.

    If not, add a problem.
    """
    if ip not in network:
        wanted, hint = f"an address inside {name}", "change it, or the network's subnet"
    elif network.prefixlen >= network.max_prefixlen - 1:
        # Hosts can have both addresses of a /31 (RFC 3021) and a /127 (RFC 6164).
        return True
    elif ip == network.network_address:
        wanted, hint = "a host's address", f"this is the address of {name} itself; use another"
    elif ip.version == IPV4 and ip == network.broadcast_address:
        wanted, hint = "a host's address", f"this is the broadcast address of {name}; use another"
    else:
        return True
    problems.add(at, wanted, str(ip), hint)
    return False


def _wanted_name(
    what: str, value: str, pattern: str, taken: abc.Iterable[Reserved]
) -> tuple[str, str, str]:
    """Return wanted, seen and hint for a name that does not match its pattern."""
    if pattern in (keys.LABEL, keys.CONTAINER):
        wanted = f"a name for {what} of lower-case letters, digits and inner hyphens (RFC 1123)"
        if pattern == keys.CONTAINER and len(value) == 1:
            return f"a name for {what} of two characters at least", quote(value), "lengthen it"
        better = re.sub("[^a-z0-9]+", "-", value.lower()).strip("-")
        good = re.fullmatch(pattern, better) and not reserved.why(better, taken)
        hint = f"{better!r} would do" if good else "choose another"
        return wanted, quote(value), hint
    wanted = f"a name for {what} of letters, digits and '_', '-', '.'"
    return wanted, quote(value), "choose another"


def _with_prefix(value: str) -> str:
    """Return a value with a prefix length unchanged, and reject others.

    The library would also accept netmasks and missing prefixes.
    """
    if re.fullmatch(keys.PREFIXED, value):
        return value
    raise ValueError(value)


def _in_range(seconds: float, least: float) -> bool:
    return least <= seconds <= keys.DURATION_MAX


def _unquoted(at: Tree, low: float, high: float) -> str:
    """Return a hint for a text that is a number in range.

    It is empty for other texts.
    """
    if isinstance(at, tree.Scalar) and isinstance(at.value, str):
        value, _ = resolve(at.text)
        if isinstance(value, (int, float)) and low <= value <= high:
            return f"write {at.text} without quotes"
    return ""


def _is_address(value: str) -> bool:
    try:
        IPv4Address(value)
    except ValueError:
        return False
    return True


def _prefix_hint(value: str) -> str:
    return "add the prefix, like /24" if _is_address(value) else _address_hint(value)


def _address_hint(value: str) -> str:
    if ":" in value:
        return "this key takes IPv4 alone"
    if re.search(r"(^|\.)0[0-9]", value):
        return "remove the leading zeros"
    if "/" in value:
        return "write four numbers from 0 to 255 with dots between, and a prefix from 0 to 32"
    return "write four numbers from 0 to 255 with dots between"
