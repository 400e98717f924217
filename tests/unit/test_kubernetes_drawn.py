"""Pods and Services of a cluster for the graph: what is made of the API's answers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from testbed.errors import LabError
from testbed.roles.kubernetes import client, drawn
from testbed.roles.kubernetes.drawn import PODS, SERVICES, SLICES


def meta(name: str, namespace: str = "default", **labels: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": namespace, "labels": labels}}


def pod(name: str, phase: str, *ips: str, **spec: Any) -> dict[str, Any]:
    status = {"phase": phase, "podIPs": [{"ip": ip} for ip in ips]}
    return {**meta(name), "spec": spec, "status": status}


def answering(patch: pytest.MonkeyPatch, answers: dict[str, Any]) -> Any:
    api = SimpleNamespace(ask=lambda _method, path: answers[path])
    patch.setattr(client, "api", lambda _: api)
    context: Any = None
    return context


def test_pods_that_have_ended_have_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    pods = [
        pod("web", "Running", "10.244.1.2", "fd00::2"),
        pod("job", "Succeeded", "10.244.1.3"),
        pod("agent", "Running", "10.168.0.2", hostNetwork=True),
        pod("new", "Pending"),
    ]
    context = answering(monkeypatch, {f"{PODS}node1": {"items": pods}})
    found = drawn.pods(context, "node1")
    assert [(one["name"], one["mode"], one["addresses"]) for one in found] == [
        ("default/agent", "host", []),
        ("default/new", "pod", []),
        ("default/web", "pod", ["10.244.1.2", "fd00::2"]),
    ]


def test_a_service_has_the_ready_endpoints_of_all_its_slices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def ends(name: str, *endpoints: dict[str, Any], port: int) -> dict[str, Any]:
        labels = {drawn.OF_SERVICE: name}
        return {**meta(f"{name}-1", **labels), "endpoints": [*endpoints], "ports": [{"port": port}]}

    ready, not_ready = {"ready": True}, {"ready": False}
    slices = [
        ends("web", {"addresses": ["10.244.1.2"], "conditions": ready}, port=8080),
        ends("web", {"addresses": ["fd00::2"]}, port=8080),
        ends("web", {"addresses": ["10.244.1.4"], "conditions": not_ready}, port=8080),
        {**ends("none", port=1), "endpoints": None},
    ]
    services = [
        {
            **meta("web"),
            "spec": {
                "clusterIPs": ["10.97.0.7"],
                "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}, {"port": 53}],
            },
        },
        {**meta("headless"), "spec": {"clusterIPs": ["None"]}},
    ]
    context = answering(monkeypatch, {SLICES: {"items": slices}, SERVICES: {"items": services}})
    web, headless = drawn.services(context)
    assert web == {
        "name": "default/web",
        "addresses": ["10.97.0.7"],
        "ports": ["80:30080/tcp", "53/tcp"],
        "backends": ["10.244.1.2:8080", "[fd00::2]:8080"],
    }
    assert (headless["addresses"], headless["ports"], headless["backends"]) == ([], [], [])


@pytest.mark.parametrize("items", [[7], [{}], [{"metadata": {"name": "a"}}], [{"metadata": 7}]])
def test_answers_that_make_no_sense(monkeypatch: pytest.MonkeyPatch, items: list[Any]) -> None:
    said = {"items": items}
    context = answering(monkeypatch, {f"{PODS}n": said, SLICES: said, SERVICES: said})
    with pytest.raises(LabError):
        drawn.pods(context, "n")
    with pytest.raises(LabError):
        drawn.services(context)
