"""Variables, anchors, extension keys and included files of a topology."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from test_topology_bad import TABLE
from test_topology_properties import QUICK, loaded, topologies
from test_topology_schema import SEEN

import testbed
from testbed import cli
from testbed.cli import common
from testbed.errors import NoSuchLab, Problem, TopologyError, UsageError
from testbed.exports.base import dump
from testbed.labs import origin
from testbed.labs.lab import Lab
from testbed.labs.run import Watch
from testbed.testing.fakes import Bench
from testbed.topology import load, load_data, load_text, names, source
from testbed.topology.build import build
from testbed.topology.include import whole
from testbed.topology.load import places
from testbed.topology.schema import as_written, schema
from testbed.topology.tree import Mapping, Problems, Tree, value_at
from testbed.topology.variables import Unfilled, Variables, escaped

OK = "nodes: {a: {}}\n"


def read(text: str, **variables: str) -> dict[str, Any]:
    return load_text(text, "t.yaml", variables).to_dict()


def problems(text: str) -> tuple[Problem, ...]:
    with pytest.raises(TopologyError) as caught:
        load_text(text, "t.yaml")
    return caught.value.problems


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    bench = Bench(tmp_path / "state")
    bench.install(monkeypatch)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(common, "make_settings", lambda **_: bench.settings)
    return bench


# Variables


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("a", "a"),
        ("${V}", "5"),
        ("$V", "5"),
        ("x${V}y$V", "x5y5"),
        ("$V.1", "5.1"),
        ("${V:-d}${V-d}", "55"),
        ("${E:-d}|${E-d}", "d|"),
        ("${U:-d}|${U-d}", "d|d"),
        ("${U:-}|${U-}", "|"),
        ("${V:+r}|${E:+r}|${E+r}|${U+r}", "r||r|"),
        ("${V?m}${V:?m}|${E?m}", "55|"),
        ("$$", "$"),
        ("$${V}$$V", "${V}$V"),
        ("$$$V", "$5"),
        ("${U:-$$}", "$"),
        ("${U:-${V}}|${U:-${W:-${V}}}", "5|5"),
        ("${V:-${U}}|${V:-${U?m}}|${V?${U}}", "5|5|5"),  # what is not needed needs no value
        ("${U:+${W}}", ""),
        ('${U:-{"a": {}}}', '{"a": {}}'),
        ("${U:-a:-b}", "a:-b"),
        ("}{", "}{"),
        ("${V}}", "5}"),
        ("${U:-äß 容器\n}", "äß 容器\n"),
        ("${_}${V_1}", "__"),
    ],
)
def test_filling_variables(text: str, filled: str) -> None:
    variables = Variables({"V": "5", "E": ""}, {"V": "6", "_": "_", "V_1": "_"})
    assert variables.fill(text)[0] == filled


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("${U}", "variable U"),
        ("$U", "variable U"),
        ("${U?the image's tag}", "the image's tag"),
        ("${E:?}", "an empty one"),
        ("${U:?${V}}", "(5)"),
        ("${U?a\nb}", r"a\nb"),
        ("${U:-${W}}", "variable W"),
        ("$", "$$ for a dollar"),
        ("a $1", "$$ for a dollar"),
        ("$(date)", "$$ for a dollar"),
        ("${}", "$$ for a dollar"),
        ("${1}", "$$ for a dollar"),
        ("${V", "$$ for a dollar"),
        ("${V:-", "add a }"),
        ("${V:-{}", "add a }"),
        ("${V/a/b}", "$$ for a dollar"),
        ("${V:x}", "$$ for a dollar"),
        ("${V x}", "$$ for a dollar"),
        ("${U:-" * 30 + "}" * 30, "$$ for a dollar"),
        ("${U:-" * 100_000, "$$ for a dollar"),
    ],
)
def test_what_cannot_be_filled(text: str, words: str) -> None:
    with pytest.raises(Unfilled) as caught:
        Variables({"V": "5", "E": ""}, {}).fill(text)
    said = " ".join(map(str, caught.value.args))
    assert words in said
    assert "\n" not in said


@QUICK
@given(st.text(), st.text())
def test_a_value_is_filled_in_as_it_is(text: str, value: str) -> None:
    variables = Variables({"V": value}, {})
    assert variables.fill(text.replace("$", "$$") + "${V}")[0] == text + value
    assert variables.used == {"V": value}


def test_a_value_is_no_yaml() -> None:
    evil = "x\nnodes: {b: {}}\n# {a: [&b, *c, !d"
    found = read(f"name: t\ndescription: $V\n{OK}", V=evil)
    assert (found["description"], [*found["nodes"]]) == (evil, ["a"])
    found = read(f'name: t\ndescription: "$V"\n{OK}', V='"')
    assert found["description"] == '"'


@pytest.mark.parametrize("quote", ["", '"', "'"])
def test_a_value_is_a_number_or_text_as_the_key_wants_it(quote: str) -> None:
    text = """
        name: {0}$N{0}
        networks: {{lan: {{subnet: 10.0.0.0/24}}}}
        nodes:
          a:
            networks: {{lan: 10.0.0.2}}
            cpus: {0}${{C}}{0}
            memory: {0}$M{0}
            gateway: {0}$G{0}
    """
    found = read(text.format(quote), N="5", C="0.5", M="67108864", G="true")
    assert found["name"] == "5"
    node = {"networks": {"lan": "10.0.0.2"}, "cpus": 0.5, "memory": 67108864, "gateway": True}
    assert found["nodes"]["a"] == node
    assert read(f"name: t\ndescription: $V\n{OK}", V="no")["description"] == "no"
    assert "description" not in read(f"name: t\ndescription: $V\n{OK}", V="")


def test_a_bad_value_is_reported_with_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CPUS", "many")
    (problem,) = problems("name: t\nnodes:\n  a: {cpus: '${CPUS}'}\n")
    assert (problem.line, problem.column) == (3, 13)
    assert "many" in problem.seen
    assert "${CPUS}" in problem.seen


def test_all_variables_without_a_value_are_reported_at_their_places() -> None:
    found = problems("name: ${UNSET_A}\nnodes:\n  a: {cpus: '${UNSET_B:?of the node}'}\n")
    assert [(one.line, one.column) for one in found] == [(1, 7), (3, 13)]
    assert all("--set UNSET_" in one.hint for one in found)
    assert "of the node" in found[1].wanted


def test_a_key_is_no_variable() -> None:
    (problem,) = problems("name: t\nnodes: {$V: {}}\n")
    assert "'$V'" in problem.seen


def test_given_variables_come_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("V", "environment")
    assert read(f"name: $V\n{OK}")["name"] == "environment"
    assert read(f"name: $V\n{OK}", V="given")["name"] == "given"
    topology = load_text(f"name: ${{V}}-${{W:-w}}\ndescription: $$X\n{OK}", "t.yaml", {"V": "x"})
    assert topology.variables == {"V": "x", "W": "w"}
    assert testbed.load(topology, name="y").variables == {"V": "x", "W": "w"}


def test_a_given_variable_must_be_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(f"name: ${{TAG:-x}}${{U+$V}}\n{OK}")
    assert testbed.load(path, variables={"TAG": "t", "V": ""}).name == "t"
    with pytest.raises(UsageError, match="did you mean 'TAG'"):
        testbed.load(path, variables={"TAGG": "t"})
    with pytest.raises(UsageError, match="no variable TAG"):
        testbed.load("two-node", variables={"TAG": "t"})
    with pytest.raises(UsageError, match="is loaded"):
        testbed.load(testbed.load(path), variables={"TAG": "t"})


def test_a_record_has_no_variables() -> None:
    data = {"name": "t", "description": "${V} $(x)", "nodes": {"a": {}}}
    assert load_data(data, "record").description == "${V} $(x)"
    assert loaded(data).description == "${V} $(x)"


def test_large_values_are_limited() -> None:
    text = f"name: t\nnodes: {{a: {{roles: [{'$V, ' * 100}]}}}}\n"
    (problem,) = [one for one in caught_of(text, V="x" * 100_000) if "MiB" in one.wanted]
    assert problem.line == 2


def caught_of(text: str, **variables: str) -> tuple[Problem, ...]:
    with pytest.raises(TopologyError) as caught:
        load_text(text, "t.yaml", variables)
    return caught.value.problems


# Anchors, merge keys, and keys that are ignored


def test_anchors_and_merge_keys() -> None:
    text = """
        name: t
        x-limits: &limits {cpus: 1, memory: 64M}
        x-more: &more {cpus: 2, roles: [namespaces]}
        x-name: &text "a text"
        nodes:
          a: *limits
          b: {<<: *limits, cpus: 3}
          c: {cpus: 3, <<: *limits}
          d: {<<: [*limits, *more]}
          e: {<<: {cpus: 4}, x-own: {anything: [1, ~]}}
        description: *text
    """
    found = read(text)
    assert found["description"] == "a text"
    assert found["nodes"] == {
        "a": {"cpus": 1.0, "memory": 64 << 20},
        "b": {"cpus": 3.0, "memory": 64 << 20},
        "c": {"cpus": 3.0, "memory": 64 << 20},
        "d": {"cpus": 1.0, "memory": 64 << 20, "roles": ["namespaces"]},
        "e": {"cpus": 4.0},
    }


def test_an_anchored_variable_is_filled_in_once_for_all() -> None:
    text = "name: t\nx-c: &c ${C}\nnodes: {a: {cpus: *c}, b: {cpus: *c}}\n"
    assert [one["cpus"] for one in read(text, C="2")["nodes"].values()] == [2.0, 2.0]


def test_a_problem_behind_an_alias_is_reported_once_at_its_text() -> None:
    nodes = "".join(f"  n{i}: {{<<: *n}}\n" for i in range(30))
    (problem,) = problems(f"name: t\nx-n: &n {{cpus: many}}\nnodes:\n{nodes}")
    assert (problem.line, problem.column) == (2, 16)
    assert "*n" in problem.seen
    assert "line 4" in problem.seen


def test_a_variable_in_braces_has_to_be_quoted() -> None:
    found = problems("name: t\nnodes: {a: {cpus: ${C}}}\n")
    assert all("quote" in one.hint for one in found)


def test_a_repeated_key_beside_a_merge() -> None:
    (problem,) = problems("name: t\nx-n: &n {cpus: 1}\nnodes: {a: {<<: *n, cpus: 2, cpus: 3}}\n")
    assert "again" in problem.seen
    (problem,) = problems("name: t\nx-n: &n {cpus: 1}\nnodes: {a: {<<: *n, <<: *n}}\n")
    assert "[*a, *b]" in problem.hint


def test_extension_keys_are_in_every_mapping() -> None:
    text = (
        "name: t\nx-a: 1\nnetworks: {lan: {subnet: 10.0.0.0/24, x-b: 1}}\n"
        "nodes: {a: {networks: {lan: 10.0.0.2}, roles: [docker], x-c: {}}, x-node: {}}\n"
        "docker: {x-d: 1}\ncontainers: {web: {node: a, x-e: 1, healthcheck: {test: a, x-f: 1}}}\n"
    )
    found = read(text)
    assert "x-" not in json.dumps({**found, "nodes": found["nodes"]["a"]})
    assert [*found["nodes"]] == ["a", "x-node"], "a name may begin so, too"
    patterns = json.dumps(schema()).count('"^x-"')
    assert patterns == json.dumps(schema()).count('"additionalProperties": false')


def test_many_nodes_may_be_alike() -> None:
    alike = "{sysctls: {net.ipv4.ip_default_ttl: 9}, routes: [blackhole 10.1.0.0/16]}"
    nodes = ", ".join(f"n{number}: {{<<: *n}}" for number in range(500))
    found = read(f"name: t\nx-n: &n {alike}\nnodes: {{{nodes}}}\n")
    assert len(found["nodes"]) == 500


@pytest.mark.thorough
@QUICK
@given(topologies(), st.data())
def test_a_topology_with_aliases_is_the_same(data: dict[str, Any], draw: st.DataObject) -> None:
    """PyYAML writes anchors and aliases for objects that occur twice."""
    node = draw.draw(st.sampled_from(sorted(data["nodes"])))
    made = escaped(data)
    shared = {**made, "x-parts": [made["nodes"][node], made.get("networks")]}
    assert load_text(dump(shared), "t.yaml") == loaded(data)


# The schema for editors

EDITOR = Draft202012Validator(as_written())


def with_variables(value: Any, name: str = "V") -> Any:
    """A document with a variable in the place of every scalar."""
    if isinstance(value, dict):
        return {key: with_variables(one) for key, one in value.items()}
    if isinstance(value, list):
        return [with_variables(one, f"V{number}") for number, one in enumerate(value)]
    return f"a${{{name}:-1}}"


@pytest.mark.parametrize("name", sorted(names()))
def test_editors_accept_variables_everywhere(name: str) -> None:
    data = yaml.safe_load(names()[name].read_text())
    EDITOR.validate(data)
    EDITOR.validate(with_variables(data))
    EDITOR.validate({"include": ["a.yaml", "$B.yaml"], "nodes": data["nodes"]})
    assert not EDITOR.is_valid({"name": "$V"}), "it includes no nodes"
    assert not EDITOR.is_valid({**data, "nodes": "$V"}), "a variable is no mapping"


@pytest.mark.parametrize("name", SEEN)
def test_editors_refuse_what_they_refused(name: str) -> None:
    assert not EDITOR.is_valid(yaml.safe_load(TABLE[name].plain))


# Included files


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: str, text: str) -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)
    return path


def test_files_are_merged_by_key(folder: Path) -> None:
    del folder
    write("parts/net.yaml", "networks: {lan: {subnet: 10.0.0.0/24}}\nname: net\n")
    write(
        "parts/a.yaml",
        "include: net.yaml\nnodes:\n  a: {networks: {lan: 10.0.0.2}, roles: [docker], cpus: 1}\n",
    )
    write("b.yaml", "nodes: {a: {cpus: 2}, b: {networks: {lan: 10.0.0.3}}}\n")
    path = write("t.yaml", "name: t\ninclude: [parts/a.yaml, ./b.yaml]\nnodes: {a: {roles: []}}\n")
    found = load(path).to_dict()
    assert found == {
        "name": "t",
        "provider": "netns",
        "networks": {"lan": {"subnet": "10.0.0.0/24"}},
        "nodes": {
            "a": {"networks": {"lan": "10.0.0.2"}, "cpus": 2.0},
            "b": {"networks": {"lan": "10.0.0.3"}},
        },
    }
    assert load(path).file == os.path.realpath(path)


def test_problems_have_the_file_that_they_are_in(folder: Path) -> None:
    del folder
    write("parts/net.yaml", "\n\nnetworks: {lan: {subnet: 10.0.0.0/33}}\n")
    write("parts/a.yaml", "include: [net.yaml]\nx-n: &n {cpus: x}\nnodes: {a: *n, b: {cpu: 1}}\n")
    path = write("t.yaml", "name: 1\ninclude: parts/a.yaml\nnodes: {b: {cpus: y}}\n")
    with pytest.raises(TopologyError) as caught:
        load(path)
    places = [(one.file, one.line, one.column) for one in caught.value.problems]
    assert places == [
        ("", 1, 7), ("", 3, 19), ("parts/a.yaml", 2, 16), ("parts/a.yaml", 3, 20),
        ("parts/net.yaml", 3, 26),
    ]  # fmt: skip
    assert "parts/net.yaml:3:26: " in str(caught.value)


@pytest.mark.parametrize("text", ["name: [\n", "name: \0", "!!x y: &a", "name: ${UNSET}"])
def test_syntax_errors_have_the_file_that_they_are_in(folder: Path, text: str) -> None:
    del folder
    write("a.yaml", text)
    with pytest.raises(TopologyError) as caught:
        load(write("t.yaml", f"name: t\ninclude: a.yaml\n{OK}"))
    assert caught.value.problems[-1].file == "a.yaml"


@pytest.mark.parametrize(
    ("include", "word"),
    [
        ("nowhere.yaml", "no such file"),
        (".", "a folder"),
        ('"a\\0b"', "NUL"),
        ("{a: b}", "a list of files"),
        ("[[a]]", "a list"),
        ("[1]", "the integer 1"),
        ("list.yaml", "a mapping"),
        ("/dev/zero", "MiB"),
    ],
)
def test_wrong_includes(folder: Path, include: str, word: str) -> None:
    del folder
    write("list.yaml", "[]\n")
    with pytest.raises(TopologyError, match=word):
        load(write("t.yaml", f"name: t\ninclude: {include}\n{OK}"))


def test_files_that_include_each_other(folder: Path) -> None:
    del folder
    write("b.yaml", "include: sub/../t.yaml\n")
    Path("sub").mkdir()
    path = write("t.yaml", f"name: t\ninclude: [b.yaml]\n{OK}")
    with pytest.raises(TopologyError) as caught:
        load(path)
    (problem,) = caught.value.problems
    assert (problem.file, problem.line, problem.column) == ("b.yaml", 1, 10)
    assert problem.seen == "t.yaml, which includes b.yaml, which includes sub/../t.yaml"


def test_many_includes_are_limited(folder: Path) -> None:
    """Each file of a chain includes the next one twice: as many reads as 2 to the power of 30."""
    del folder
    for i in range(30):
        write(f"{i}.yaml", f"include: [{i + 1}.yaml, {i + 1}.yaml]\n")
    write("30.yaml", "{}\n")
    with pytest.raises(TopologyError, match="at most 100"):
        load(write("t.yaml", f"name: t\ninclude: 0.yaml\n{OK}"))


def test_an_include_may_be_a_variable(folder: Path) -> None:
    del folder
    write("dev.yaml", "description: of $WHO\n")
    path = write("t.yaml", f"name: t\ninclude: ['${{STAGE}}.yaml']\n{OK}")
    found = load(path, variables={"STAGE": "dev", "WHO": "me"})
    assert (found.description, found.variables) == ("of me", {"STAGE": "dev", "WHO": "me"})


def test_paths_are_relative_to_the_file_that_has_them(folder: Path) -> None:
    """Also those of an error that a role finds later (:func:`places`)."""
    for name in ("parts/x", "parts/one.yaml", "z"):
        write(name, "")
    write(
        "parts/a.yaml",
        "nodes: {a: {networks: {lan: 10.0.0.2}, files: {/x: x, /y: {file: ~/.}},"
        " binds: ['./x:/b', '~/.:/c']}}\n"
        "networks: {lan: {subnet: 10.0.0.0/24}}\n"
        "kubernetes: {apply: [one.yaml]}\ndocker: {daemon: {icc: '${ICC}'}}\n",
    )
    nodes = "nodes:\n  a: {files: {/z: z}, roles: [kubernetes]}\n"
    nodes += "  b: {networks: {lan: 10.0.0.3}, roles: [docker]}\n"
    path = write("t.yaml", f"name: t\ninclude: parts/a.yaml\n{nodes}")
    found = load(path, variables={"ICC": "false"})
    files = {name: file.source for name, file in found.nodes["a"].files.items()}
    assert files == {"/x": f"{folder}/parts/x", "/y": str(Path.home()), "/z": "z"}
    assert [one.source for one in found.nodes["a"].binds] == [f"{folder}/parts/x", "~/."]
    section = found.sections["kubernetes"].to_dict()
    assert section["apply"] == f"{folder}/parts/one.yaml"
    root, problems = places(found)
    problems.add(value_at(root, "docker", "daemon", "icc"), "another", "this", "change it")
    (problem,) = problems.found()
    assert (problem.file, problem.line) == ("parts/a.yaml", 4)
    Path(path).unlink()
    root, problems = places(found)
    assert value_at(root, "docker", "daemon", "icc").line == 0


def test_data_includes_nothing() -> None:
    with pytest.raises(TopologyError, match="include"):
        load_data({"name": "t", "include": ["/dev/zero"], "nodes": {"a": {}}}, "record")


@pytest.mark.thorough
@QUICK
@given(topologies(), st.data())
def test_a_topology_in_parts_is_the_same(data: dict[str, Any], draw: st.DataObject) -> None:
    """Each part of a topology is in the including file, in an included one, or in both."""
    parts: list[dict[str, Any]] = [{}, {}]
    for section, value in data.items():
        if not isinstance(value, dict):
            parts[draw.draw(st.integers(0, 1))][section] = value
            continue
        for name, one in value.items():
            for index in draw.draw(st.sampled_from([[0], [1], [0, 1]])):
                parts[index].setdefault(section, {})[name] = one
    files = {"t.yaml": {"include": "a.yaml", **parts[1]}, "a.yaml": parts[0]}
    found = Problems("t.yaml")

    def parsed(path: Path) -> Tree:
        return source.from_text(dump(files[str(path)]), found)

    root = parsed(Path("t.yaml"))
    assert isinstance(root, Mapping)
    # The entries of an included file come first.
    ordered = {
        section: value
        if not isinstance(value, dict)
        else dict(sorted(value.items(), key=lambda one: one[0] not in parts[0].get(section, ())))
        for section, value in data.items()
    }
    assert build(whole(root, found, parsed), found) == loaded(ordered)


# Commands


def pipe(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))


def run(*argv: str) -> str:
    """The output of a command that succeeds."""
    written = io.BytesIO()
    out = io.TextIOWrapper(written, write_through=True)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        status = cli.run(list(argv))
    assert status == 0, written.getvalue()
    return written.getvalue().decode()


def test_a_topology_on_standard_input(
    bench: Bench, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del folder
    write("part.yaml", OK)
    text = "name: ${NAME}\ninclude: part.yaml\n"
    pipe(monkeypatch, text)
    found = load("-", variables={"NAME": "piped"})
    assert (found.name, found.file) == ("piped", "")
    pipe(monkeypatch, "name: 1\n")
    with pytest.raises(TopologyError, match="<stdin>:1:7"):
        load("-")
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(TopologyError, match="standard input"):
        load("-")
    for words, said in {
        ("plan",): "piped: 1 node",
        ("export", "--to", "mermaid"): "flowchart",
        ("up",): "piped is up",
        ("up", "--json"): '"changed": []',
    }.items():
        pipe(monkeypatch, text)
        assert said in run(*words, "-", "--set", "NAME=piped")
    record = bench.settings.state.read("piped")
    assert record is not None
    assert (record.source, record.variables) == ("", {"NAME": "piped"})


def test_a_lab_keeps_its_variables(
    bench: Bench, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del folder
    path = write("t.yaml", "name: t\ndescription: ${WHAT:-none} ${WHO}\nnodes: {a: {}}\n")
    run("up", path, "--set", "WHAT=x", "--set", "WHO=me")
    record = bench.settings.state.read("t")
    assert record is not None
    assert record.variables == {"WHAT": "x", "WHO": "me"}
    assert origin.later(record) == {"WHO": None, "WHAT": "none"}
    monkeypatch.setenv("WHO", "you")
    assert origin.later(record) == {"WHAT": "none", "WHO": "you"}
    shown = run("status", "t")
    assert "WHAT=x" in shown
    assert "'none'" in shown
    assert json.loads(run("status", "t", "--json"))["variables"] == {"WHAT": "x", "WHO": "me"}
    said: list[str] = []
    lab = Lab("t", bench.settings)
    lab.up(lab.topology(), watch=Watch(words=said.append))
    assert not said
    record = bench.settings.state.read("t")
    assert record is not None
    assert record.variables == {"WHAT": "x", "WHO": "me"}, "also after a repair"
    lab.up(load(path), watch=Watch(words=said.append))
    told = [words for words in said if words.startswith(("WHAT is", "WHO is"))]
    assert len(told) == 2
    assert all(any(old in words for words in told) for old in ("'x'", "'me'"))
    record = bench.settings.state.read("t")
    assert record is not None
    assert record.variables == {"WHAT": "none", "WHO": "you"}
    assert origin.later(record) == {}


def test_a_file_that_has_changed_has_the_variables_that_it_still_has(
    bench: Bench, folder: Path
) -> None:
    del folder
    path = write("t.yaml", "name: t\ndescription: ${WHAT} ${WHO}\nnodes: {a: {}}\n")
    run("up", path, "--set", "WHAT=x", "--set", "WHO=me")
    record = bench.settings.state.read("t")
    assert record is not None
    write("t.yaml", "name: t\ndescription: ${WHO:-you}\nnodes: {a: {}}\n")
    assert origin.later(record) == {"WHO": "you"}
    write("t.yaml", "name: [\n")
    assert origin.later(record) == {}, "nobody knows"


def test_a_file_means_its_lab_without_its_variables(bench: Bench, folder: Path) -> None:
    del folder
    path = write("t.yaml", "name: ${NAME}\nnodes: {a: {cpus: '${CPUS?}'}}\n")
    with pytest.raises(NoSuchLab, match="no lab was created from"):
        origin.named(bench.settings, path)
    run("up", path, "--set", "NAME=one", "--set", "CPUS=1")
    assert origin.named(bench.settings, path) == "one"
    run("up", path, "--set", "NAME=two", "--set", "CPUS=1")
    with pytest.raises(UsageError, match="one, two"):
        origin.named(bench.settings, path)
    with pytest.raises(TopologyError):
        origin.named(bench.settings, write("u.yaml", "name: ${NAME}\nnodes: []\n"))


def test_the_values_of_variables_choose_a_lab_of_a_file(
    bench: Bench, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del folder
    path = write("t.yaml", "name: lab-${N}\ndescription: ${X:-${Y:-}}\nnodes: {a: {}}\n")
    run("up", path, "--set", "N=1")
    run("up", path, "--set", "N=2", "--set", "X=x", "--set", "Y=unneeded")
    run("up", path, "--set", "N=2", "--name", "other")

    def shown(*words: str) -> object:
        return json.loads(run("status", "--json", *words))["lab"]

    assert shown(path, "--set", "N=1") == "lab-1"
    assert shown(path, "--set", "N=2", "--set", "X=x", "--set", "Y=unneeded") == "lab-2"
    assert shown("lab-1", "--set", "N=1") == "lab-1"
    chosen = origin.named(bench.settings, path, {"N": "2"})
    assert chosen == "lab-2", "of two, that with the name that the file gives"
    before = bench.settings.state.labs()
    for words in (
        ("status", "lab-1", "--set", "N=2"),  # of a lab by its name
        ("status", path, "--set", "M=2"),  # no variable of the file
        ("verify", "--all", "--set", "N=2"),
        ("down", "--all", "--set", "N=2"),
    ):
        assert cli.run([*words]) == 2, words
    assert cli.run(["status", path, "--set", "N=3"]) == 4
    run("down", path, "--set", "N=3")  # no such lab, which is no error
    assert bench.settings.state.labs() == before
    run("down", path, "--set", "N=1")
    assert bench.settings.state.labs() == ["lab-2", "other"]
    Path(path).write_text("name: same\ndescription: ${N}\nnodes: {a: {}}\n")
    run("up", path, "--set", "N=5")
    capsys.readouterr()
    assert cli.run(["down", path, "--set", "N=6"]) == 2
    assert "N=5" in capsys.readouterr().err, "the lab of that name has another value"
    Path(path).unlink()
    assert origin.named(bench.settings, path, {"N": "5"}) == "same", "the record knows it"


def test_the_only_lab_has_the_values_that_were_given(bench: Bench, folder: Path) -> None:
    del bench, folder
    run("up", write("t.yaml", "name: t\ndescription: ${N}\nnodes: {a: {}}\n"), "--set", "N=1")
    run("status", "--set", "N=1")
    assert cli.run(["status", "--set", "N=2"]) == 2


def test_the_option_set(bench: Bench) -> None:
    del bench
    for wrong in ("A", "=x", "1=x", "A B=x", ""):
        assert cli.run(["plan", "two-node", "--set", wrong]) == 2
    assert cli.run(["up", "-l", "two-node", "--set", "A=x"]) == 2
    assert cli.run(["plan", "two-node", "--set", "A=x"]) == 2
