"""The scheme ``testbed://`` of testinfra's hostspecs; :mod:`testbed.hosts` implements it.

testinfra selects a back end by the scheme of a hostspec, from a table that others
may extend (``testinfra.backend.BACKENDS``).  It drops the path of a hostspec, so
:func:`register` wraps testinfra's ``parse_hostspec``; hostspecs of other schemes
are passed on unchanged.

pytest loads this in every project where testbed is installed, so it is small, and
loads the rest when a lab is named.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import testinfra.backend

SCHEME = "testbed"
PREFIX = f"{SCHEME}://"  #: of a hostspec; by itself it names no host

#: testinfra's own function, which handles every other scheme.
original = testinfra.backend.parse_hostspec
_confined: tuple[str, ...] | None = None


def register() -> None:
    """Add the scheme ``testbed`` to testinfra.  Calling it again changes nothing."""
    testinfra.backend.BACKENDS[SCHEME] = "testbed.hosts.SpecBackend"
    testinfra.backend.parse_hostspec = _parse


def confine(labs: Sequence[str] | None) -> tuple[str, ...] | None:
    """Confine hostspecs to labs, or lift that with None; return the previous setting.

    With an empty sequence every hostspec is refused.
    """
    global _confined
    before, _confined = _confined, None if labs is None else tuple(labs)
    return before


def confined() -> tuple[str, ...] | None:
    """Return the labs that hostspecs are confined to; None if they are not confined."""
    return _confined


def _parse(hostspec: str | None) -> tuple[str, dict[str, Any]]:
    if _confined is None and not str(hostspec).startswith(PREFIX):
        found: tuple[str, dict[str, Any]] = original(hostspec)
        return found
    from testbed import hosts

    return hosts.parse(hostspec)
