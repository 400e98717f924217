"""Providers and roles by name: declared by distributions, loaded when they are used."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest
from jsonschema import Draft202012Validator
from plugins import Elsewhere, GreeterSection, Voice, declare_elsewhere, declare_greeter

from testbed import cli, registry
from testbed.artifacts import Store
from testbed.cli import common
from testbed.cli import schema as schema_command
from testbed.errors import Interrupted, MachineError, TopologyError
from testbed.faults.force import fault_of
from testbed.labs import preflight
from testbed.labs.lab import Lab, Settings
from testbed.labs.state import State
from testbed.labs.status import status
from testbed.nodes.base import Setup
from testbed.nodes.fake import FakeNode, FakeProvider
from testbed.nodes.netns.provider import NetnsProvider
from testbed.registry import PROVIDERS, ROLES, Registry, fabric_kind
from testbed.settings import settings
from testbed.testing.fakes import declare
from testbed.topology import load, load_data, load_text
from testbed.topology.schema import schema

if TYPE_CHECKING:
    from testbed.testing.fakes import Bench

GROUP = "testbed.things"
#: Long ago, so that the folder is taken for settled.
SETTLED = (10**9, 10**9)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on sys.path that distributions are installed into, and a cache of its own."""
    monkeypatch.setenv("TESTBED_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.setattr(sys, "path", [str(folder)])
    return folder


def install(site: Path, distribution: str, *, group: str = GROUP, **points: str) -> None:
    info = site / f"{distribution}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    lines = [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    os.utime(site, SETTLED)


def things() -> Registry[object]:
    return Registry(GROUP, "thing", lambda found: found)


def test_ours_are_declared_like_those_of_others() -> None:
    names = ["containerlab", "kubectl-debug", "kubernetes", "netns", "qemu", "ssh", "vagrant"]
    assert list(PROVIDERS) == names
    assert list(ROLES) == [
        *("bird", "docker", "etcd", "flannel", "frr", "kubernetes", "namespaces"),
    ]
    assert all(kind.name == name for name, kind in PROVIDERS.items())
    assert all(role.name == name for name, role in ROLES.items())
    assert PROVIDERS["netns"] is NetnsProvider


def test_every_distribution_declares_its_own(site: Path) -> None:
    install(site, "one", b="collections:OrderedDict")
    install(site, "two", a="json:JSONDecoder.decode")
    found = things()
    assert list(found) == ["a", "b"]
    assert len(found) == 2
    assert "a" in found
    assert found["a"] is json.JSONDecoder.decode
    with pytest.raises(KeyError):
        found["c"]


def test_metadata_is_read_again_only_where_something_was_installed(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(site, "one", a="json:loads")
    assert list(things()) == ["a"]
    with monkeypatch.context() as patch:
        patch.setattr(registry, "_read", lambda _: pytest.fail("nothing has changed"))
        assert list(things()) == ["a"]
    install(site, "two", b="json:dumps")
    os.utime(site, (2 * 10**9, 2 * 10**9 - 10**9 // 2))
    assert list(things()) == ["a", "b"]


def test_a_folder_that_has_just_changed_is_not_remembered(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(site, "one", a="json:loads")
    os.utime(site)  # now: what comes within the same tick could not be told
    assert list(things()) == ["a"]
    monkeypatch.setattr(registry, "_read", lambda _: {GROUP: [["b", "json:loads", "two"]]})
    assert list(things()) == ["b"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"/x": 1}', '{"/x": {"changed": 1}}'])
def test_what_was_kept_and_cannot_be_read_is_read_anew(site: Path, text: str) -> None:
    install(site, "one", a="json:loads")
    file = site.parent / "cache" / registry.KEPT
    file.parent.mkdir()
    file.write_text(text)
    assert list(things()) == ["a"]
    assert str(site) in json.loads(file.read_text())


def test_a_cache_that_cannot_be_written_is_done_without(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(site, "one", a="json:loads")
    monkeypatch.setenv("TESTBED_CACHE", "/proc/nowhere")
    assert list(things()) == ["a"]


def test_a_copy_that_is_not_installed(site: Path) -> None:
    del site
    with pytest.raises(MachineError) as caught:
        list(things())
    assert caught.value.hint


@pytest.mark.parametrize(
    "value", ["no_such_module:x", "json:no_such_name", "json", "plugins:BROKEN", ":"]
)
def test_one_that_cannot_be_loaded_names_its_distribution(site: Path, value: str) -> None:
    install(site, "acme-lab", a=value)
    if value == "json":  # a module is no class, yet it is what was declared
        assert things()["a"] is json
        return
    with pytest.raises(MachineError) as caught:
        things()["a"]
    assert "acme-lab" in caught.value.message
    assert f"{type(caught.value.__cause__).__name__}: " in caught.value.message
    assert caught.value.hint


def test_a_signal_while_one_is_loaded_is_no_fault_of_its(site: Path) -> None:
    (site / "held.py").write_text("from testbed.errors import Interrupted\nraise Interrupted(15)\n")
    install(site, "acme", slow="held:Thing")
    things = Registry(GROUP, "thing", lambda found: found)
    with pytest.raises(Interrupted):
        things["slow"]
    with pytest.raises(Interrupted):
        things.broken()
    point = EntryPoint("slow", "held:command", "testbed.commands")
    with pytest.raises(Interrupted):
        registry._about(point)


def test_one_that_cannot_be_made_names_its_distribution(site: Path) -> None:
    install(site, "acme-lab", a="json:loads")
    made: Registry[object] = Registry(GROUP, "thing", lambda found: found())  # it lacks an argument
    with pytest.raises(MachineError) as caught:
        made["a"]
    assert "acme-lab" in caught.value.message


def test_one_name_of_two_distributions(site: Path) -> None:
    install(site, "one", a="json:loads")
    install(site, "two", a="json:dumps", b="json:dumps")
    found = things()
    assert found["b"] is json.dumps
    with pytest.raises(MachineError) as caught:
        found["a"]
    assert {"one", "two"} <= set(caught.value.message.replace(",", "").split())


# -- what follows from being registered ---------------------------------------------


def test_a_registered_provider_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    declare_elsewhere(monkeypatch)
    topology = load_text("name: t\nprovider: elsewhere\nnodes: {a: {}}\n", "t.yaml")
    assert topology.provider_of("a") == "elsewhere"
    assert preflight.programs(topology) == preflight.PROGRAMS


@pytest.mark.parametrize("name", ["docker", "elsewhere"])
def test_a_provider_that_nothing_makes_is_refused(name: str) -> None:
    for lines in (f"provider: {name}\nnodes: {{a: {{}}}}", f"nodes: {{a: {{provider: {name}}}}}"):
        with pytest.raises(TopologyError):
            load_text(f"name: t\n{lines}\n", "t.yaml")
    assert name not in schema()["properties"]["provider"]["enum"]


def test_the_limit_of_networks_is_the_providers(monkeypatch: pytest.MonkeyPatch) -> None:
    declare_elsewhere(monkeypatch)
    monkeypatch.setattr(Elsewhere, "networks_max", 1)
    text = """
name: t
provider: elsewhere
networks: {a: {subnet: 10.1.0.0/24}, b: {subnet: 10.2.0.0/24}}
nodes:
  one: {networks: {a: 10.1.0.2}}
  two: {networks: {a: 10.1.0.3, b: 10.2.0.3}}
"""
    with pytest.raises(TopologyError) as caught:
        load_text(text, "t.yaml")
    assert [problem.line for problem in caught.value.problems] == [7]


def test_members_of_a_fabric_come_after_its_maker(tmp_path: Path) -> None:
    """So that the fabric is there first, and goes last."""

    class Member(FakeProvider):
        name = "a-member"
        fabric_of = "netns"

    settings = Settings(
        State(tmp_path),
        Store(tmp_path),
        {"a-member": Member(), "elsewhere": Elsewhere(), "netns": FakeProvider()},
    )
    topology = dataclasses.replace(load("two-node"), provider="a-member")
    assert settings.sharing(topology) == ["netns", "a-member"]


def test_a_provider_is_constructed_from_state_and_store(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for kind in PROVIDERS.values():
        assert kind.of(Setup(tmp_path, store)).labs() == []
    makers = {fabric_kind(kind) for kind in PROVIDERS.values() if not kind.existing}
    assert makers == {"kubernetes", "netns"}, "Pods are on the network of their cluster"
    assert fabric_kind(Elsewhere) == "elsewhere"


def test_a_value_declared_twice_in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    declare(monkeypatch, PROVIDERS, "twice", "plugins:Elsewhere", "plugins:Overseas")
    with pytest.raises(MachineError):
        PROVIDERS["twice"]


def test_a_registered_role_is_part_of_a_lab(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    declare_greeter(monkeypatch)
    text = """
name: t
networks: {lan: {subnet: 10.1.0.0/24}}
nodes:
  a: {networks: {lan: 10.1.0.2}, roles: [greeter]}
  b: {networks: {lan: 10.1.0.3}, roles: [docker, greeter]}
  c: {networks: {lan: 10.1.0.4}}
"""
    topology = load_text(text, "t.yaml")
    lab = Lab("t", bench.settings)
    done = {one.step.name: one.words for one in lab.up(topology).steps}
    assert done["greeter a"] == done["greeter b"] == "it greets"
    assert bench.provider.nodes("t")["a"].get("/run/greeting") == b"hello from t\n"
    found = {node.name: node for node in status(lab.context(), []).nodes}
    assert [service.name for service in found["a"].services] == ["greetd"]
    assert found["c"].services == []
    assert fault_of("kill a/greetd", topology).service == "greetd"
    FakeNode.end(bench.provider.machine.nodes["t", "a"], "greetd", -9)
    assert not {node.name: node for node in status(lab.context(), []).nodes}["a"].ok
    assert [one.step.name for one in lab.up(topology).changed] == ["greeter a"]
    assert load_data(topology.to_dict(), "again").nodes == topology.nodes


GREETING = """name: t
networks: {lan: {subnet: 10.1.0.0/24}}
nodes:
  a: {networks: {lan: 10.1.0.2}, roles: [greeter], greeter: {loud: true}}
  b: {networks: {lan: 10.1.0.3}, roles: [greeter]}
greeter: {words: hi}
"""


@pytest.mark.usefixtures("greeter")
def test_a_role_has_keys_of_the_file_and_of_each_node() -> None:
    topology = load_text(GREETING, "t.yaml")
    assert GreeterSection.of(topology).words == "hi"
    assert topology.nodes["a"].sections == {"greeter": Voice(loud=True)}
    assert topology.nodes["b"].sections == {}
    assert load_data(topology.to_dict(), "record") == topology
    Draft202012Validator(schema()).validate(topology.to_dict())
    quiet = load_text(GREETING.replace(", greeter: {loud: true}", ""), "t.yaml")
    same = {n: quiet.node_digest(n) == topology.node_digest(n) for n in topology.nodes}
    assert same == {"a": False, "b": True}
    assert load_text(GREETING.replace("greeter: {words: hi}", ""), "t.yaml").sections


@pytest.mark.usefixtures("greeter")
@pytest.mark.parametrize(
    ("old", "new", "places"),
    [
        ("{loud: true}", "{lod: true, times: 4}", [(4, 62), (4, 80)]),
        ("{loud: true}", "[]", [(4, 61)]),
        ("{words: hi}", "{word: hi}", [(6, 11)]),
        ("roles: [greeter]", "roles: []", [(4, 45), (6, 1)]),
        ("roles: [greeter], greeter", "roles: [], greeter", [(4, 45)]),
    ],
)
def test_every_mistake_in_a_roles_keys_has_its_place(
    old: str, new: str, places: list[tuple[int, int]]
) -> None:
    with pytest.raises(TopologyError) as caught:
        load_text(GREETING.replace(old, new), "t.yaml")
    assert [(one.line, one.column) for one in caught.value.problems] == places
    assert all(one.hint for one in caught.value.problems)


@pytest.fixture
def greeter(monkeypatch: pytest.MonkeyPatch) -> None:
    declare_greeter(monkeypatch)


def test_a_role_that_nothing_declares_is_refused() -> None:
    with pytest.raises(TopologyError):
        load_text("name: t\nnodes: {a: {roles: [greeter]}}\n", "t.yaml")


# -- commands ------------------------------------------------------------------------


@click.command("rack")
def rack() -> None:
    """List the machines of the rack."""
    click.echo("no machines")


@pytest.fixture
def bring(site: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Install commands as another distribution does."""
    monkeypatch.setattr(registry, "COMMANDS", Registry("testbed.commands", "command", lambda f: f))

    def bring(**values: str) -> None:
        install(site, "acme", group="testbed.commands", **values)

    return bring


def test_a_command_of_others_is_listed_and_run(
    bring: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    bring(rack=f"{__name__}:rack")
    assert cli.brought() == {"rack": "List the machines of the rack."}
    assert cli.run(["--help"]) == 0
    assert "  rack  List the machines of the rack.\n" in capsys.readouterr().out
    assert cli.run(["rack"]) == 0
    assert capsys.readouterr().out == "no machines\n"
    assert cli.run(["rakc"]) == 2
    assert "testbed rack" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["no_such_module", "leaver"])
def test_a_command_that_cannot_be_loaded_is_listed_and_told(
    module: str, bring: Callable[..., None], site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (site / "leaver.py").write_text("raise SystemExit(9)\n")
    bring(broken=f"{module}:command")
    assert "acme" in cli.brought()["broken"]
    assert cli.run(["broken"]) == 3
    assert "acme" in capsys.readouterr().err
    assert cli.run(["--help"]) == 0


def test_a_command_of_ours_is_not_replaced(bring: Callable[..., None]) -> None:
    bring(schema=f"{__name__}:rack", rack=f"{__name__}:rack")
    assert list(cli.brought()) == ["rack"]
    assert cli.cli.get_command(click.Context(cli.cli), "schema") is schema_command.command


def test_a_copy_that_is_not_installed_has_no_such_commands(
    bring: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    del bring
    assert cli.brought() == {}
    assert cli.run(["--help"]) == 0
    capsys.readouterr()
    assert cli.run(["box"]) == 3
    assert "pip install" in capsys.readouterr().err


# -- a plug-in of others that is broken ----------------------------------------------


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider and a role of a distribution that lacks something."""
    for registry_ in (PROVIDERS, ROLES):
        declare(monkeypatch, registry_, "broken", "no_such_module:Broken")
        monkeypatch.setattr(registry_, "_broken", None)
        monkeypatch.setattr(registry_, "_made", dict(registry_._made))


@pytest.mark.usefixtures("broken")
def test_a_broken_plugin_keeps_no_other_lab_from_anything(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    found = settings()
    assert set(found.providers) == {*PROVIDERS} - {"broken"}
    with pytest.raises(MachineError):
        found.provider("broken")
    common.make_settings()
    assert "broken-0" in capsys.readouterr().err
    lab = Lab("two-node", bench.settings)
    lab.up(load("two-node"))
    assert lab.down()


@pytest.mark.usefixtures("broken")
@pytest.mark.parametrize("text", ["provider: broken\nnodes: {a: {}, b: {provider: netns}}"])
def test_a_lab_that_needs_it_is_told_why(text: str, bench: Bench) -> None:
    topology = load_text(f"name: t\n{text}\n", "t.yaml")
    bench.settings.broken = PROVIDERS.broken()
    with pytest.raises(MachineError) as caught:
        Lab("t", bench.settings).up(topology)
    assert "broken-0" in caught.value.message
