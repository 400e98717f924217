"""Tests beside a topology file: those in the folder ``tests`` that use the lab.

The folder may be the test suite of a whole project, so the files are chosen by their source, and no
other file is imported.  A file counts if one of its tests uses a fixture or a mark of
:mod:`testbed.pytest_plugin`, or testinfra's fixture ``host``, directly or through fixtures of its
own or of a ``conftest.py``.  A project's own fixture of such a name does not count.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TypeAlias

from testbed.claims.marks import files
from testbed.pytest_plugin import MARKS, OURS, SCHEME
from testbed.suites.model import Beside
from testbed.topology.load import beside as topologies_in

TESTS = "tests"  #: name of the folder
CONFTEST = "conftest.py"
HOST, HOSTS = "host", "testinfra_hosts"  # testinfra's fixture, and a module's list of hosts
WORDS = re.compile(rf"\b({'|'.join([*OURS, *MARKS, HOST])})\b")
SURE = re.compile(rf"\b({'|'.join(['lab', *MARKS])})\b")

Function: TypeAlias = "ast.FunctionDef | ast.AsyncFunctionDef"


def find_tests(source: str, nodes: Collection[str]) -> Beside | None:
    """Return the tests beside the topology file ``source``, or None if there are none.

    ``nodes`` are the names of the lab's nodes.  With several topology files in the folder,
    ``tests/NAME/`` and ``tests/test_NAME.py`` belong to the file NAME alone.
    """
    file = Path(source)
    folder = file.parent / TESTS
    if not (file.is_absolute() and folder.is_dir()):
        return None
    found = [path for path in files(folder) if _uses_lab(path, folder, nodes)]
    others = {_name(path) for path in topologies_in(file.parent)} if found else set()
    others.discard(_name(file))
    own = [path for path in found if _topology(path.relative_to(folder)) not in others]
    return Beside(file.parent, tuple(own)) if own else None


def _name(path: Path) -> str:
    """Return the part of a file's name up to the first dot, as a Python module could have it."""
    return path.name.partition(".")[0].replace("-", "_")


def _topology(path: Path) -> str:
    """Return the name of the topology that a file is for, if there is one of this name."""
    first = path.parts[0]
    return _name(Path(first if len(path.parts) > 1 else first.removeprefix("test_")))


def _uses_lab(path: Path, folder: Path, nodes: Collection[str]) -> bool:
    above = [one for one in path.parents if one.is_relative_to(folder.parent)]
    if any(one.name.startswith(".") for one in above if one.is_relative_to(folder)):
        return False  # such as a virtual environment
    own = _text(path)
    texts = [*(_text(one / CONFTEST) for one in reversed(above)), own]
    if not any(map(WORDS.search, texts)):
        return False
    try:
        tree = ast.parse(own)
    except (SyntaxError, ValueError):  # pytest reports it
        return SURE.search(own) is not None
    if any(isinstance(one, ast.Attribute) and one.attr in MARKS for one in ast.walk(tree)):
        return True
    functions = list(_functions(tree))
    inherited = [one for text in texts[:-1] for one in _functions(_parsed(text))]
    using = set(OURS) if _has_other_hosts(tree, nodes) else {*OURS, HOST}
    fixtures = [one for one in [*inherited, *functions] if _is_fixture(one)]
    using = _with_fixtures(using, fixtures)
    if any(one.name in using and _is_autouse(one) for one in fixtures):
        return bool(functions)
    return any(_asked(one) & using for one in functions)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _parsed(text: str) -> ast.Module:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError):
        return ast.Module([], [])


def _functions(tree: ast.Module) -> Iterator[Function]:
    """Yield the tests and fixtures of a module."""
    for one in ast.walk(tree):
        if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef) and (
            one.name.startswith("test") or _is_fixture(one)
        ):
            yield one


def _is_fixture(function: Function) -> bool:
    called = [one.func if isinstance(one, ast.Call) else one for one in function.decorator_list]
    return any("fixture" in ast.unparse(one).rpartition(".")[2] for one in called)


def _is_autouse(fixture: Function) -> bool:
    """Tell whether a fixture is used by every test below it."""
    words = (one for call in fixture.decorator_list for one in getattr(call, "keywords", ()))
    return any(word.arg == "autouse" and ast.unparse(word.value) == "True" for word in words)


def _asked(function: Function) -> set[str]:
    """Return the names of the fixtures that a test or a fixture uses."""
    every = (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)
    asked = {one.arg for one in every}
    for call in function.decorator_list:
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
            continue
        if call.func.attr == "usefixtures":
            asked |= set(_constants(*call.args))
        elif call.func.attr == "parametrize" and call.args:
            given = _constants(call.args[0])
            asked -= {name.strip() for names in given for name in names.split(",")}
    return asked


def _constants(*values: ast.AST) -> Iterator[str]:
    """Yield the texts in expressions."""
    for value in values:
        for one in ast.walk(value):
            if isinstance(one, ast.Constant) and isinstance(one.value, str):
                yield one.value


def _with_fixtures(names: set[str], fixtures: list[Function]) -> set[str]:
    """Return those of the names that are no fixtures here, and the fixtures that use them.

    A fixture that uses the one of its own name only adds to it.
    """
    last = {one.name: _asked(one) for one in fixtures}
    using = {name for name in names if name in last.get(name, {name})}
    while more := {name for name, asked in last.items() if asked & using} - using:
        using |= more
    return using


def _has_other_hosts(tree: ast.Module, nodes: Collection[str]) -> bool:
    """Tell whether a module sets hosts of testinfra that are no places of a lab."""
    for one in tree.body:
        if isinstance(one, ast.Assign) and any(map(_is_hosts, one.targets)):
            return not all(
                name.startswith(SCHEME) or name.partition("/")[0] in nodes
                for name in _constants(one.value)
            )
    return False


def _is_hosts(target: ast.expr) -> bool:
    return isinstance(target, ast.Name) and target.id == HOSTS
