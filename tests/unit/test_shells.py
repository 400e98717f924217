"""No shell is given a text that is made of input: scripts are constants, what differs is argument.

Read from the sources themselves, so a new place is seen as soon as it is written.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import testbed

PACKAGE = Path(testbed.__file__).parent
SHELLS = {"sh", "bash", "dash", "ash", "/bin/sh", "/bin/bash"}
#: What hands a text to a shell by itself; the last one to the login shell at the far end of ssh.
HIDDEN = re.compile(
    r"os\.(system|popen)|subprocess\.get(status)?output|asyncio\.create_subprocess_shell"
    r"|.+\.exec_command"
)
#: No module without one of these words has any of that.
WORDS = re.compile(r"\b(?:sh|bash|dash|ash)\b|shell|system|popen|get(status)?output|exec_command")

#: Where a protocol takes a text and nothing else, and what makes it safe.
KNOWN = {
    "nodes/testinfra_backend.py": "testinfra's host.run() is given shell by who writes a test",
    "nodes/openssh/client.py": "constants, and the size of a file",
    "nodes/ssh/session.py": "constants, and hexadecimal digits of a sum",
    "nodes/ssh/terminal.py": "every word is quoted by shlex.join",
    "nodes/ansible/connection.py": "Ansible gives each command as a shell's",
    "topology/programs.py": "whoever writes a topology gives it as a shell's command",
    "suites/prove.py": "whoever writes a sabotage in YAML gives it as a shell's command",
}

Expression = ast.expr | None


@dataclass(frozen=True)
class Source:
    """One module, as far as constants are looked up in it."""

    name: str  #: below the package, with dots; "" is the package itself
    text: str

    @functools.cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    def assigned(self, name: str) -> list[Expression]:
        """All that a name of the module stands for; None for what is no plain assignment."""
        return assigned(self.tree.body, name)

    def imported(self, name: str) -> tuple[str, str] | None:
        """The module and the name in it that a name of this one stands for."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("testbed"):
                for alias in node.names:
                    if (alias.asname or alias.name) == name:
                        return (node.module or "").removeprefix("testbed").lstrip("."), alias.name
        return None


@functools.cache
def source(name: str) -> Source | None:
    path = PACKAGE.joinpath(*name.split("."))
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return Source(name, file.read_text(encoding="utf-8"))
    return None


def assigned(body: list[ast.stmt], name: str) -> list[Expression]:
    found: list[Expression] = []
    for statement in body:
        for node in ast.walk(statement):
            if isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                if any(isinstance(t, ast.Name) and t.id == name for t in targets):
                    found.append(node.value)
                    continue
                found += [None for t in targets for n in ast.walk(t) if binds(n, name)]
            elif isinstance(node, ast.AugAssign | ast.For | ast.NamedExpr):
                found += [None for n in ast.walk(node.target) if binds(n, name)]
            elif isinstance(node, ast.arg) and node.arg == name:
                found.append(None)
    return found


def binds(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Store)


def is_constant(of: Source, function: ast.FunctionDef | None, value: Expression) -> bool:
    """Tell if an expression has the same value for all input of the program."""
    if isinstance(value, ast.Constant):
        return True
    if isinstance(value, ast.JoinedStr):
        return all(is_constant(of, function, part) for part in value.values)
    if isinstance(value, ast.FormattedValue):
        return is_constant(of, function, value.value)
    if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add):
        return all(is_constant(of, function, side) for side in (value.left, value.right))
    if isinstance(value, ast.Name):
        own = assigned([function], value.id) if function else []
        if own:
            return all(is_constant(of, function, one) for one in own)
        return is_constant_there(of, value.id)
    if isinstance(value, ast.Attribute) and isinstance(value.value, ast.Name):
        place = of.imported(value.value.id)
        module = source(".".join(filter(None, place))) if place else None
        return module is not None and is_constant_there(module, value.attr)
    return False


def is_constant_there(of: Source, name: str) -> bool:
    values = of.assigned(name) if name.isupper() else []
    if values:
        return all(is_constant(of, None, value) for value in values)
    place = of.imported(name)
    module = source(place[0]) if place else None
    return module is not None and place is not None and is_constant_there(module, place[1])


def shells(of: Source) -> Iterator[tuple[ast.AST, bool]]:
    """Every place where a shell is started, and whether what it is to do is a constant."""
    if not WORDS.search(of.text):
        return
    for function, node in walk(of.tree):
        if isinstance(node, ast.List | ast.Tuple):
            for at, item in enumerate(node.elts[:-1]):
                option = node.elts[at + 1]
                if not (word(item) in SHELLS and word(option).startswith("-")):
                    continue
                if "c" in word(option) and not word(option).startswith("--"):
                    script = node.elts[at + 2] if at + 2 < len(node.elts) else None
                    yield node, is_constant(of, function, script)
        elif isinstance(node, ast.Call):
            words = {keyword.arg: keyword.value for keyword in node.keywords}
            shell = word(words.get("shell", ast.Constant(value=False)))
            name = getattr(node.func, "attr", "")
            hidden = WORDS.search(name) and HIDDEN.fullmatch(ast.unparse(node.func))
            if hidden or shell != "False":
                yield node, False
            first = node.args[0] if node.args else None
            # One that reads its script from what it is handed.
            if "input" in words and isinstance(first, ast.List | ast.Tuple):
                name = next((one for one in first.elts if word(one) in SHELLS), None)
                after = first.elts[first.elts.index(name) + 1 :] if name else first.elts
                if name and not (after and "c" in word(after[0])):
                    yield node, is_constant(of, function, words["input"])


def walk(tree: ast.Module) -> Iterator[tuple[ast.FunctionDef | None, ast.AST]]:
    """Every node of a module, and the outermost function that it is in."""
    left: list[tuple[ast.FunctionDef | None, ast.AST]] = [(None, tree)]
    while left:
        function, node = left.pop()
        for child in ast.iter_child_nodes(node):
            within = child if isinstance(child, ast.FunctionDef) and function is None else function
            yield within, child
            left.append((within, child))


def word(node: Expression) -> str:
    return str(node.value) if isinstance(node, ast.Constant) else ""


@pytest.mark.source
def test_every_script_is_a_constant() -> None:
    found, wrong, known = 0, [], set()
    for path in sorted(PACKAGE.rglob("*.py")):
        place = str(path.relative_to(PACKAGE))
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__")
        for node, constant in shells(Source(name.rstrip("."), path.read_text(encoding="utf-8"))):
            found += 1
            if constant:
                continue
            if place in KNOWN:
                known.add(place)
            else:
                wrong.append(f"testbed/{place}:{getattr(node, 'lineno', 0)}")
    assert not wrong, f"{wrong}: give it as an argument: sh -c 'constant' sh ARGUMENT"
    assert known == set(KNOWN)  # none is listed that is not needed
    assert found > 10


@pytest.mark.parametrize(
    "code",
    [
        'run(["sh", "-c", f"cat {path}"])',
        'run(["sh", "-ec", "cat " + path])',
        'run(("env", "bash", "-c", "cat {}".format(path)))',
        'script = "cat %s" % path\nrun(["/bin/sh", "-c", script])',
        'def f(script):\n    run(["sh", "-c", script])',
        'def f(x):\n    script = "true"\n    script += x\n    run(["sh", "-c", script])',
        'def f():\n    for script in given:\n        run(["sh", "-c", script])',
        'node.run(["sh", "-e"], input=words.encode())',
        'node.run(["sh"], input=words)',
        'node.run(["sh", "-s", name], input=words)',
        "run(line, shell=True)",
        "run(line, shell=wish)",
        "os.system(line)",
        "subprocess.getoutput(line)",
        "channel.exec_command(line)",
    ],
)
def test_a_script_made_of_input_is_seen(code: str) -> None:
    assert False in [constant for _, constant in shells(Source("", code))]


@pytest.mark.parametrize(
    "code",
    [
        'run(["sh", "-c", \'cat "$1"\', "sh", path])',
        'WORDS = "cat"\nONE = f"{WORDS} /etc"\ndef f():\n    run(["sh", "-c", ONE + " | wc"])',
        'def f(path):\n    script = "cat"\n    run(["sh", "-c", script, path])',
        'from testbed.nodes.ssh import services\nrun(["sh", "-c", services.LIST])',
        'from testbed.nodes.seed import INSTALL\nrun(["sh", "-c", INSTALL])',
        'WORDS = "true"\nnode.run(["sh", "-e"], input=WORDS)',
    ],
)
def test_a_constant_is_let_pass(code: str) -> None:
    assert [constant for _, constant in shells(Source("", code))] == [True]


@pytest.mark.parametrize("code", ['APPLETS = ("sh", "sleep")', 'run(["sort", "-c"], shell=False)'])
def test_what_is_no_shell(code: str) -> None:
    assert list(shells(Source("", code))) == []
