"""docs/extending.md: its provider, role and suite do what the page says, on machines in memory."""

from __future__ import annotations

import json
import os
import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pages import write_files

from testbed import cli
from testbed.claims.load import load as load_catalogue
from testbed.errors import MachineError, TopologyError, UsageError
from testbed.labs.lab import Lab, Settings
from testbed.labs.live import LiveLab
from testbed.labs.state import State
from testbed.labs.status import status
from testbed.nodes.base import NodeSpec, Provider, Setup
from testbed.nodes.fake import Answer, Call, FakeMachine, FakeNode, FakeProvider
from testbed.process import Completed
from testbed.pytest_checks import features
from testbed.registry import CATALOGUES, COMMANDS, EXPORTS, PROVIDERS, ROLES, Registry
from testbed.testing.fakes import FakeStore, declare
from testbed.topology import Overrides, load, load_data, load_text, schema, vary

PAGE = (Path(__file__).parents[2] / "docs" / "extending.md").read_text(encoding="utf-8")
REGISTRIES: tuple[Registry[Any], ...] = (PROVIDERS, ROLES, COMMANDS, EXPORTS)
RACK = """
name: rack-test
provider: rack
networks: {lan: {subnet: 10.168.0.0/24}}
nodes:
  node1: {networks: {lan: 10.168.0.2}}
  node2: {networks: {lan: 10.168.0.3}}
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.source
def test_it_has_each_part_of_a_providers_contract() -> None:
    contract = {name for name in vars(Provider) if not name.startswith("_")}
    assert contract <= set(re.findall(r"\w+", PAGE))


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """The page's blocks of Python as modules, registered as its pyproject.toml says."""
    made = {}
    for name in re.findall(r'^```python title="(\w+)\.py"$', PAGE, re.MULTILINE):
        (text,) = blocks(f'python title="{name}.py"')
        made[name] = ModuleType(name)
        monkeypatch.setitem(sys.modules, name, made[name])
        exec(compile(text, f"{name}.py", "exec"), made[name].__dict__)
    assert PAGE.count("```python") == len(made) + PAGE.count('```python title="web_claims/')
    points = tomllib.loads(blocks("toml")[0])["project"]["entry-points"]
    assert set(points) == {registry.group for registry in (*REGISTRIES, CATALOGUES)}
    for registry in REGISTRIES:
        for name, value in points[registry.group].items():
            declare(monkeypatch, registry, name, value)
            assert registry[name].name == name
    monkeypatch.setattr("testbed.labs.preflight.check", lambda *_: None)
    return made


def page_module(name: str) -> Any:
    """A block of Python of the page, while it is collected: those before it can be imported."""
    with pytest.MonkeyPatch.context() as patch:
        for each in re.findall(r'^```python title="(\w+)\.py"$', PAGE, re.MULTILINE):
            (text,) = blocks(f'python title="{each}.py"')
            made = ModuleType(each)
            patch.setitem(sys.modules, each, made)
            exec(compile(text, f"{each}.py", "exec"), made.__dict__)
            if each == name:
                return made
    raise KeyError(name)


TestRack = page_module("test_rack").TestRack


class TestWeb(page_module("test_role").TestWeb):  # type: ignore[misc]  # it is text of a page
    @pytest.fixture(autouse=True)
    def _declared(self, modules: dict[str, ModuleType]) -> None:
        """The role is registered."""


class Rack:
    """Machines in memory that the page's provider reaches."""

    def __init__(self, module: ModuleType, folder: Path) -> None:
        self.folder = folder
        self.module = module
        self.topology = load_text(RACK, "rack.yaml")
        machine = FakeMachine()
        machine.script(["ip", "-batch", "-"], self.wire)
        machine.script(["sh", "-c", module.RELEASE], self.release)
        self.there = {n: FakeNode(machine, "rack", NodeSpec(n, "")) for n in self.topology.nodes}
        self.inventory = folder / "rack.toml"
        one = blocks("toml")[1]
        self.inventory.write_text("".join(one.replace("node1", name) for name in self.there))

    def wire(self, call: Call) -> Answer:
        assert call.at is not None
        call.at.wiring.connect(self.topology, call.at.name)
        return Answer()

    def release(self, call: Call) -> Answer:
        assert call.at is not None
        for path in list(call.at.files):
            if path.startswith("/run/testbed/"):
                del call.at.files[path]
        return Answer()

    def provider(self, state: str = "state") -> Provider:
        """A provider as another process, or another user's, would have it."""
        setup = Setup(self.folder / state, FakeStore())
        made: Any = self.module.RackProvider(setup, self.inventory)
        made.reach = self.there.__getitem__
        provider: Provider = made
        return provider

    def lab(self) -> Lab:
        settings = Settings(State(self.folder / "state"), FakeStore(), {"rack": self.provider()})
        return Lab("rack-test", settings)


@pytest.fixture
def rack(modules: dict[str, ModuleType], tmp_path: Path) -> Rack:
    return Rack(modules["rack"], tmp_path)


# -- the provider --------------------------------------------------------------------


def test_a_lab_of_its_machines_comes_up_once_and_goes(rack: Rack) -> None:
    assert rack.provider().labs() == []
    first = rack.lab().up(rack.topology)
    assert {done.step.name for done in first.changed} >= {"node node1", "node node2"}
    assert rack.there["node1"].wiring.addresses == {"eth0": ("10.168.0.2/24",)}
    again = rack.lab().up(rack.topology)
    assert not [done for done in again.changed if done.step.name.startswith("node")]
    assert sorted(rack.provider().nodes("rack-test")) == ["node1", "node2"]
    assert rack.lab().down()
    assert (rack.provider().labs(), rack.provider().nodes("rack-test")) == ([], {})
    assert not rack.lab().down()


def test_some_nodes_are_removed_and_others_stay(rack: Rack) -> None:
    provider = rack.provider()
    provider.create("one", [NodeSpec("node1", "d1"), NodeSpec("node2", "d2")])
    assert {n.name: n.digest for n in rack.provider().nodes("one").values()} == {
        "node1": "d1",
        "node2": "d2",
    }
    provider.destroy("one", ["node1", "no-such-node"])
    assert list(rack.provider().nodes("one")) == ["node2"]
    provider.destroy("another")
    assert rack.provider().labs() == ["one"]


def test_labs_of_another_state_folder_are_not_its_own(rack: Rack) -> None:
    rack.provider().create("one", [NodeSpec("node1", "d1")])
    assert rack.provider("elsewhere").labs() == []
    rack.provider("elsewhere").destroy("one")
    assert rack.provider().labs() == ["one"]


def test_what_cannot_be_created_is_refused_before(rack: Rack) -> None:
    provider = rack.provider()
    with pytest.raises(MachineError):
        provider.prepare("one", [NodeSpec("node3", "d")])
    provider.create("one", [NodeSpec("node1", "d")])
    provider.prepare("one", [NodeSpec("node1", "d")])
    with pytest.raises(MachineError):
        provider.prepare("two", [NodeSpec("node1", "d")])


def test_doctor_hears_of_the_inventory(rack: Rack) -> None:
    (found,) = rack.provider().probe()
    assert found.ok
    rack.inventory.unlink()
    (found,) = rack.provider().probe()
    assert (found.ok, found.needed_by) == (False, ("rack",))
    assert found.fix
    assert rack.provider().labs() == []


def test_the_machine_is_reached_over_ssh(modules: dict[str, ModuleType], rack: Rack) -> None:
    provider = modules["rack"].RackProvider(Setup(rack.folder, FakeStore()), rack.inventory)
    node = provider.reach("node1")
    assert type(node).__name__ == "SshNode"
    assert node.name == "node1"


def test_the_command_tells_which_machines_are_free(
    rack: Rack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    provider = rack.provider()
    monkeypatch.setattr(rack.module.RackProvider, "of", lambda _: provider)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    provider.create("one", [NodeSpec("node1", "d1")])
    assert cli.run(["rack"]) == 0
    assert capsys.readouterr().out == "node1: one\nnode2: free\n"


# -- the export format ------------------------------------------------------------------------


def test_a_container_is_a_node(
    modules: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = [{"State": {"Pid": os.getpid()}, "Config": {"Env": ["PATH=/bin", "A=b=c"]}}]
    asked: list[list[str]] = []

    def inspect(argv: list[str]) -> Completed:
        asked.append(argv)
        return Completed(tuple(argv), 0, json.dumps(about).encode(), b"")

    begun: list[Any] = []
    monkeypatch.setattr(modules["docker_node"], "run", inspect)
    monkeypatch.setattr(modules["docker_node"], "Duplex", begun.append)
    node = modules["docker_node"].node_of("web", Setup(tmp_path, FakeStore()))
    assert asked[0][-1] == "web"
    assert node.alive()
    node.channel()
    assert begun[0][1:] == [str(os.getpid())]


@pytest.mark.usefixtures("modules")
def test_the_format_is_one_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["export", "two-node", "--to", "hosts"]) == 0
    said = capsys.readouterr()
    assert said.out == "10.168.0.2 node1\n10.168.0.3 node2\n10.168.0.1 outside\n"
    assert "flannel" in said.err


# -- the role and the suite ----------------------------------------------------------


@pytest.fixture
def hello(modules: dict[str, ModuleType], tmp_path: Path) -> tuple[Lab, FakeProvider]:
    del modules
    provider = FakeProvider(name="netns")

    def page(_: Call) -> Answer:
        return Answer(out=provider.machine.nodes["hello", "server"].get("/var/lib/web/index.html"))

    provider.script(["curl"], page)
    settings = Settings(State(tmp_path), FakeStore(), {"netns": provider})
    return Lab("hello", settings), provider


def test_the_role_starts_its_service_once(hello: tuple[Lab, FakeProvider]) -> None:
    lab, provider = hello
    topology = load_text(blocks("yaml")[0], "hello.yaml")
    changed = {done.step.name for done in lab.up(topology).changed}
    assert "web server" in changed
    assert lab.node("server").services()["web"].state == "ready"
    assert not lab.up(topology).changed
    provider.machine.nodes["hello", "server"].end("web", 1)
    assert [done.step.name for done in lab.up(topology).changed] == ["web server"]


def test_the_roles_section_is_part_of_schema_record_and_options(
    modules: dict[str, ModuleType],
) -> None:
    section = modules["web"].WebSection
    topology = load_text(blocks("yaml")[0], "hello.yaml")
    assert section.of(topology).port == 8080
    assert load_data(topology.to_dict(), "record") == topology
    assert schema()["properties"]["web"]["properties"]["port"]["default"] == 80
    varied = vary(topology, Overrides(web_port=81))
    assert section.of(varied).port == 81
    server, client = (topology.node_digest(n) != varied.node_digest(n) for n in topology.nodes)
    assert (server, client) == (True, False)
    assert {"web"} == features(topology) & modules["web"].Web.needs.keys()
    with pytest.raises(UsageError):
        load("two-node", Overrides(web_port=81))


@pytest.mark.usefixtures("modules")
def test_the_roles_option_is_one_of_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "hello.yaml"
    file.write_text(blocks("yaml")[0])
    assert cli.run(["plan", str(file), "--web-port", "81"]) == 0
    assert "page on 10.168.0.2:81" in capsys.readouterr().out
    assert cli.run(["plan", str(file), "--web-port", "0"]) == 2
    assert cli.run(["up", "--lab", "hello", "--web-port", "81"]) == 2
    assert cli.run(["plan", "--help"]) == 0
    assert "--web-port PORT" in capsys.readouterr().out


@pytest.mark.usefixtures("modules")
def test_every_problem_of_the_roles_keys_is_reported_at_its_place() -> None:
    text = """name: t
networks: {lan: {subnet: 10.168.0.0/24}}
nodes:
  a: {networks: {lan: 10.168.0.2}, roles: [web, docker]}
web: {port: 8080}
containers:
  one: {node: a, publish: ["8080:80"]}
"""
    with pytest.raises(TopologyError) as taken:
        load_text(text, "t.yaml")
    with pytest.raises(TopologyError) as wrong:
        load_text(text.replace("port: 8080", "prot: 1, port: 0, text: []"), "t.yaml")
    assert [(p.line, p.column) for p in taken.value.problems] == [(7, 28)]
    assert all(problem.hint for problem in taken.value.problems)
    assert [(p.line, p.column) for p in wrong.value.problems] == [(5, 7), (5, 22), (5, 31)]


def test_the_roles_part_is_in_the_status(hello: tuple[Lab, FakeProvider]) -> None:
    lab, provider = hello
    provider.script(["test", "-s", "/var/lib/web/index.html"], Answer())
    lab.up(load_text(blocks("yaml")[0], "hello.yaml"))
    found = {node.name: node for node in status(lab.context()).nodes}
    assert [part.ok for part in found["server"].more["page"]] == [True]
    assert found["client"].more == {}


def test_the_suite_passes_on_its_lab(
    hello: tuple[Lab, FakeProvider], modules: dict[str, ModuleType]
) -> None:
    lab, _ = hello
    lab.up(load_text(blocks("yaml")[0], "hello.yaml"))
    live = LiveLab(lab.context())
    suite: dict[str, Callable[[LiveLab], None]] = vars(modules["test_web"])
    tests = {name: test for name, test in suite.items() if name.startswith("test_")}
    needs = [name for name, test in tests.items() if hasattr(test, "pytestmark")]
    assert (len(tests), needs) == (3, ["test_only_on_labs_with_docker"])
    for name in set(tests) - set(needs):
        tests[name](live)


# -- the catalogue -------------------------------------------------------------------


def test_the_catalogue_names_its_lab_and_can_be_checked(
    modules: dict[str, ModuleType], tmp_path: Path
) -> None:
    """The role's own feature is a word that a claim can need."""
    write_files("extending.md", tmp_path)
    (points,) = [tomllib.loads(blocks("toml")[0])["project"]["entry-points"]]
    (folder,) = points[CATALOGUES.group].values()
    labs = tmp_path / folder / "labs"
    labs.mkdir()
    (labs / "hello.yaml").write_text(blocks("yaml")[0])
    found = load_catalogue(tmp_path / folder)
    assert [lab.load().name for lab in found.labs] == ["all-hello"]
    (claim,) = found.claims.values()
    assert claim.needs == ("web",)
    assert [one.claims for one in found.sabotages] == [(claim.id,)]
