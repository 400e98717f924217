"""``testbed diff``."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import click

from testbed.cli import common
from testbed.errors import UsageError
from testbed.requirement import need_root

if TYPE_CHECKING:
    from collections.abc import Iterable

    from click.shell_completion import CompletionItem

    from testbed.labs.difference import Effect
    from testbed.labs.lab import Lab
    from testbed.topology.model import Topology

EXIT_DIFFERENT = 1

HELP = """Show what `up` would change on a running lab.

TOPOLOGY is a topology file, or the name of a lab, which is compared with the file that
it came from, as it is now. Without it, the only running lab is meant.

Shown are nodes that would be created, removed or created again, with the keys of the
file that are the reason, before and after; containers; values that change on a running
node; and parts of the lab that have gone and would be restored. Nothing is changed.

\b
  testbed diff                        the running lab, and the file that it came from
  testbed diff two-node               the same for one of several labs
  testbed diff --replace other.yaml   before `testbed up --replace other.yaml`

Options such as --backend are those of `up`: give the same ones.

Exit status 0: no difference. 1: some differences.
"""


def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete labs and topologies."""
    from click.shell_completion import CompletionItem

    labs = [CompletionItem(name) for name in common.complete_labs(ctx, param, incomplete)]
    return [*labs, *common.complete_topologies(ctx, param, incomplete)]


@click.command("diff", cls=common.VariantCommand, help=HELP)
@click.argument("topology", required=False, shell_complete=complete)
@common.variant_options
@common.artifact_option
@click.option("--replace", is_flag=True, help="Compare a lab that came from another file, too.")
@common.json_option
def command(
    topology: str | None,
    artifacts: tuple[str, ...],
    replace: bool,
    as_json: bool,
    **variant: Any,
) -> int:
    """See HELP."""
    need_root("`testbed diff`")
    from testbed.labs import origin
    from testbed.labs.difference import of_lab
    from testbed.labs.lab import Lab

    settings = common.make_settings(artifacts=artifacts)
    if topology is None or topology in settings.state.labs():
        lab = common.lab_meant(settings, topology)
        wanted = _file_of(lab, variant)
    else:
        wanted = common.load_variant(topology, artifacts, **variant)
        lab = Lab(wanted.name, settings)
        lab.refuse_attached("compared")
        record = lab.record()
        try:
            origin.refuse_other(wanted, record)
        except UsageError as error:
            if not replace:
                error.hint = "`testbed diff --replace` shows the changes of `up --replace`"
                raise
    effects = of_lab(lab, wanted)
    if as_json:
        rows = [one.to_dict() for one in effects]
        common.print_json({"lab": lab.name, "file": wanted.file, "differences": rows})
    elif effects:
        click.echo(f"{click.style(lab.name, bold=True)} differs from {wanted.source}:")
        show(effects)
    else:
        click.echo(f"{lab.name} is as {wanted.source} says")
    return EXIT_DIFFERENT if effects else 0


def show(effects: Iterable[Effect]) -> None:
    """Show differences, one line for each part and each reason."""
    colours = {"+": "green", "-": "red", "~": "yellow"}
    for effect in effects:
        for line in effect.lines():
            sign, rest = line[:1], line[1:]
            click.echo(f"  {click.style(sign, fg=colours.get(sign))}{rest}")


def _file_of(lab: Lab, variant: dict[str, Any]) -> Topology:
    """Return the topology of the file that a lab came from, as it is now."""
    from testbed.labs import origin

    lab.refuse_attached("compared")
    record = lab.record()
    if not origin.is_known(record.source):
        raise UsageError(
            f"lab {lab.name} was created from {origin.words(record)}",
            hint="name the topology file: testbed diff FILE",
        )
    found = common.load_variant(record.source, (), **variant)
    return found if found.name == lab.name else dataclasses.replace(found, name=lab.name)
