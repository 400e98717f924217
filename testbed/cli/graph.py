"""``testbed graph``."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from testbed import files
from testbed.cli import common
from testbed.errors import UsageError
from testbed.requirement import need_root

if TYPE_CHECKING:
    from testbed.observe.graph import Layer
    from testbed.observe.inventory import Inventory

#: Formats by the ending of a file's name.
ENDINGS = {".svg": "svg", ".mmd": "mermaid", ".dot": "dot", ".gv": "dot", ".json": "json"}
LAYERS = ("all", "underlay", "overlay")
WIDTH = 100  # columns, where there is no terminal

HELP = """Draw the network of a running lab as it is now.

Shown are nodes with their devices, bridges with their ports, veth pairs, addresses and routes,
networks and tunnels between nodes, containers, Pods and Services. The default is a tree for the
terminal. LAB is optional if only one lab is running.

Of more than 8 nodes, those that differ only in names and addresses are shown as one.

\b
  testbed graph two-node
  testbed graph two-node --layer underlay
  testbed graph two-node -o two-node.svg
  testbed graph two-node --dot | dot -Tpng > two-node.png
"""


@click.command("graph", help=HELP)
@click.argument("lab", required=False, shell_complete=common.complete_labs)
@click.option("--svg", "form", flag_value="svg", help="Print an SVG picture.")
@click.option("--mermaid", "form", flag_value="mermaid", help="Print a Mermaid flowchart.")
@click.option("--dot", "form", flag_value="dot", help="Print a graph in the language of Graphviz.")
@click.option(
    "--json", "form", flag_value="json",
    help="Print everything that was found as JSON, with all routes, rules, neighbours and "
    "forwarding entries.",
)  # fmt: skip
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, allow_dash=True),
    metavar="FILE",
    help="Write to this file. .svg, .mmd, .dot and .json choose the format.",
)
@click.option(
    "--layer",
    type=click.Choice(LAYERS),
    default="all",
    show_default=True,
    help="underlay: nodes and the networks between them. overlay: containers, bridges, tunnels "
    "and services.",
)
@click.option("--full", is_flag=True, help="Show each node by itself.")
@common.set_option
def command(lab: str | None, form: str | None, output: Path | None, layer: str, full: bool) -> None:
    """See HELP."""
    form = form or (ENDINGS.get(output.suffix, "") if output else "")
    if form == "json" and (layer != "all" or full):
        raise UsageError(
            "JSON has all layers and every node",
            where="--json",
            hint="leave out --layer and --full",
        )
    need_root("`testbed graph`")
    if output:
        files.check(output)
    from testbed.observe.inventory import inventory

    with common.live_lab(lab) as live:
        found = inventory(live)
        absent = [name for name in live.topology.nodes if found.machine(name) is None]
    text = _text(found, form, cast("Layer", layer), full=full, stored=output is not None)
    if output:
        files.write(output, text)
    else:
        click.echo(text, nl=False)
    for name in absent:
        _warn(f"{name} does not run")
    for words in found.warnings:
        _warn(words)
    if form:  # the tree has them
        for machine in found.nodes:
            if machine.error:
                _warn(f"{machine.name}: {machine.error}")


def _warn(words: str) -> None:
    click.echo(f"{click.style('testbed: ', fg='yellow')}{words}", err=True)


def _text(found: Inventory, form: str, layer: Layer, *, full: bool, stored: bool) -> str:
    """Return an inventory in a format; "" is the tree."""
    if form == "json":
        import json

        return json.dumps(found.to_dict(), indent=2) + "\n"
    from testbed.observe import graph
    from testbed.report import branches, diagrams, picture

    drawn: Any = graph.layer(graph.of(found), layer)
    drawn = drawn if full else graph.fold(drawn)
    title = found.lab if layer == "all" else f"{found.lab}, {layer}"
    if form == "svg":
        return picture.page(drawn, title=f"The network of {title}")
    if form == "mermaid":
        return diagrams.mermaid(drawn, title)
    if form == "dot":
        return diagrams.dot(drawn, title)
    width = WIDTH if stored else shutil.get_terminal_size((WIDTH, 24)).columns
    text = "\n".join(branches.lines(drawn, title, width=width)) + "\n"
    return click.unstyle(text) if stored else text
