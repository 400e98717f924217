"""The scheme ``testbed://`` of testinfra's hostspecs; :mod:`testbed.hosts` has what it means.

testinfra finds a back end by the scheme of a hostspec, in a table that others
may extend (``testinfra.backend.BACKENDS``).  It drops the path of a hostspec,
so :func:`register` puts a function of its own before testinfra's
``parse_hostspec``; hostspecs of other schemes are passed on as they are.

pytest loads this in every project where testbed is installed, so it is small, and
loads the rest when a lab is named.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import testinfra.backend

SCHEME = "testbed"
PREFIX = f"{SCHEME}://"  #: of a hostspec; by itself it is a hostspec of no host at all

#: testinfra's own, which knows every other scheme.
original = testinfra.backend.parse_hostspec
_confined: tuple[str, ...] | None = None


def register() -> None:
    """Add the scheme ``testbed`` to testinfra's.  Calling it again changes nothing."""
    testinfra.backend.BACKENDS[SCHEME] = "testbed.hosts.SpecBackend"
    testinfra.backend.parse_hostspec = _parse


def confine(labs: Sequence[str] | None) -> tuple[str, ...] | None:
    """Confine hostspecs to labs, or with None to nothing; return what held before.

    With an empty sequence every hostspec is refused.
    """
    global _confined
    before, _confined = _confined, None if labs is None else tuple(labs)
    return before


def confined() -> tuple[str, ...] | None:
    """The labs that hostspecs are confined to; None where they are not."""
    return _confined


def _parse(hostspec: str | None) -> tuple[str, dict[str, Any]]:
    if _confined is None and not str(hostspec).startswith(PREFIX):
        found: tuple[str, dict[str, Any]] = original(hostspec)
        return found
    from testbed import hosts

    return hosts.parse(hostspec)
