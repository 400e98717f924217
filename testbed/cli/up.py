"""``testbed up``."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click

from testbed.cli import common
from testbed.errors import UsageError
from testbed.progress import Log
from testbed.requirement import need_root
from testbed.spelling import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from testbed.artifacts.config import Policy
    from testbed.labs.difference import Effect
    from testbed.labs.lab import Lab, Outcome
    from testbed.labs.run import Done, Waiting
    from testbed.topology.model import Topology


class _Command(common.VariantCommand):
    of_providers = True


@click.command("up", cls=_Command)
@click.argument("topology", required=False, shell_complete=common.complete_topologies)
@click.option(
    "-l",
    "--lab",
    "lab_name",
    metavar="LAB",
    shell_complete=common.complete_labs,
    help="Restore this running lab as it was created, instead of TOPOLOGY.",
)
@common.variant_options
@common.artifact_option
@common.image_options
@click.option("--keep", is_flag=True, help="After a failure keep the lab, to inspect it.")
@click.option("--replace", is_flag=True, help="Update a lab that came from another file.")
@click.option(
    "--timeout",
    type=click.FloatRange(0.1),
    metavar="SECONDS",
    help="Fail after this time, and show the unfinished steps.",
)
@click.option("-q", "--quiet", is_flag=True, help="Show only errors.")
@common.json_option
def command(
    topology: str | None,
    lab_name: str | None,
    artifacts: tuple[str, ...],
    pull: Policy | None,
    images_from: tuple[str, ...],
    as_json: bool,
    keep: bool,
    replace: bool,
    quiet: bool,
    timeout: float | None,
    **variant: str | int | None,
) -> None:
    """Create or update a lab.

    TOPOLOGY is a name from `testbed topologies`, a file, - for standard input, or the
    name of a running lab to repair. A second `up` does nothing. After a change in the
    file, `up` changes only what differs. --lab repairs a lab with the options that it
    was created with. After a failure, `up` removes what it created, unless --keep is set.
    """
    wanted = _wanted(topology, lab_name, artifacts, variant)
    need_root("`testbed up`")
    from testbed.labs.lab import Lab
    from testbed.labs.run import Watch

    settings = common.make_settings(
        artifacts=artifacts,
        pull=pull,
        images_from=images_from,
        chosen=common.for_providers(wanted),
    )
    lab = Lab(wanted.name, settings)
    if not (quiet or as_json):
        bring_up(lab, wanted, keep=keep, replace=replace, timeout=timeout)
        return
    watch = Watch(words=tell)
    outcome = lab.up(wanted, keep=keep, replace=replace, timeout=timeout, watch=watch)
    if as_json:
        common.print_json(_to_dict(outcome))


def _wanted(
    topology: str | None, lab: str | None, artifacts: tuple[str, ...], variant: Mapping[str, object]
) -> Topology:
    if topology is not None:
        if lab is not None:
            raise UsageError("TOPOLOGY and --lab exclude each other", hint="remove one of them")
        return common.load_variant(topology, artifacts, **variant)
    if lab is None:
        raise UsageError(
            "missing TOPOLOGY",
            hint="`testbed topologies` lists the shipped ones",
        )
    given = [name.replace("_", "-") for name, value in variant.items() if value is not None]
    given += common.chosen_for_providers()
    if given:
        raise UsageError(
            f"--{given[0]} and --lab exclude each other: --lab restores a lab unchanged",
            hint=f"`testbed up TOPOLOGY --{given[0]} ...` changes the lab",
        )
    return common.to_update(common.lab_meant(common.make_settings(), lab))


def bring_up(
    lab: Lab,
    wanted: Topology,
    *,
    keep: bool = False,
    replace: bool = False,
    timeout: float | None = None,
) -> None:
    """Create or update a lab, and show it."""
    from testbed.labs.run import Watch

    click.echo(f"{click.style(wanted.name, bold=True)}: {summary(wanted)}")
    common.show_uplinks(wanted)
    if wanted.installs:
        from testbed.labs.existing import listed

        common.show_installed(listed(wanted, lab.settings.store))
    watch = Watch(step=show_step, idle=Idle(), words=tell, differences=_show_differences)
    show_outcome(lab.up(wanted, keep=keep, replace=replace, timeout=timeout, watch=watch))


def _show_differences(effects: Sequence[Effect]) -> None:
    from testbed.cli.diff import show

    show(effects)


def summary(topology: Topology) -> str:
    """Return a one-line summary of a topology."""
    from testbed.registry import ROLES
    from testbed.topology.keys import DEFAULT_PROVIDER

    makers = topology.providers
    made = "" if makers == (DEFAULT_PROVIDER,) else f" by {' and '.join(makers)}"
    parts = [counted(len(topology.nodes), "node") + made]
    roles = sorted(topology.roles, reverse=True)
    said = ((role, ROLES[role].summary(topology)) for role in roles)
    parts += [f"{role} {words}" for role, words in said if words]
    if topology.containers:
        parts.append(counted(len(topology.containers), "container"))
    if topology.namespaces:
        parts.append(counted(len(topology.namespaces), "namespace"))
    return ", ".join(parts)


def tell(words: str) -> None:
    click.echo(f"  {words} ...", err=True)


def show_step(done: Done) -> None:
    if done.error is not None:
        first = str(done.error).partition("\n")[0]
        mark, words = click.style("failed", fg="red"), first
    elif done.changed:
        mark, words = click.style(f"{done.seconds:5.2f}s", fg="green"), done.words
    else:
        mark, words = click.style("     =", dim=True), done.words
    click.echo(f"  {mark}  {done.step.name:<34}  {words}")


class Idle:
    """Shows the running steps.

    A terminal shows them after each change, and every ten seconds. A step that reports its wait
    gets a line of its own after five seconds. A file gets a line when a wait begins, and one every
    30 seconds.
    """

    EVERY = 10.0  # seconds
    LONG = 5.0  # seconds
    OTHERS = "others"

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, *, terminal: bool | None = None
    ) -> None:
        self._clock = clock
        self._said: dict[str, float] = {}  # a line, and the time when it was last shown
        self._terminal = sys.stdout.isatty() if terminal is None else terminal
        self._log = Log(self._echo, clock)

    def __call__(self, waiting: list[Waiting]) -> None:
        long = [one for one in waiting if one.words and one.seconds >= self.LONG]
        others = [one.step for one in waiting if one not in long]
        lines = {one.step: f"{one.step} waits for {one.words}" for one in long}
        if others:
            more = f" and {len(others) - 3} more" if len(others) > 3 else ""
            lines[self.OTHERS] = f"still at: {', '.join(others[:3])}{more}"
        if not self._terminal:
            self._log.keep({self.OTHERS, *lines})
            for thing, line in lines.items():
                self._log.tell(thing, line)
            return
        now = self._clock()
        self._said = {line: at for line, at in self._said.items() if line in lines.values()}
        for line in lines.values():
            if now - self._said.get(line, -self.EVERY) >= self.EVERY:
                self._said[line] = now
                self._echo(line)

    @staticmethod
    def _echo(line: str) -> None:
        click.echo(click.style(f"         {line}", dim=True))


def show_outcome(outcome: Outcome) -> None:
    name = outcome.topology.name
    ok = click.style(f"{name} is up", fg="green", bold=True)
    if outcome.removed:
        click.echo(f"  removed: {', '.join(outcome.removed)}")
    if not outcome.changed and not outcome.removed:
        click.echo(f"{ok}, unchanged ({outcome.seconds:.2f} s)")
        return
    click.echo(f"{ok} ({outcome.seconds:.2f} s)")
    node = next(iter(outcome.topology.nodes))
    click.echo(
        click.style(
            f"  next: testbed verify {name} · testbed shell -l {name} {node} · testbed down {name}",
            dim=True,
        )
    )


def _to_dict(outcome: Outcome) -> dict[str, object]:
    return {
        "lab": outcome.topology.name,
        "uplinks": [network.name for network in outcome.topology.uplinks],
        "seconds": round(outcome.seconds, 3),
        "changed": [done.step.name for done in outcome.changed],
        "removed": outcome.removed,
        "differences": [one.to_dict() for one in outcome.differences],
        "steps": [
            {
                "name": done.step.name,
                "began": round(done.began, 3),
                "seconds": round(done.seconds, 3),
                "changed": done.changed,
                "words": done.words,
            }
            for done in outcome.steps
        ],
    }
