"""Requests to ``testbed-init``, and the errors of those without an answer."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Self, cast

import pytest

from testbed.errors import LabError, ServiceNotReady, TimeoutExpired
from testbed.nodes import keeper
from testbed.nodes.base import Service
from testbed.nodes.netns.node import NetnsNode

if TYPE_CHECKING:
    from testbed.nodes.base import Node
    from testbed.nodes.netns.find import Init

NODE = cast("Node", SimpleNamespace(name="n1", get=lambda _: b"its log"))
FULL = TimeoutExpired("n1 has accepted no connection for 30 s", hint="wait for its commands")


class Fails:
    """Ends each request with an error."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __call__(self, fields: Sequence[str], timeout: float) -> str:
        del fields, timeout
        raise self.error


def test_a_service_without_an_answer_in_time_is_not_ready() -> None:
    ask = Fails(TimeoutError("silent"))
    with pytest.raises(ServiceNotReady) as caught:
        keeper.start(ask, NODE, Service("s", ("prog",)), 1.0)
    assert (caught.value.service, caught.value.log) == ("s", "its log")
    with pytest.raises(ServiceNotReady):
        keeper.stop(ask, NODE, "s", 1.0)
    with pytest.raises(TimeoutExpired, match="silent"):
        keeper.services(ask)


def test_a_node_without_room_for_a_request_is_no_service_that_is_not_ready() -> None:
    """The hint of the connection is the one that helps."""
    ask = Fails(FULL)
    with pytest.raises(TimeoutExpired) as caught:
        keeper.start(ask, NODE, Service("s", ("prog",)), 1.0)
    assert caught.value is FULL
    with pytest.raises(TimeoutExpired) as caught:
        keeper.stop(ask, NODE, "s", 1.0)
    assert caught.value is FULL
    with pytest.raises(LabError) as other:
        keeper.services(ask)
    assert other.value is FULL


@pytest.mark.parametrize("full", [True, False])
def test_a_namespace_node_tells_one_from_the_other(
    monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    class Connection:
        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            return

        def send(self, _: Sequence[str]) -> None:
            return

        def receive_text(self, timeout: float) -> tuple[str, list[int]]:
            raise TimeoutExpired(f"no answer within {timeout:g} s")

    def connect(_: NetnsNode) -> Connection:
        if full:
            raise FULL
        return Connection()

    monkeypatch.setattr(NetnsNode, "_connect", connect)
    monkeypatch.setattr(NetnsNode, "get", lambda *_: b"")
    init = cast("Init", SimpleNamespace(node="n1", digest="-", lab="lab", pid=1))
    with pytest.raises(TimeoutError) as caught:
        NetnsNode(init).start(Service("s", ("prog",)), timeout=1.0)
    assert isinstance(caught.value, ServiceNotReady) is not full
