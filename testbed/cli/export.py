"""``testbed export``."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from testbed import files
from testbed.cli import common
from testbed.errors import LabError, UsageError
from testbed.registry import EXPORTS
from testbed.requirement import need_root

if TYPE_CHECKING:
    from testbed.exports.base import Export, Exported, Subject
    from testbed.labs.lab import Lab, Settings
    from testbed.nodes.base import Node
    from testbed.topology.model import Topology


def complete_formats(_ctx: object, _param: object, incomplete: str) -> list[str]:
    return [name for name in EXPORTS if name.startswith(incomplete)]


def complete_subjects(ctx: Any, param: Any, incomplete: str) -> list[Any]:
    from click.shell_completion import CompletionItem

    labs = common.complete_labs(ctx, param, incomplete)
    others = common.complete_topologies(ctx, param, incomplete)
    return [*map(CompletionItem, labs), *(one for one in others if one.value not in labs)]


class _Command(common.VariantCommand):
    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        with formatter.section("Formats"):
            formatter.write_dl([(name, one.about) for name, one in EXPORTS.usable().items()])


HELP = """Write a lab as the files of another tool.

A running lab is exported as it was created. For a file, or the name of a shipped
topology, no lab need be up. The formats ansible and ssh-config need a running lab.

Parts of the lab that the format cannot express are listed on standard error.

\b
  testbed export two-node --to compose -o compose.yaml
  testbed export lab.yaml --to mermaid
"""


@click.command("export", help=HELP, cls=_Command)
@click.argument("what", metavar="LAB|FILE|NAME", shell_complete=complete_subjects)
@click.option(
    "--to",
    "form",
    required=True,
    metavar="FORMAT",
    shell_complete=complete_formats,
    help="The format; see below.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(allow_dash=True),
    metavar="FILE|DIR",
    help="Write to this file or folder; - is standard output, the default for one file.",
)
@click.option("--force", is_flag=True, help="Overwrite existing files.")
@common.variant_options
@common.json_option
def command(
    what: str,
    form: str,
    output: str | None,
    force: bool,
    as_json: bool,
    **variant: str | int | None,
) -> None:
    """See HELP."""
    if as_json and output:
        raise UsageError("--json prints the files, so it excludes --output", where="--json")
    export = _format(form)
    settings = common.make_settings()
    subject = _subject(settings, what, variant)
    export.check(subject.topology)
    exported = export.export(subject)
    left_out = export.left_out(subject.topology, exported)
    if as_json:
        common.print_json(
            {
                "lab": subject.topology.name,
                "format": export.name,
                "files": dict(exported.files),
                "left_out": [one.to_dict() for one in left_out],
            }
        )
        return
    _write(exported, export.name, output, force=force)
    for one in left_out:
        click.echo(f"{click.style('left out:', fg='yellow')} {one}", err=True)


def _format(name: str) -> Export:
    if name not in EXPORTS:
        from testbed.spelling import nearest

        hint = nearest(name, [*EXPORTS], f"formats: {', '.join(EXPORTS)}")
        raise UsageError(f"no export format {name!r}", where="--to", hint=hint)
    return EXPORTS[name]


def _subject(settings: Settings, what: str, variant: Mapping[str, Any]) -> Subject:
    from testbed.exports.base import Subject

    lab = _recorded(settings, what, variant)
    topology = common.recorded(lab) if lab else common.load_variant(what, **variant)

    def nodes() -> Mapping[str, Node]:
        need_root("the export of a running lab")
        return _nodes(lab or _lab_of(settings, topology), topology, what)

    # The other tool may have another home folder, or another user's.
    places = {"TESTBED_STATE": settings.state.path, "TESTBED_CACHE": settings.store.folder}
    env = ("env", *(f"{name}={path}" for name, path in places.items()))
    # -P: the other tool may run in a folder of another user, who could put a testbed there.
    own = (*env, sys.executable, "-P", "-m", "testbed")
    return Subject(topology, nodes, settings.store, own)


def _recorded(settings: Settings, what: str, variant: Mapping[str, Any]) -> Lab | None:
    """Return the lab that a name means; None for a topology, or for a variant of one."""
    from testbed.labs.lab import Lab
    from testbed.topology.load import is_path

    changed = any(value is not None for value in variant.values())
    known = not changed and not is_path(what) and settings.state.read(what)
    return Lab(what, settings) if known else None


def _lab_of(settings: Settings, topology: Topology) -> Lab:
    """Return the lab of a topology.

    Raises UsageError if the lab of this name was created from another file.
    """
    from testbed.labs import origin
    from testbed.labs.lab import Lab

    if record := settings.state.read(topology.name):
        origin.refuse_other(topology, record)
    return Lab(topology.name, settings)


def _nodes(lab: Lab, topology: Topology, what: str) -> Mapping[str, Node]:
    """Return the running nodes of a lab.

    Raises NoSuchLab, LabError if a node of the topology does not run.
    """
    nodes = common.whole(lab).nodes
    if absent := [name for name in topology.nodes if name not in nodes]:
        raise LabError(
            f"lab {lab.name} has no {', '.join(absent)}",
            hint=f"`testbed up {what}` updates the lab",
        )
    return nodes


def _write(exported: Exported, form: str, output: str | None, *, force: bool) -> None:
    names = list(exported.files)
    if output is None or files.leads_to_stdout(Path(output)):
        if len(names) > 1:
            raise UsageError(
                f"{form} has {len(names)} files for this lab: {', '.join(names)}",
                hint="name a folder: --output DIR",
            )
        files.write(files.STDOUT, exported.files[names[0]])
        return
    place = Path(output)
    into = len(names) > 1 or output.endswith(os.sep) or place.is_dir()
    if into:
        written = {place / name: text for name, text in exported.files.items()}
    else:
        written = {place: exported.files[names[0]]}
    if not force:
        files.refuse_existing(written)
    for path, text in written.items():
        if into:
            _make(path.parent)
        files.write(path, text)
    click.echo(f"{', '.join(map(str, written))} written", err=True)


def _make(folder: Path) -> None:
    from testbed import owner

    try:
        owner.make(folder)
    except OSError as error:
        raise UsageError(f"cannot create {folder}: {error.strerror}", where="--output") from error
