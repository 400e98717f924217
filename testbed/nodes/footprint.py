"""Footprint: what daemons change on a machine whose network and kernel they share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Footprint:
    """The changes of daemons outside of their own files and processes.

    ``daemons`` are names of processes that cannot run twice on a machine, and ``ports`` those on
    which they listen, as ``tcp/2379``. ``links`` and ``chains`` are regular expressions for whole
    names of links and of chains of iptables, ``ends`` for those of links to containers, such as
    others may have, too, and ``rules`` for a part of a rule in chains of others. ``tables`` are
    names of nftables tables, and ``routes`` networks to which routes are added. ``sysctls`` may get
    other values, and ``modules`` of the kernel are loaded. ``filters`` are those that change the
    network by being loaded: they are unloaded again. The kernel does not tell whether links of
    others need the rest, and unloading them would delete these.
    """

    daemons: tuple[str, ...] = ()
    ports: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()
    chains: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()
    sysctls: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    filters: tuple[str, ...] = ()

    @classmethod
    def of_all(cls, parts: Iterable[Footprint]) -> Self:
        """Return the footprint of several roles, without duplicates."""
        all_parts = list(parts)
        return cls(
            **{
                one.name: tuple(dict.fromkeys(x for p in all_parts for x in getattr(p, one.name)))
                for one in fields(cls)
            }
        )

    @classmethod
    def of_dict(cls, plain: Mapping[str, Any]) -> Self:
        """Return a footprint from :meth:`to_dict`; keys of other versions are left out."""
        return cls(**{one.name: tuple(plain.get(one.name, ())) for one in fields(cls)})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def has_link(self, name: str) -> bool:
        """Tell whether nobody but the daemons creates links of this name."""
        return _matches(self.links, name)

    def made_link(self, name: str) -> bool:
        """Tell whether the daemons create links of this name; others may do so, too."""
        return _matches((*self.links, *self.ends), name)

    def has_chain(self, name: str) -> bool:
        return _matches(self.chains, name)

    def has_rule(self, rule: str) -> bool:
        """Tell whether a rule is of the daemons, as ``iptables-save`` prints it."""
        return any(re.search(pattern, rule) for pattern in self.rules)


def shown(patterns: Iterable[str]) -> str:
    r"""Return regular expressions of names as people write them.

    >>> shown(["docker0", "br-[0-9a-f]{12}", r"flannel\.1", "DOCKER-.*"])
    'docker0, br-*, flannel.1, DOCKER-*'
    """
    found = (re.sub(r"\.\*|\[[^]]*\]\{\d+\}", "*", one).replace("\\", "") for one in patterns)
    return ", ".join(found)


def _matches(patterns: Iterable[str], name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)
