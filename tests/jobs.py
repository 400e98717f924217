"""Jobs of CI services as data: their steps, and a runner of GitHub's steps on this machine."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
ACTION = ROOT / "action.yml"
EXPRESSION = re.compile(r"\$\{\{\s*(.*?)\s*\}\}")


@dataclass(frozen=True)
class Script:
    """A shell part of a file, with the shell that runs it."""

    place: str
    shell: str
    text: str


def read(path: Path) -> dict[str, Any]:
    """Return a file of a CI service."""
    # YAML 1.1 reads the key `on` as true.
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Yield the language and the text of each block of code of a page."""
    text = page.read_text(encoding="utf-8")
    yield from re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def jobs_of_page() -> Iterator[dict[str, Any]]:
    """Yield the files of GitHub and GitLab that docs/ci.md shows whole."""
    for language, text in blocks(ROOT / "docs" / "ci.md"):
        if language == "yaml" and not text.startswith(" "):
            yield yaml.safe_load(text)


def workflows() -> dict[str, dict[str, Any]]:
    """Return all workflows of GitHub by their place: of this repository, examples and pages."""
    files = [
        *sorted((ROOT / ".github" / "workflows").glob("*.yml")),
        *sorted((ROOT / "examples").rglob(".github/workflows/*.yml")),
    ]
    found = {str(path.relative_to(ROOT)): read(path) for path in files}
    for number, value in enumerate(one for one in jobs_of_page() if "jobs" in one):
        found[f"docs/ci.md, workflow {number + 1}"] = value
    return found


def steps(where: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the steps of a workflow or an action."""
    if "runs" in where:
        return list(where["runs"]["steps"])
    return [step for job in where["jobs"].values() for step in job["steps"]]


def gitlab() -> dict[str, dict[str, Any]]:
    """Return all jobs of GitLab by their place."""
    found = {"examples/ci": read(ROOT / "examples" / "ci" / ".gitlab-ci.yml")}
    for value in jobs_of_page():
        if "jobs" not in value:
            found["docs/ci.md, GitLab"] = value
    return found


def scripts() -> list[Script]:
    """Return every shell part of a job: of workflows, the action, GitLab, Jenkins and pages."""
    found = [
        Script(place, "bash", step["run"])
        for place, value in {**workflows(), "action.yml": read(ACTION)}.items()
        for step in steps(value)
        if "run" in step
    ]
    for place, jobs in gitlab().items():
        for job in jobs.values():
            phases = ("before_script", "script", "after_script")
            found += [Script(place, "bash", "\n".join(job[phase])) for phase in phases]
    for language, text in blocks(ROOT / "docs" / "ci.md"):
        if language == "groovy":
            parts = re.findall(r"\bsh '''(.*?)'''|\bsh '([^']+)'", text, re.DOTALL)
            found += [Script("docs/ci.md, Jenkins", "sh", one or other) for one, other in parts]
        elif language == "sh":
            found.append(Script("docs/ci.md", "sh", text))
    return found


def commands(script: str) -> Iterator[list[str]]:
    """Yield the calls of testbed in a script, each as the words after its name."""
    text = script.replace("\\\n", " ")
    for line in re.split(r"\n|&&|\|\||;", text):
        words = shlex.split(line, comments=True)
        for at, word in enumerate(words):
            if word == "$TESTBED_COMMAND" or re.fullmatch(r"(\S*/bin/)?testbed", word):
                yield [one.rstrip(")") for one in words[at + 1 :]]  # of a substitution
                break


@dataclass
class Runner:
    """Runs the steps of an action as GitHub's runner does.

    ``inputs`` are those of the action. A step that uses another action is only recorded in
    ``used``: its place, and what it is given. ``around`` begins each command.
    """

    folder: Path  #: the job's own: its workspace, temporary files and home
    inputs: Mapping[str, str]
    around: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, dict[str, str]] = field(default_factory=dict)
    used: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    failed: str = ""
    log: str = ""

    def __post_init__(self) -> None:
        for name in ("workspace", "temp", "home"):
            (self.folder / name).mkdir(parents=True)
        self.summary = self.folder / "summary.md"
        self.summary.write_text("")

    @property
    def workspace(self) -> Path:
        return self.folder / "workspace"

    def run(self, action: Path) -> None:
        """Run the steps of an action; after one that failed, only those that always run."""
        value = read(action)
        known = value["inputs"]
        missing = {name for name, one in known.items() if one.get("required")} - set(self.inputs)
        assert not missing
        assert set(self.inputs) <= set(known)
        self._given = {name: one.get("default", "") for name, one in known.items()}
        self._given |= self.inputs
        for number, step in enumerate(value["runs"]["steps"]):
            if self._due(step.get("if", "success()")):
                self._step(str(step.get("id", number)), step)

    def _due(self, condition: str) -> bool:
        def holds(word: str) -> bool:
            if word in {"success()", "always()"}:
                return word == "always()" or not self.failed
            return bool(self.value(word))

        words = [word.strip() for word in condition.split("&&")]
        if "always()" not in words:
            words.append("success()")
        return all(holds(word) for word in words)

    def value(self, name: str) -> str:
        """Return the value of an expression: an input, or an output of a step before."""
        parts = name.split(".")
        if parts[0] == "inputs":
            return str(self._given[parts[1]])
        assert (parts[0], parts[2]) == ("steps", "outputs"), name
        return self.outputs.get(parts[1], {}).get(parts[3], "")

    def _filled(self, values: Mapping[str, Any]) -> dict[str, str]:
        return {
            name: EXPRESSION.sub(lambda found: self.value(found[1]), str(text))
            for name, text in values.items()
        }

    def _step(self, name: str, step: Mapping[str, Any]) -> None:
        if "uses" in step:
            self.used.append((step["uses"], self._filled(step["with"])))
            return
        assert step["shell"] == "bash"
        files = {what: self.folder / f"{name}.{what}" for what in ("env", "output", "path")}
        for path in files.values():
            path.write_text("")
        env = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self.folder / "home"),
            "LANG": "C.UTF-8",
            "CI": "true",
            "RUNNER_TEMP": str(self.folder / "temp"),
            "GITHUB_RUN_ID": str(os.getpid()),
            "GITHUB_STEP_SUMMARY": str(self.summary),
            **{f"GITHUB_{what.upper()}": str(path) for what, path in files.items()},
            **self.env,
            **self._filled(step.get("env", {})),
        }
        script = self.folder / f"{name}.sh"
        script.write_text(step["run"])
        done = subprocess.run(
            [*self.around, "bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)],
            cwd=self.workspace,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        self.log += f"## {name}: {done.returncode}\n{done.stdout}\n"
        if done.returncode and not self.failed:
            self.failed = name
        self.env |= _pairs(files["env"])
        self.outputs[name] = _pairs(files["output"])


def _pairs(path: Path) -> dict[str, str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return {name: value for name, _, value in (line.partition("=") for line in lines)}
