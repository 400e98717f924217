"""Jobs of CI services: what they run exists, what they use is pinned, no job has rights to spare.

They are those of this repository, its action, and those that examples and docs/ci.md show.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import click
import jobs
import pytest
from jobs import ACTION, EXPRESSION, Script, read

from testbed.cli import cli

pytestmark = pytest.mark.source

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
#: A commit of an action, and the version that it is; dependabot keeps both.
PINNED = re.compile(r"uses: ([\w./-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+|\./)$")
WRITING = {
    ("docs.yml", "publish"): {"pages", "id-token"},
    ("release.yml", "build"): {"attestations", "id-token"},
    ("release.yml", "publish"): {"id-token"},
}


def shell(path: Path) -> list[str]:
    """The shell parts of a workflow."""
    return [step["run"] for step in jobs.steps(read(path)) if "run" in step]


def made(script: str) -> set[str]:
    """The make targets that a script runs."""
    calls = re.findall(r"^\s*make ([^&|;\n]*)", script, re.MULTILINE)
    return {word for call in calls for word in call.split() if re.fullmatch(r"[a-z][\w-]*", word)}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_each_target_that_a_workflow_makes_exists(path: Path) -> None:
    targets = {target for script in shell(path) for target in made(script)}
    assert targets or path.name == "action.yml"
    assert targets <= TARGETS


def test_each_target_that_the_ci_script_makes_exists() -> None:
    targets = made((ROOT / ".ci" / "run").read_text(encoding="utf-8"))
    assert {"setup", "test"} <= targets <= TARGETS


@pytest.mark.parametrize("path", [*WORKFLOWS, ACTION], ids=lambda path: path.name)
def test_actions_are_pinned_by_commit(path: Path) -> None:
    uses = [line for line in path.read_text("utf-8").splitlines() if "uses:" in line]
    assert [line for line in uses if not PINNED.search(line)] == []


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_job_ends_and_writes_only_what_it_must(path: Path) -> None:
    workflow = read(path)
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        assert job["timeout-minutes"] <= 90
        rights = job.get("permissions", {})
        writing = {right for right, level in rights.items() if level == "write"}
        assert writing == WRITING.get((path.name, name), set())


def test_the_matrix_begins_with_the_oldest_python_that_is_supported() -> None:
    versions = read(ROOT / ".github/workflows/python.yml")["jobs"]["unit"]["strategy"]["matrix"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["requires-python"] == f">={versions['python'][0]}"
    assert versions["python"] == ["3.11", "3.12", "3.13", "3.14"]


def test_caches_hold_the_folder_that_labs_fill() -> None:
    """A job in a container is root's, whose home folder is not the HOME of the actions."""
    for path in WORKFLOWS:
        for job in read(path)["jobs"].values():
            caches = [step for step in job["steps"] if "/cache@" in step.get("uses", "")]
            assert {step["with"]["path"] for step in caches} <= {"/root/.cache/testbed"}


def test_a_release_that_is_tried_is_the_one_that_is_published() -> None:
    jobs = read(ROOT / ".github/workflows/release.yml")["jobs"]
    assert jobs["try"]["needs"] == "build"
    assert jobs["publish"]["needs"] == "try"
    assert "ref_type == 'tag'" in jobs["publish"]["if"]


# -- every shell part, here and on pages --------------------------------------------------

SCRIPTS = jobs.scripts()
WHOLE = {**jobs.workflows(), "action.yml": read(ACTION)}
STEP = {"id", "name", "if", "uses", "with", "run", "shell", "env", "working-directory"}
JOB = {
    "name", "runs-on", "timeout-minutes", "container", "strategy", "steps", "needs", "if",
    "permissions", "environment", "env",
}  # fmt: skip
#: Contexts of an expression that GitHub fills from the event, the matrix or the job.
CONTEXTS = ("github", "matrix", "hashFiles", "env", "runner")


def named(script: Script) -> str:
    return f"{script.place}: {script.text.split()[0]}"


def test_all_of_them_are_looked_at() -> None:
    places = {script.place for script in SCRIPTS}
    assert {"action.yml", "docs/ci.md", "docs/ci.md, Jenkins", "docs/ci.md, GitLab"} <= places
    assert {path.name for path in WORKFLOWS} <= {Path(place).name for place in places} | {
        "action.yml"
    }
    assert len(SCRIPTS) > 25


@pytest.mark.parametrize("script", SCRIPTS, ids=named)
def test_a_shell_part_has_no_mistake_of_syntax(script: Script) -> None:
    shell = shutil.which(script.shell)
    assert shell
    done = subprocess.run(
        [shell, "-n"], input=script.text, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("script", SCRIPTS, ids=named)
def test_each_command_and_option_of_testbed_exists(script: Script) -> None:
    for words in jobs.commands(script.text):
        known(words)


def known(words: list[str]) -> None:
    """Fail if a command line of testbed has a command or an option that does not exist."""
    command: click.Command = cli
    context = click.Context(cli)
    for word in words:
        if word.startswith("-") and word != "-":
            options = {name for one in command.get_params(context) for name in one.opts}
            assert word.partition("=")[0] in options, words
        elif isinstance(command, click.Group):
            found = command.get_command(context, word)
            assert found is not None, words
            command = found


@pytest.mark.parametrize("line", ["testbed verfy x", "testbed up x --nmae y", "testbed --all"])
def test_a_wrong_command_would_be_found(line: str) -> None:
    (words,) = jobs.commands(line)
    with pytest.raises(AssertionError):
        known(words)


@pytest.mark.parametrize("script", SCRIPTS, ids=named)
def test_no_value_of_an_event_is_pasted_into_a_script(script: Script) -> None:
    """It would be run as a command: such values come through the environment."""
    assert not EXPRESSION.search(script.text)


@pytest.mark.parametrize("place", WHOLE)
def test_a_step_has_the_form_that_github_wants(place: str) -> None:
    whole = WHOLE[place]
    composite = "runs" in whole
    for job in [] if composite else whole["jobs"].values():
        assert set(job) <= JOB
        assert set(job.get("needs", "").split()) <= set(whole["jobs"])
    for step in jobs.steps(whole):
        assert set(step) <= STEP
        assert ("run" in step) != ("uses" in step)
        assert ("with" in step) <= ("uses" in step)
        assert not composite or ("shell" in step) == ("run" in step)


@pytest.mark.parametrize("place", WHOLE)
def test_an_expression_names_something_that_exists(place: str) -> None:
    whole = WHOLE[place]
    seen: set[str] = set()
    for step in jobs.steps(whole):
        conditions = re.findall(r"steps\.[\w.-]+|inputs\.[\w-]+", str(step.get("if", "")))
        for words in [*EXPRESSION.findall(str(step)), *conditions]:
            defined(words, whole, seen)
        if "id" in step:
            outputs = re.findall(r'echo "([\w-]+)=', step.get("run", ""))
            seen |= {f"steps.{step['id']}.outputs.{name}" for name in outputs}
    for output in whole.get("outputs", {}).values():
        (words,) = EXPRESSION.findall(output["value"])
        defined(words, whole, seen)


def defined(words: str, whole: dict[str, Any], seen: set[str]) -> None:
    first, _, rest = words.partition(".")
    if first == "inputs":
        assert rest in whole["inputs"], words
    elif first == "steps":
        assert words in seen, words
    else:
        assert words.startswith(CONTEXTS), words


def test_each_input_of_the_action_is_used_and_on_the_page() -> None:
    action = read(ACTION)
    used = set(re.findall(r"inputs\.([\w-]+)", ACTION.read_text(encoding="utf-8")))
    assert used == set(action["inputs"])
    page = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
    table = page.partition("| input |")[2].partition("\n\n")[0]
    assert set(
        re.findall(r"`([a-z-]+)`", table.replace("`qemu`", "").replace("`kubernetes`", ""))
    ) == (set(action["inputs"]))


@pytest.mark.parametrize("place", WHOLE)
def test_an_action_is_given_inputs_that_it_has(place: str) -> None:
    known_inputs = set(read(ACTION)["inputs"])
    needed = {name for name, one in read(ACTION)["inputs"].items() if one.get("required")}
    for step in jobs.steps(WHOLE[place]):
        if step.get("uses", "") == "./" or "/testbed@" in step.get("uses", ""):
            assert needed <= set(step["with"]) <= known_inputs


def test_a_job_for_another_topology_keeps_what_it_fetched() -> None:
    """A cache that was found is not saved again: with one name, only the first job would."""
    setup, cache, *_ = jobs.steps(read(ACTION))
    assert "/cache@" in cache["uses"]
    assert cache["with"]["restore-keys"] == "${{ steps.setup.outputs.prefix }}"
    assert {"TOPOLOGY", "OPTIONS"} <= set(setup["env"])
    assert 'echo "prefix=$prefix"' in setup["run"]
    assert 'echo "key=$prefix${lab:0:12}"' in setup["run"]


def test_a_lab_is_removed_and_results_are_kept_also_after_a_failure() -> None:
    *_, down, kept = jobs.steps(read(ACTION))
    assert "down" in down["run"]
    assert "upload-artifact@" in kept["uses"]
    assert down["if"].startswith("always()")
    assert kept["if"].startswith("always()")


@pytest.mark.parametrize("place", jobs.gitlab())
def test_a_job_of_gitlab_has_the_form_that_gitlab_wants(place: str) -> None:
    for job in jobs.gitlab()[place].values():
        assert set(job) <= {
            "image", "timeout", "variables", "cache", "before_script", "script", "after_script",
            "artifacts",
        }  # fmt: skip
        assert set(job["cache"]) == {"key", "paths"}
        assert set(job["artifacts"]) <= {"when", "paths", "reports"}
