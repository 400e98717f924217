"""``testbed restart``, and the parts that it shares with ``stop`` and ``start``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from testbed.cli import common
from testbed.requirement import need_root

if TYPE_CHECKING:
    from testbed.labs.stopping import Act, Stopping

F = TypeVar("F", bound=Callable[..., Any])

HELP = """Restart nodes, services or containers.

\b
  testbed restart node1/flanneld         SIGTERM, then start with the same settings
  testbed restart node1/container-1      as `docker restart` does
  testbed restart node1                  stop its services, create it again, with all its steps

What does not end within the grace is killed. A node is a new machine afterwards: files that
were changed on it are lost. What stops running because of the restart is listed, such
as the containers of a restarted dockerd; `testbed up -l LAB` starts it.

To break a part, use `testbed fault`: `fault kill` kills at once, and `fault stop` freezes
a daemon that keeps its process.
"""


def grace_option(function: F) -> F:
    return click.option(
        "--grace", type=click.FloatRange(0, 86400), metavar="SECONDS", default=10.0,
        show_default=True, help="Time to end after SIGTERM, before SIGKILL.",
    )(function)  # fmt: skip


def options(function: F) -> F:
    """Add the options and the argument of the three commands."""
    targets = click.argument(
        "targets", nargs=-1, required=True, metavar="NODE[/SERVICE|/CONTAINER]...",
        shell_complete=common.complete_parts,
    )  # fmt: skip
    return common.lab_option(common.json_option(targets(function)))


def act(
    verb: str,
    lab_name: str | None,
    targets: tuple[str, ...],
    *,
    as_json: bool,
    **options: float,
) -> None:
    """Do the same with each target, in order, and say what was done."""
    need_root(f"`testbed {verb}`")
    from testbed.cli.up import Idle, show_step, tell
    from testbed.labs.run import Watch
    from testbed.labs.stopping import Stopping

    lab = common.lab_meant(common.make_settings(), lab_name)
    watch = Watch(words=tell) if as_json else Watch(step=show_step, idle=Idle(), words=tell)

    def say(target: str, line: str) -> None:
        if not as_json:
            click.echo(f"{click.style(target, bold=True)}: {line}")

    doing: Stopping = Stopping(lab, watch, tell=say, **options)
    does: Callable[[str], Act] = getattr(doing, verb)
    done = []
    for target in dict.fromkeys(targets):
        made = does(target)
        done.append(made)
        if not as_json:
            _show(made, verb, lab.name)
    if as_json:
        common.print_json({"lab": lab.name, "targets": [one.to_dict() for one in done]})


def _show(act: Act, verb: str, lab: str) -> None:
    name = click.style(act.target, bold=True)
    if not act.changed:
        click.echo(f"{name}: {'was not running' if verb == 'stop' else 'runs already'}")
        return
    if act.affected:
        lost = ", ".join(act.affected)
        click.echo(f"{name}: no longer running because of this: {lost}")
        click.echo(click.style(f"  -> `testbed up -l {lab}` starts it", dim=True))


@click.command("restart", help=HELP)
@options
@grace_option
def command(lab_name: str | None, targets: tuple[str, ...], grace: float, as_json: bool) -> None:
    """See HELP."""
    act("restart", lab_name, targets, as_json=as_json, grace=grace)
