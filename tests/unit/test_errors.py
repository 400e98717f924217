"""The tree of errors: as drawn, with the exit codes that are promised."""

from __future__ import annotations

import inspect
import re

import pytest

from testbed import errors
from testbed.errors import (
    CommandError,
    Interrupted,
    LabError,
    MachineError,
    Problem,
    ServiceError,
    StepsFailed,
    TestbedError,
    TopologyError,
    UsageError,
)


def drawn() -> dict[str, tuple[str, int]]:
    """Class to parent and exit code, as the module's docstring draws them."""
    found: dict[str, tuple[str, int]] = {}
    above: list[str] = []
    for line in inspect.getdoc(errors).splitlines():  # type: ignore[union-attr]
        match = re.match(r"^ {4}((?:[│ ]   |[├└]── )*)(\w+)(?: +(\d+|exit code))?(?: .*)?$", line)
        if match and (match[3] or match[2] == "TestbedError"):
            depth = len(match[1]) // 4
            above[depth:] = [match[2]]
            code = int(match[3]) if match[3] != "exit code" else 1
            found[match[2]] = (above[depth - 1] if depth else "Exception", code)
    return found


def classes() -> dict[str, type[TestbedError]]:
    return {
        name: value
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, TestbedError)
    }


def test_the_drawing_is_the_code() -> None:
    tree = {name: (of.__mro__[1].__name__, of.__dict__.get("exit_code", of.exit_code))
            for name, of in classes().items()}  # fmt: skip
    shown = drawn()
    assert {n: p for n, (p, _) in shown.items()} == {n: p for n, (p, _) in tree.items()}
    codes = {name: code for name, (_, code) in tree.items() if name != "Interrupted"}
    assert {n: c for n, (_, c) in shown.items() if n != "Interrupted"} == codes


def test_all_is_all() -> None:
    assert sorted(errors.__all__) == errors.__all__
    assert set(errors.__all__) == {*classes(), "Problem", "output_error"}


@pytest.mark.parametrize(
    ("name", "builtin"),
    [
        ("UsageError", ValueError),
        ("TopologyError", ValueError),
        ("MachineError", OSError),
        ("ArtifactError", OSError),
        ("LabError", RuntimeError),
        ("TimeoutExpired", TimeoutError),
        ("NotFound", LookupError),
    ],
)
def test_errors_are_the_builtin_that_they_are(name: str, builtin: type[Exception]) -> None:
    assert issubclass(classes()[name], builtin)


PLAIN = ["TestbedError", "UsageError", "MachineError", "ArtifactError", "LabError",
         "TimeoutExpired", "NoSuchLab", "ChecksFailed",
         "NoSuchNode", "NoSuchService"]  # fmt: skip


@pytest.mark.parametrize("name", PLAIN)
def test_message_and_hint(name: str) -> None:
    error = classes()[name]("it is so", hint="do this")
    assert str(error) == "it is so\n  -> do this"
    assert (error.message, error.hint) == ("it is so", "do this")
    assert str(classes()[name]("it is so")) == "it is so"


@pytest.mark.parametrize(("signum", "code"), [(2, 130), (15, 143)])
def test_interrupts_end_as_a_shell_expects(signum: int, code: int) -> None:
    assert Interrupted(signum).exit_code == code


def test_a_command_can_be_pasted() -> None:
    error = CommandError(["sh", "-c", "echo 'a b'"], where="node1", status=-9, stdout="out\n")
    assert str(error) == """on node1: sh -c 'echo '"'"'a b'"'"'': signal 9\n    out"""
    assert error.argv == ("sh", "-c", "echo 'a b'")


def test_of_a_long_output_the_end_is_shown() -> None:
    error = CommandError(
        ["x"], where="n", status=1, stdout="no", stderr="\n".join(map(str, range(99)))
    )
    lines = str(error).splitlines()
    assert lines[0] == "on n: x: exit status 1"
    assert lines[1:] == [f"    {i}" for i in range(87, 99)]


def test_a_service_shows_its_last_words() -> None:
    error = ServiceError("etcd", "node1", "died", "a\nb\n", hint="look")
    assert str(error) == "etcd on node1 died\n    a\n    b\n  -> look"
    assert str(ServiceError("etcd", "node1", "died", "")) == "etcd on node1 died"


def test_problems_are_in_the_order_of_the_lines() -> None:
    problems = [
        Problem(9, 1, "a", "b", "c"),
        Problem(0, 0, "x", "y", "z"),
        Problem(2, 5, "d", "e", "f"),
    ]
    error = TopologyError("t.yaml", problems)
    assert str(error) == (
        "t.yaml: wanted x, saw y; z\nt.yaml:2:5: wanted d, saw e; f\nt.yaml:9:1: wanted a, saw b; c"
    )


@pytest.mark.parametrize(
    ("failures", "code"),
    [
        ([LabError("a")], 4),
        ([MachineError("a")], 3),
        ([MachineError("a"), MachineError("b")], 3),
        ([MachineError("a"), LabError("b")], 4),
        ([KeyError("a")], 4),
        ([UsageError("a"), UsageError("b")], 2),
        ([UsageError("a"), MachineError("b")], 4),
    ],
)
def test_steps_failed(failures: list[Exception], code: int) -> None:
    error = StepsFailed([(f"step {i}", e) for i, e in enumerate(failures)])
    assert error.exit_code == code
    assert error.failures[0][0] == "step 0"
    assert str(error).startswith("step 0: ")


def test_an_error_without_words_is_named() -> None:
    assert str(StepsFailed([("a", ValueError())])) == "a: ValueError"


def test_usage_is_a_users_mistake() -> None:
    assert (UsageError("x").exit_code, TopologyError("x", []).exit_code) == (2, 2)
