"""Test suites for providers and roles of other distributions, and labs in memory.

A provider passes :class:`ProviderContract`, a role :class:`RoleContract`.  Derive a class in a
test file of your own and give it the fixtures that the class names; pytest collects it::

    from testbed.testing import ProviderContract


    class TestRack(ProviderContract):
        @pytest.fixture
        def provider(self): ...

:class:`FakeProvider` has nodes in memory, and :class:`Bench` whole labs of them, so most tests
need neither root nor a network.  The names in ``__all__`` are public; docs/extending.md shows
them at work.
"""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite(*(f"{__name__}.{part}" for part in (
    "provider", "machine", "terminal", "role",
)))  # fmt: skip

from testbed.nodes.fake import (  # noqa: E402  (the line above must come first)
    Answer,
    Behaviour,
    Call,
    FakeMachine,
    FakeNode,
    FakeProvider,
)
from testbed.testing.fakes import (  # noqa: E402
    Bench,
    FakeEngine,
    FakeStore,
    be_a_machine,
    declare,
    teach,
)
from testbed.testing.machine import MachineContract, two_machines  # noqa: E402
from testbed.testing.provider import (  # noqa: E402
    FleetContract,
    NodeContract,
    ProviderContract,
    spec,
    until,
)
from testbed.testing.role import RoleContract  # noqa: E402
from testbed.testing.terminal import TerminalContract, User  # noqa: E402

__all__ = [
    "Answer",
    "Behaviour",
    "Bench",
    "Call",
    "FakeEngine",
    "FakeMachine",
    "FakeNode",
    "FakeProvider",
    "FakeStore",
    "FleetContract",
    "MachineContract",
    "NodeContract",
    "ProviderContract",
    "RoleContract",
    "TerminalContract",
    "User",
    "be_a_machine",
    "declare",
    "spec",
    "teach",
    "two_machines",
    "until",
]
