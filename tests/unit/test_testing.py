"""The public test suites: what is listed is there, documented, and explains its failures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
from _pytest.assertion.rewrite import AssertionRewritingHook

from testbed import testing

API = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")


def test_what_is_listed_is_there_and_documented() -> None:
    assert testing.__all__ == sorted(testing.__all__)
    for name in testing.__all__:
        assert getattr(testing, name).__doc__
        assert f"`{name}" in API


def test_a_suite_that_fails_shows_the_values() -> None:
    for name in testing.__all__:
        if name.endswith("Contract"):
            module = sys.modules[getattr(testing, name).__module__]
            assert isinstance(module.__loader__, AssertionRewritingHook), module


def test_a_skip_that_names_no_test_is_refused() -> None:
    with pytest.raises(TypeError, match="test_no_such"):

        class Mistyped(testing.NodeContract):
            skips: ClassVar = {"test_no_such": "a word was mistyped", "test_json": "no JSON here"}


def test_commands_do_not_import_them() -> None:
    code = "import sys, testbed.cli.up, testbed.api; print('testbed.testing' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "False\n"
