"""``testbed attach``."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from testbed import files
from testbed.cli import common
from testbed.errors import TestbedError, UsageError
from testbed.requirement import need_root

if TYPE_CHECKING:
    from testbed.nodes.attachable import Attachable

OPTION = "of_"  #: beginning of the parameters of the options that providers bring


class _Attach(click.Command):
    """The command with the options that providers bring: of labs, and of lists of machines."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        from testbed.labs.attach import attachables
        from testbed.registry import PROVIDERS

        brought: list[click.Parameter] = [
            click.Option(
                [f"--{name}", f"{OPTION}{name}"],
                metavar="NAME",
                help=kind.about,
                shell_complete=_completion(kind),
            )
            for name, kind in attachables().items()
        ]
        of_lists = {
            option.name: option
            for kind in PROVIDERS.usable().values()
            for option in kind.list_options
        }
        brought += map(common.provider_option, of_lists.values())
        return [*brought, *super().get_params(ctx)]


def _completion(kind: type[Attachable]) -> Any:
    def complete(_ctx: Any, _param: Any, incomplete: str) -> list[str]:
        from testbed.settings import settings

        with contextlib.suppress(TestbedError):
            there = kind(settings().setup).labs()
            return [name for name in there if name.startswith(incomplete)]
        return []

    return complete


@click.command("attach", cls=_Attach)
@click.argument("source", required=False, type=click.Path(allow_dash=True))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, allow_dash=True), metavar="FILE",
    help="With SOURCE: write the topology to this file; - is standard output, the default.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="With SOURCE: overwrite an existing file.")
@click.option("--name", metavar="LAB", help="Name of the lab for testbed, if not the same.")
@common.json_option
def command(
    source: str | None,
    output: Path | None,
    force: bool,
    name: str | None,
    as_json: bool,
    **given: str | None,
) -> None:
    """Use a lab or machines that exist already, with `status`, `verify` and your own tests.

    SOURCE is a file that lists machines: an inventory of Ansible, an ssh_config, the
    output of `vagrant ssh-config` or `docker context ls`, or a kubeconfig, for the
    nodes of its cluster; - is standard input. The machines are looked at, and their
    topology is written to standard output, or to the FILE of -o. Edit it, and use it
    with `testbed up FILE`.

    With an option that names a lab of another tool, that lab is attached, and stays
    as it is: `up`, `fault` and other commands that would change it refuse it, and
    `testbed down` only forgets it. After a change of the lab by its own tool, attach
    again.
    """
    if source is not None:
        if any(given.values()):
            raise UsageError("SOURCE and the name of a lab exclude each other")
        if output is not None:
            if as_json:
                raise UsageError("--json prints the topology, so it excludes --output")
            if not force:
                files.refuse_existing([output])
            files.check(output)
        _survey(source, output, name, as_json=as_json)
        return
    for_source = [f"--{name}" for name in common.chosen_for_providers()]
    for_source += ["--output"] if output is not None else ["--force"] if force else []
    if for_source:
        raise UsageError(f"{for_source[0]} needs a SOURCE", hint="name a file that lists machines")
    from testbed.labs.attach import attach

    wanted = [(key.removeprefix(OPTION), lab) for key, lab in given.items() if lab is not None]
    if len(wanted) != 1:
        options = ", ".join(f"--{key.removeprefix(OPTION)} NAME" for key in given)
        raise UsageError(
            "name one lab that exists already", hint=f"options: {options or 'no provider has one'}"
        )
    need_root("`testbed attach`")
    (provider, theirs) = wanted[0]
    lab = attach(common.make_settings(), provider, theirs, name)
    context = lab.remains()
    if as_json:
        common.print_json(
            {"lab": lab.name, "attached": lab.attached, "source": lab.record().source,
             "nodes": {name: name in context.nodes for name in context.topology.nodes}}
        )  # fmt: skip
        return
    running = f"{len(context.nodes)} of {len(context.topology.nodes)} nodes run"
    click.echo(f"{click.style(lab.name, bold=True)}: attached at {lab.attached}, {running}")
    first = next(iter(context.topology.nodes))
    click.echo(
        click.style(
            f"  next: testbed status {lab.name} · testbed shell -l {lab.name} {first} · "
            f"testbed down {lab.name}, which only forgets it",
            dim=True,
        )
    )


def _survey(source: str, output: Path | None, name: str | None, *, as_json: bool) -> None:
    """Write a topology of the machines that a file lists."""
    from testbed.exports.base import dump
    from testbed.labs.survey import lines, survey
    from testbed.topology.variables import escaped

    found = survey(common.make_settings(), source, name, common.chosen_for_providers())
    if as_json:
        common.print_json({"topology": found.plain, "machines": {
            name: {"error": one.error, "words": one.words} for name, one in found.found.items()
        }, "left": found.left})  # fmt: skip
        return
    for line in lines(found):
        click.echo(line, err=True)
    text = f"# {found.what}, by `testbed attach`.\n{dump(escaped(found.plain))}"
    if output is None or files.leads_to_stdout(output):
        files.write(files.STDOUT, text)
        return
    files.write(output, text)
    click.echo(f"{click.style(str(output), bold=True)} written", err=True)
    click.echo(click.style(f"  next: testbed up {output}", dim=True), err=True)
