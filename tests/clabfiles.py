"""containerlab's own topology files, taken from its Go module; none of them is kept here."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

from testbed.artifacts import Store
from testbed.artifacts.gomod import GoModule
from testbed.artifacts.inventory import CONTAINERLAB

FOLDERS = ("lab-examples", "tests")


@functools.cache
def module() -> Path:
    """The files of containerlab's Go module, of the version that testbed builds."""
    built = CONTAINERLAB["containerlab"]
    assert isinstance(built, GoModule)
    files = replace(built, packages={}, edits={}, data=FOLDERS)
    return Store().keep("containerlab-files", files)
