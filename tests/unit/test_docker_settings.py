"""Docker's settings of a lab and of its nodes: engines, packet filters, daemon.json."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from topology_texts import DOCKER, FLANNEL, LAN, bad, problems

from testbed.artifacts import release
from testbed.artifacts.engines import BUILT
from testbed.artifacts.inventory import INVENTORY
from testbed.claims.observation import Observation
from testbed.errors import ServiceError, StepsFailed, TopologyError, UsageError
from testbed.labs import offers, plan
from testbed.labs.lab import Lab, versions_of
from testbed.labs.live import LiveLab
from testbed.labs.preflight import kernel_features, programs
from testbed.nodes.engine import CONFIG, parts_of
from testbed.nodes.fake import Answer, FakeNode
from testbed.registry import ROLES
from testbed.roles.docker import daemon, validate
from testbed.roles.docker.checks import OF_OVERLAY
from testbed.roles.docker.daemon import WRITTEN
from testbed.roles.docker.daemon_json import OWNED, remapped
from testbed.roles.docker.section import ENGINE_ALIASES, daemon_of, engine_of, firewall_of
from testbed.roles.docker.swarm import MEMBER
from testbed.suites import helpers
from testbed.testing.fakes import FakeStore
from testbed.topology import Overrides, load, load_data, load_text, vary
from testbed.topology.schema import schema
from testbed.topology.shapes import merged

if TYPE_CHECKING:
    from testbed.nodes.base import Service
    from testbed.testing.fakes import Bench
    from testbed.topology import Topology

TWO = (
    LAN + "nodes:\n"
    "  old: {networks: {lan: 10.168.0.2}, roles: [docker]}\n"
    "  new: {networks: {lan: 10.168.0.3}, roles: [docker], "
    "docker: {engine: 29, firewall: nftables}}\n"
)
BOTH = load_text(TWO, "t.yaml")


def test_a_node_has_its_own_engine_and_packet_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release, "this", lambda: release.RELEASES["12"])
    assert [engine_of(BOTH, name) for name in BOTH.nodes] == ["20.10", "29"]
    assert [firewall_of(BOTH, name) for name in BOTH.nodes] == ["iptables", "nftables"]
    assert load_data(BOTH.to_dict(), "record") == BOTH
    assert ROLES["docker"].summary(BOTH) == "20.10 and 29 with nftables"


def test_a_setting_of_a_node_is_that_of_the_lab_for_its_digest() -> None:
    """A node is the same with a key of its own and with the same key of the lab."""
    of_lab = load_text(
        TWO.replace(", docker: {engine: 29, firewall: nftables}", "")
        + "docker: {engine: 29, firewall: nftables}\n",
        "t.yaml",
    )
    assert of_lab.node_digest("new") == BOTH.node_digest("new")
    assert of_lab.node_digest("old") != BOTH.node_digest("old")


def test_an_option_is_for_nodes_without_their_own_setting() -> None:
    changed = vary(BOTH, Overrides(firewall="iptables-nft"))
    assert [firewall_of(changed, name) for name in BOTH.nodes] == ["iptables-nft", "nftables"]
    alone = load_text(DOCKER.replace("[docker]", "[docker], docker: {engine: 29}"), "t.yaml")
    with pytest.raises(UsageError, match="no effect"):
        vary(alone, Overrides(docker="20.10"))


@pytest.mark.parametrize(
    ("node", "lab"),
    [
        ("{firewall: §nftables}", "{}"),
        ("{engine: §20.10}", "{engine: 29, firewall: nftables}"),
        ("{firewall: nftables, engine: 29}", "{}"),
        ("{engine: 29}", "{firewall: iptables-nft}"),
    ],
)
def test_nftables_needs_an_engine_that_has_it_on_each_node(node: str, lab: str) -> None:
    text = DOCKER.replace("[docker]", f"[docker], docker: {node}") + f"docker: {lab}\n"
    expected = bad(text, "nftables")
    assert [(p.line, p.column) for p in problems(expected.plain)] == expected.places


def test_a_node_without_the_role_has_no_settings_of_it() -> None:
    text = LAN + "nodes: {n1: {networks: {lan: 10.168.0.2}, docker: {engine: 29}}}\n"
    (problem,) = problems(text)
    assert "role docker" in problem.wanted


def test_the_programs_of_a_node_are_those_of_its_engine() -> None:
    parts = {
        node.name: {offer.name: of for offer, of in offers.offers_on(BOTH, node).values()}
        for node in BOTH.nodes.values()
    }
    assert parts["old"]["docker"][0] == "docker"
    assert parts["new"]["docker"][0] == "docker-29"


def test_the_versions_that_are_built_are_names_of_their_engines() -> None:
    for engine in BUILT:
        version = (INVENTORY.parts[f"docker-{engine}"].version() or "").partition("+")[0]
        whole = [version, version.rpartition(".")[0]]
        assert [ENGINE_ALIASES.get(one) for one in whole] == [engine, engine]


@pytest.mark.parametrize(
    ("text", "engine"),
    [
        *((text, "28") for text in ("28", '"28"', "28.5", '"28.5"', "28.5.2")),
        *((text, "24") for text in ("24", '"24"', "24.0", "24.0.2")),
        *((text, "26") for text in ("26", "26.1", "26.1.5")),
    ],
)
def test_an_engine_by_its_version(text: str, engine: str) -> None:
    found = load_text(f"{DOCKER}docker: {{engine: {text}}}\n", "t.yaml")
    assert engine_of(found, "n1") == engine
    assert parts_of(engine)[0] == f"docker-{engine}"
    assert load_data(found.to_dict(), "t.yaml") == found


@pytest.mark.parametrize("text", ["23", "25", '"26.0"', "28.4", "30"])
def test_a_version_that_is_not_here_is_refused_with_those_that_are(text: str) -> None:
    (problem,) = problems(f"{DOCKER}docker: {{engine: {text}}}\n")
    assert "28" in problem.wanted
    assert text.strip('"') in problem.seen
    assert "folder" in problem.hint


def test_nftables_needs_a_later_engine_than_28() -> None:
    (problem,) = problems(f"{DOCKER}docker: {{engine: 28, firewall: nftables}}\n")
    assert "engine 28" in problem.wanted
    text = "containers: {web: {node: n1, networks: {front: {interface_name: web0}}}}\n"
    load_text(f"{DOCKER}docker: {{engine: 28, networks: {{front: }}}}\n{text}", "t.yaml")


def test_a_lab_needs_what_any_of_its_nodes_needs() -> None:
    assert "nf_tables" in kernel_features(BOTH)
    assert {"nft", "iptables"} <= set(programs(BOTH))


def test_reports_say_that_the_nodes_differ() -> None:
    described = ROLES["docker"].described
    assert [*described({"docker": "29.1", "firewall": "nftables"})] == ["Docker 29.1", "nftables"]
    words = [*described({"docker": "mixed", "firewall": "mixed"})]
    assert len(words) == 2
    assert all("several" in one for one in words)
    assert [*described({})] == []


def test_each_node_gets_its_own_engine(bench: Bench) -> None:
    bench.provider.script(["iptables", "--version"], Answer(out=b"iptables v1.8.9 (nf_tables)"))
    lab = Lab(BOTH.name, bench.settings)
    lab.up(BOTH)
    versions = versions_of(bench.store, BOTH)
    assert {"docker", "docker-29"} <= set(versions)
    config = {
        name: json.loads(lab.node(name).get("/etc/docker/daemon.json")) for name in BOTH.nodes
    }
    assert "firewall-backend" not in config["old"]
    assert config["new"]["firewall-backend"] == "nftables"
    live = LiveLab(lab.context())
    assert live.facts == {"provider": "netns", "docker": "mixed", "firewall": "mixed"}
    assert daemon.facts_of(lab.context(), "old")["firewall"] == "iptables-nft"
    assert daemon.facts_of(lab.context(), "new")["firewall"] == "nftables"
    # A suite reads the rules of each node where its own packet filter has them.
    bench.provider.script(["iptables-save"], Answer(out=b"*nat\nCOMMIT\n"))
    bench.provider.script(["nft", "-j", "list"], Answer(out=b'{"nftables": []}'))
    for name, tables in (("old", 0), ("new", 1)):
        helpers.docker_rules(live, Observation(), lab.node(name), "nat")
        asked = [words for words in bench.provider.asked("run", name) if words[:2] == ("nft", "-j")]
        assert len(asked) == tables


# -- daemon.json ---------------------------------------------------------------------

SOME = (
    LAN + "nodes:\n"
    "  a: {networks: {lan: 10.168.0.2}, roles: [docker], "
    "docker: {daemon: {icc: null, mtu: 1400}}}\n"
    "  b: {networks: {lan: 10.168.0.3}, roles: [docker]}\n"
)


def with_daemon(text: str, start: str = DOCKER) -> Topology:
    return load_text(f"{start}docker: {{daemon: {text}}}\n", "t.yaml")


def test_a_node_adds_to_the_labs_keys_and_takes_away() -> None:
    topology = with_daemon("{icc: false, labels: [x=1], features: {buildkit: true}}", SOME)
    assert daemon_of(topology, "a") == {
        "mtu": 1400, "labels": ["x=1"], "features": {"buildkit": True}
    }  # fmt: skip
    assert daemon_of(topology, "b")["icc"] is False
    assert load_data(topology.to_dict(), "record") == topology
    # Of a mapping each key counts alone: images stay where testbed looks for them.
    config = daemon.daemon_config(topology, "a", (29, 0, 0))
    assert config["features"] == {"containerd-snapshotter": False, "buildkit": True}


def test_merged_is_as_deep_as_the_daemons_own_mappings() -> None:
    assert merged({"a": {"x": 1}, "b": 1}, {"a": {"y": 2}, "b": {"z": 3}, "c": None}) == {
        "a": {"x": 1, "y": 2}, "b": {"z": 3}
    }  # fmt: skip
    assert merged({"a": 1}, {"a": None}, {"b": False}) == {"b": False}


@pytest.mark.parametrize("name", OWNED)
@pytest.mark.parametrize("of_node", [False, True])
def test_a_key_that_testbed_sets_is_refused_by_name(name: str, *, of_node: bool) -> None:
    text = DOCKER + f"docker: {{daemon: {{§{name}: x}}}}\n"
    if of_node:
        text = DOCKER.replace(
            "[docker]", f"[docker], docker: {{daemon: {{icc: true, §{name}: x}}}}"
        )
    expected = bad(text, name)
    (problem,) = problems(expected.plain)
    assert [(problem.line, problem.column)] == expected.places
    assert name in problem.seen
    assert problem.hint == OWNED[name]
    assert not Draft202012Validator(schema()).is_valid(yaml.safe_load(expected.plain))


@pytest.mark.parametrize(
    "text",
    [
        "{labels: [§no]}",
        "{labels: [§1:30]}",
        "{shutdown-timeout: §.inf}",
        "{features: §{containerd-snapshotter: true}}",
        "§[icc]",
        "§none",
    ],
)
def test_other_values_than_those_of_json_are_refused(text: str) -> None:
    expected = bad(DOCKER + f"docker: {{daemon: {text}}}\n", "")
    assert [(p.line, p.column) for p in problems(expected.plain)] == expected.places


def test_any_value_of_json_reaches_the_file() -> None:
    given = {"a": [1, 2.5, "x", True, None, {"b": [{}]}], "c": {"d": "e"}}
    assert daemon_of(with_daemon(json.dumps(given)), "n1") == given


@pytest.mark.parametrize("name", OF_OVERLAY)
def test_a_flannel_nodes_keys_of_the_overlay_are_refused(name: str) -> None:
    lab = problems(FLANNEL + f"docker: {{daemon: {{{name}: 1}}}}\n")
    assert [(p.line, p.column, p.hint) for p in lab] == [(8, 19, OF_OVERLAY[name])] * 2
    plain = LAN + "nodes: {n1: {networks: {lan: 10.168.0.2}, roles: [docker]}}\n"
    assert not problems(plain + f"docker: {{daemon: {{{name}: 1}}}}\n")
    text = FLANNEL.replace("roles: [docker, flannel]", "roles: [docker, flannel], docker: "
                           f"{{daemon: {{§{name}: 1}}}}")  # fmt: skip
    expected = bad(text, name)
    assert [(p.line, p.column) for p in problems(expected.plain)] == expected.places


@pytest.mark.parametrize("place", ["lab", "node"])
def test_a_key_of_daemon_json_in_the_section_itself_gets_its_place_as_a_hint(place: str) -> None:
    text = DOCKER + "docker: {§icc: false, §engin: 29}\n"
    if place == "node":
        text = DOCKER.replace("[docker]", "[docker], docker: {§icc: false, §engin: 29}")
    expected = bad(text, "")
    first, second = problems(expected.plain)
    assert [(p.line, p.column) for p in (first, second)] == expected.places
    assert "daemon: {icc" in first.hint
    assert "engine" in second.hint


def test_daemon_json_is_no_file_of_a_docker_node() -> None:
    files = "files: {§/etc/docker/daemon.json: {content: '{}'}}"
    expected = bad(DOCKER.replace("[docker]", f"[docker], {files}"), "daemon.json")
    (problem,) = problems(expected.plain)
    assert [(problem.line, problem.column)] == expected.places
    assert "daemon" in problem.hint
    plain = LAN + "nodes: {n1: {files: {/etc/docker/daemon.json: {content: '{}'}}}}\n"
    assert not problems(plain)


def test_a_bridge_of_ones_own_is_instead_of_docker0() -> None:
    config = daemon.daemon_config(with_daemon("{bridge: none}"), "n1", (20, 10, 24))
    assert config["bridge"] == "none"
    assert "bip" not in config


def test_no_talk_between_containers_needs_the_kernels_filter_for_bridges() -> None:
    assert "br_netfilter" in kernel_features(with_daemon("{icc: false}"))
    assert "br_netfilter" not in kernel_features(with_daemon("{icc: true}"))


def test_the_plan_names_the_keys() -> None:
    (step,) = (s for s in plan.make(with_daemon("{icc: false}")).steps.values()
               if s.name == "docker n1")  # fmt: skip
    assert "icc" in step.about


def change(bench: Bench, text: str) -> tuple[str, dict[str, Any]]:
    """Bring the lab up with these keys; return the step's words and daemon.json."""
    topology = with_daemon(text)
    lab = Lab(topology.name, bench.settings)
    done = {one.step.name: one for one in lab.up(topology, replace=True).steps}["docker n1"]
    return done.words, json.loads(lab.node("n1").get(CONFIG))


def test_other_settings_restart_the_daemon_alone_on_its_node(bench: Bench) -> None:
    change(bench, "{}")
    before = {name: one.pid for name, one in bench.provider.nodes("t")["n1"].services().items()}
    assert with_daemon("{}").node_digest("n1") == with_daemon("{icc: false}").node_digest("n1")
    words, config = change(bench, "{icc: false}")
    assert "icc" in words
    assert "restarted" in words
    assert config["icc"] is False
    after = {name: one.pid for name, one in bench.provider.nodes("t")["n1"].services().items()}
    assert before["containerd"] == after["containerd"]
    assert before["dockerd"] != after["dockerd"]
    words, config = change(bench, "{}")
    assert "restarted" in words
    assert "icc" not in config


def test_settings_that_the_daemon_can_read_again_do_not_restart_it(bench: Bench) -> None:
    bench.provider.script(["kill", "-HUP"], Answer())
    change(bench, "{icc: false}")
    before = bench.provider.nodes("t")["n1"].services()
    words, config = change(bench, "{icc: false, live-restore: true}")
    assert "reloaded" in words
    assert config["live-restore"] is True
    pid = str(before["dockerd"].pid)
    assert ("kill", "-HUP", pid) in bench.provider.asked("run", "n1")
    assert bench.provider.nodes("t")["n1"].services() == before
    # A key that is gone keeps its value until a restart.
    assert "restarted" in change(bench, "{icc: false}")[0]


def test_what_somebody_wrote_into_the_file_stays_while_the_topology_is_the_same(
    bench: Bench,
) -> None:
    change(bench, "{icc: false}")
    node = bench.provider.nodes("t")["n1"]
    node.put(b'{"icc": true}', CONFIG)
    words, config = change(bench, "{icc: false}")
    assert "daemon.json" not in words
    assert config == {"icc": True}
    assert change(bench, "{icc: false, ip-forward: false}")[1]["icc"] is False


def test_a_daemon_without_settings_costs_no_mark(bench: Bench) -> None:
    change(bench, "{}")
    asked = [call.words for call in bench.provider.calls if call.what in ("get", "put")]
    assert not [path for (path, *_) in asked if path.endswith((WRITTEN, MEMBER)) and path != CONFIG]
    node = bench.provider.nodes("t")["n1"]
    node.put(b'{"icc": true}', CONFIG)
    assert change(bench, "{}")[1] == {"icc": True}
    assert change(bench, "{ip-forward: false}")[1]["ip-forward"] is False
    assert "restarted" in change(bench, "{}")[0]


def test_a_level_of_the_log_is_said_once(bench: Bench, started: list[tuple[str, Service]]) -> None:
    change(bench, "{}")
    change(bench, "{log-level: debug}")
    argv = [one.argv for _, one in started if one.name == "dockerd"]
    assert "--log-level=warn" in argv[0]
    assert not any(word.startswith("--log-level") for word in argv[-1])


def test_user_namespaces_have_their_user_and_ids_on_the_node(bench: Bench) -> None:
    node_files = {"/etc/passwd": b"root:x:0:0::/root:/bin/sh\n", "/etc/subuid": b"me:1:2"}
    topology = with_daemon("{userns-remap: default}")
    lab = Lab(topology.name, bench.settings)
    lab.up(load_text(DOCKER, "t.yaml"))
    node = bench.provider.nodes("t")["n1"]
    for path, text in node_files.items():
        node.put(text, path)
    bench.provider.script(["getent", "passwd"], Answer(status=2))
    bench.provider.script(["getent", "group"], Answer(out=b"dockremap:x:998:\n"))
    lab.up(topology, replace=True)
    assert node.get("/etc/passwd").decode().splitlines()[1].startswith("dockremap:x:998:998:")
    assert node.get("/etc/subuid") == b"me:1:2\ndockremap:100000:65536\n"
    assert node.get("/etc/subgid") == b"dockremap:100000:65536\n"
    bench.provider.script(["getent", "passwd"], Answer(out=b"dockremap:x:998:998:"))
    before = node.get("/etc/subuid"), node.get("/etc/passwd")
    lab.up(topology, replace=True)
    assert (node.get("/etc/subuid"), node.get("/etc/passwd")) == before


@pytest.mark.parametrize(
    ("value", "user"),
    [("default", "dockremap"), ("me", "me"), ("me:us", "me"), ("", ""), (None, "")],
)
def test_the_user_of_remapped_containers(value: str | None, user: str) -> None:
    assert remapped({"userns-remap": value}) == user


# -- validated by the engine -----------------------------------------------------------


def engine_that_says(folder: Path, words: str, status: int) -> Path:
    """Return a dockerd that ends with these words, and keeps the file that it was given."""
    path = folder / "dockerd"
    path.write_text(
        "#!/bin/sh\n"
        f'cp "$3" {shlex.quote(str(folder))}/seen.json\n'
        f'echo {shlex.quote(words)} | sed "s@FILE@$3@" >&2\n'
        f"exit {status}\n"
    )
    path.chmod(0o755)
    return path


BEGIN = "unable to configure the Docker daemon with file FILE: "


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (f"{BEGIN}the following directives don't match any configuration option: icd", "icd"),
        (
            f"{BEGIN}invalid JSON: cannot unmarshal string into field Config.mtu of type int",
            "mtu",
        ),
        (f"{BEGIN}something is wrong", "daemon"),
    ],
)
def test_what_the_engine_refuses_is_shown_with_its_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: str, name: str
) -> None:
    text = DOCKER.replace("[docker]", "[docker], docker: {daemon: {mtu: x}}")
    file = tmp_path / "t.yaml"
    file.write_text(f"{text}docker: {{daemon: {{\n    icd: 1, userns-remap: default}}}}\n")
    path = engine_that_says(tmp_path, words, 1)
    monkeypatch.setattr(validate, "program", lambda *_: path)
    with pytest.raises(TopologyError) as caught:
        validate.refuse_invalid(FakeStore(), load(file))
    (problem,) = caught.value.problems
    lines = file.read_text().splitlines()
    place = next((i, line.index(f"{name}:")) for i, line in enumerate(lines) if f"{name}:" in line)
    assert (problem.line - 1, problem.column - 1) == place
    assert "FILE" not in problem.seen
    assert str(tmp_path) not in problem.seen
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert seen["icd"] == 1
    # The engine would add the user to this machine.
    assert "userns-remap" not in seen


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ("configuration OK", 0),
        ("Status: unknown flag: --validate", 1),
        ("cannot open shared object file", 127),
    ],
)
def test_an_engine_that_cannot_validate_refuses_when_it_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: str, status: int
) -> None:
    path = engine_that_says(tmp_path, words, status)
    monkeypatch.setattr(validate, "program", lambda *_: path)
    validate.refuse_invalid(FakeStore(), with_daemon("{icd: 1}"))
    monkeypatch.setattr(validate, "program", lambda *_: tmp_path / "nothing")
    validate.refuse_invalid(FakeStore(), with_daemon("{icd: 1}"))


def test_a_lab_without_such_settings_asks_no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validate, "refuse_invalid", lambda *_: pytest.fail("asked"))
    ROLES["docker"].fetch(FakeStore(), load("docker-single"))


def test_a_daemon_that_does_not_start_points_at_its_settings(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(node: FakeNode, service: Service, *, timeout: float = 60) -> None:
        if service.name == "dockerd":
            log = "unable to configure: invalid option: icd"
            raise ServiceError("dockerd", node.name, "died", log)

    monkeypatch.setattr(FakeNode, "start", start)
    topology = with_daemon("{icd: 1}")
    with pytest.raises(StepsFailed) as caught:
        Lab(topology.name, bench.settings).up(topology)
    ((_, error),) = caught.value.failures
    assert isinstance(error, ServiceError)
    assert "docker.daemon.icd" in str(error.hint)
