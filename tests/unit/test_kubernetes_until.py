"""Errors for a part of a cluster that does not start: its last lines, and the condition."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from testbed.errors import LabError, ServiceError
from testbed.nodes.base import ServiceState
from testbed.roles.kubernetes import client

if TYPE_CHECKING:
    from testbed.steps.context import Context


class Machine:
    """A node with two daemons."""

    name = "node1"

    def __init__(self, state: Any = "ready", other: Any = "ready") -> None:
        self.states = {"kubelet": state, "kube-scheduler": other}

    def services(self) -> dict[str, ServiceState]:
        return {name: ServiceState(name, of, 7, None, "") for name, of in self.states.items()}

    def logs(self, service: str) -> str:
        return f"{service}: one\n{service}: the last line"


def context(machine: Machine) -> Context:
    return cast(
        "Context",
        SimpleNamespace(lab="k8s", node=lambda _: machine, given_up=threading.Event()),
    )


def test_it_tells_whether_it_had_to_wait() -> None:
    said = iter([False, True])
    machine = context(Machine())
    assert client.until(machine, "node1", lambda: next(said), "so", service="kubelet")
    assert not client.until(machine, "node1", lambda: True, "so", service="kubelet")


def test_what_never_comes_is_named_with_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "SECONDS", 0.0)
    with pytest.raises(ServiceError) as refused:
        client.until(
            context(Machine()), "node1", lambda: False, "node node1 is Ready",
            service="kubelet", why=lambda: "container runtime network not ready",
        )  # fmt: skip
    error = refused.value
    assert (error.service, error.node) == ("kubelet", "node1")
    assert "node node1 is Ready" in error.what
    assert "container runtime network not ready" in error.what
    assert "kubelet: the last line" in error.log
    assert "testbed logs -l k8s node1 kubelet" in (refused.value.hint or "")


def test_a_daemon_that_has_died_ends_the_wait() -> None:
    with pytest.raises(ServiceError, match="died") as caught:
        client.until(context(Machine("dead")), "node1", lambda: False, "so", service="kubelet")
    assert (caught.value.service, caught.value.node) == ("kubelet", "node1")


def test_another_that_dies_meanwhile_ends_it_too() -> None:
    machine = Machine()

    def so() -> bool:
        machine.states["kube-scheduler"] = "dead"
        return False

    with pytest.raises(ServiceError, match="died") as caught:
        client.until(context(machine), "node1", so, "so", service="kubelet")
    assert (caught.value.service, caught.value.node) == ("kube-scheduler", "node1")


def test_another_that_had_died_before_is_for_another_step_to_start() -> None:
    said = iter([False, True])
    machine = context(Machine(other="dead"))
    assert client.until(machine, "node1", lambda: next(said), "so", service="kubelet")


def test_nobody_waits_once_the_run_gives_up() -> None:
    of = context(Machine())
    of.given_up.set()
    with pytest.raises(LabError, match="stopped waiting"):
        client.until(of, "node1", lambda: False, "so", service="kubelet")
