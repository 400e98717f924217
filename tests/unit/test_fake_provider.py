"""The fake provider keeps the contract of the real ones; what else it can do."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import pytest

from testbed.errors import CommandError, LabError, NoSuchNode, ServiceError
from testbed.nodes.base import Provider, Service
from testbed.nodes.fake import Answer, Behaviour, FakeMachine, FakeProvider
from testbed.polling import until
from testbed.testing.fakes import teach
from testbed.testing.provider import ProviderContract, spec

REAL = "a fake node has no "


class TestContract(ProviderContract):
    skips: ClassVar = {
        "test_a_time_out_ends_its_children_too": REAL + "processes",
        "test_kill_ends_it": REAL + "processes",
        "test_connected_nodes_have_their_addresses_and_reach_each_other": REAL + "network",
        "test_stop_kills_what_does_not_obey": REAL + "signals: its services obey",
    }

    @pytest.fixture
    def provider(self) -> Provider:
        return FakeProvider(teach(FakeMachine(strict=True)))

    def again(self, provider: Provider) -> Provider:
        assert isinstance(provider, FakeProvider)
        return FakeProvider(provider.machine)


def test_unscripted_commands_succeed_in_silence() -> None:
    node = FakeProvider().create_one("lab", spec("n"))
    result = node.run(["ip", "link", "add"])
    assert (result.status, result.out, result.err) == (0, b"", b"")


def test_the_latest_script_that_fits_counts() -> None:
    provider = FakeProvider()
    one, two = provider.create_one("lab", spec("one")), provider.create_one("lab", spec("two"))
    provider.script(["ip"], Answer(out=b"any"))
    provider.script(["ip", "link"], Answer(out=b"link"))
    provider.script(["ip"], Answer(1, err=b"no"), node="two")
    assert [one.run(["ip", w]).out for w in ("link", "route")] == [b"link", b"any"]
    with pytest.raises(CommandError, match="on two: ip link: exit status 1\n    no"):
        two.run(["ip", "link"])


def test_calls_are_kept_in_order() -> None:
    provider = FakeProvider()
    node = provider.create_one("lab", spec("n"))
    node.put(b"x", "/etc/x")
    node.run(["ip", "link"], input=b"in", env={"A": "b"})
    node.start(Service("s", ("s",)))
    provider.destroy("lab", ["n"])
    assert [(c.node, c.what, c.words) for c in provider.calls] == [
        ("n", "create", ()),
        ("n", "put", ("/etc/x",)),
        ("n", "run", ("ip", "link")),
        ("n", "start", ("s",)),
        ("", "destroy", ("n",)),
    ]
    assert (provider.calls[2].input, provider.calls[2].env) == (b"in", {"A": "b"})
    assert provider.asked("run", "n") == [("ip", "link")]


def test_a_method_can_be_made_to_fail() -> None:
    provider = FakeProvider()
    provider.fail("create", "n", LabError("no room"))
    with pytest.raises(LabError, match="no room"):
        provider.create_one("lab", spec("n"))
    assert provider.nodes("lab") == {}
    provider.create_one("lab", spec("m"))
    provider.fail("create", "n", None)
    provider.create_one("lab", spec("n"))


def test_a_service_can_be_slow_and_die_later() -> None:
    provider = FakeProvider()
    provider.behave("s", Behaviour(log="up\n", seconds=0.05))
    node = provider.create_one("lab", spec("n"))
    began = time.monotonic()
    node.start(Service("s", ("s",), notify=True))
    assert time.monotonic() - began >= 0.05
    node.end("s", -11, "oops\n")
    state = node.services()["s"]
    assert (state.state, state.status) == ("dead", -11)
    assert node.logs("s") == "up\noops\n"


def test_behaviour_of_one_node_only() -> None:
    provider = FakeProvider()
    provider.behave("s", Behaviour(dies=1), node="two")
    provider.create_one("lab", spec("one")).start(Service("s", ("s",), notify=True))
    with pytest.raises(ServiceError):
        provider.create_one("lab", spec("two")).start(Service("s", ("s",), notify=True))


def test_a_long_command_ends_when_its_node_does() -> None:
    provider = FakeProvider()
    provider.script(["sleep"], Answer(seconds=60))
    node = provider.create_one("lab", spec("n"))
    with ThreadPoolExecutor(1) as pool:
        sleeps = pool.submit(node.run, ["sleep"])
        assert until(lambda: node._running, 60)
        provider.destroy("lab")
        with pytest.raises(NoSuchNode):
            sleeps.result()


def test_attach_gives_the_shells_status() -> None:
    provider = FakeProvider()
    node = provider.create_one("lab", spec("n"))
    provider.script(["a"], Answer(4))
    provider.script(["b"], Answer(-9))
    assert [node.attach([w], tty=False) for w in "ab"] == [4, 137]


def test_nothing_of_it_is_on_this_machine() -> None:
    node = FakeProvider().create_one("lab", spec("n"))
    node.put(b"", "/run/no-such-file-here")
    assert not Path("/run/no-such-file-here").exists()
    assert not Path(node.socket("/run/docker.sock")).exists()
