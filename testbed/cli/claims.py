"""``testbed claims``."""

from __future__ import annotations

import shutil
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from testbed.claims.model import EXPECTED, Kind
from testbed.cli import common
from testbed.errors import UsageError

if TYPE_CHECKING:
    from testbed.claims.catalogue import Catalogue
    from testbed.claims.model import Claim


@click.group("claims", invoke_without_command=True)
@common.catalogue_option
@click.option(
    "--document", "documents", multiple=True, metavar="ID",
    shell_complete=common.complete_documents, help="Only this document.",
)  # fmt: skip
@click.option(
    "--kind", "kinds", multiple=True, type=click.Choice(get_args(Kind)), help="Only this kind."
)
@click.option("--needs", "needs", multiple=True, metavar="FEATURE", help="Only with this need.")
@click.option(
    "--verdict", "verdicts", multiple=True, type=click.Choice(EXPECTED),
    help="Only with this expected verdict.",
)  # fmt: skip
@click.option(
    "--by", "by", type=click.Choice(["provider"]),
    help="Show the verdict of each claim with each provider, and the reasons where they differ.",
)  # fmt: skip
@common.json_option
@click.pass_context
def command(
    ctx: click.Context,
    catalogues: tuple[str, ...],
    documents: tuple[str, ...],
    kinds: tuple[str, ...],
    needs: tuple[str, ...],
    verdicts: tuple[str, ...],
    by: str | None,
    as_json: bool,
) -> None:
    """List the claims of a catalogue, show one, or begin a catalogue of your own.

    Different options narrow the list. A repeated option accepts any of its values.
    """
    if ctx.invoked_subcommand is not None:
        return
    from testbed.claims.choose import choose

    catalogue = choose(catalogues)
    for document in documents:
        if document not in catalogue.documents:
            known = ", ".join(catalogue.documents)
            raise UsageError(f"no document {document!r}", hint=f"there are: {known}")
    found = [
        claim
        for claim in catalogue.claims.values()
        if (not documents or claim.document in documents)
        and (not kinds or claim.kind in kinds)
        and (not needs or set(needs) & set(claim.needs))
        and (not verdicts or {claim.expect, *(o.expect for o in claim.otherwise)} & set(verdicts))
    ]
    if by is not None:
        _by_provider(catalogue, found, as_json=as_json)
        return
    if as_json:
        common.print_json([claim.to_dict() for claim in found])
        return
    width = shutil.get_terminal_size((120, 24)).columns
    longest = max((len(claim.id) for claim in found), default=0)
    widest = max((len(claim.document) for claim in found), default=0)
    for claim in found:
        start = f"{claim.document:<{widest}}  {claim.id:<{longest}}  {claim.expect:<12}  "
        text = textwrap.shorten(claim.claim, max(30, width - len(start)), placeholder=" …")
        click.echo(start + text)
    click.echo(f"{len(found)} of {len(catalogue.claims)} claims", err=True)


def _by_provider(catalogue: Catalogue, claims: list[Claim], *, as_json: bool) -> None:
    """Print the verdicts of claims with each provider."""
    from testbed.suites.by_provider import reasons, table, verdicts

    some = verdicts(catalogue, claims)
    if as_json:
        common.print_json(
            [
                {"id": name, "verdicts": {one: cell.to_dict() for one, cell in row.items()}}
                for name, row in some.items()
            ]
        )
        return
    width = shutil.get_terminal_size((120, 24)).columns
    rows = table(some)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (f"{word:<{width}}" for word, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())
    for provider, counted in reasons(some).items():
        click.echo(f"\n{provider}:")
        for one, count in counted.most_common():
            text = f"{one.verdict}: {one.why}"
            click.echo(f"{count:6}  {textwrap.fill(text, width - 8, subsequent_indent=' ' * 8)}")
    click.echo(f"{len(claims)} of {len(catalogue.claims)} claims", err=True)


@command.command("show")
@click.argument("claim", shell_complete=common.complete_claims)
@common.catalogue_option
@common.json_option
@click.pass_context
def show(ctx: click.Context, claim: str, catalogues: tuple[str, ...], as_json: bool) -> None:
    """Show one claim and its check."""
    del catalogues
    from testbed.claims.choose import choose

    given = common.given_catalogues(ctx)
    catalogue = choose(given)
    found = catalogue.claim(claim)
    if as_json:
        common.print_json(found.to_dict())
    else:
        _show(found, catalogue, given)


@command.command("new")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
def new(folder: Path) -> None:
    """Begin a catalogue in DIR/claims, with a topology beside it if there is none.

    It has one claim, a check that fails until you complete it, and a way to
    break the lab. Existing files are kept. See docs/claims.md.
    """
    from testbed.claims.catalogue import shown
    from testbed.claims.skeleton import create

    for path in create(folder):
        click.echo(shown(path))


def _show(claim: Claim, catalogue: Catalogue, given: tuple[str, ...]) -> None:
    width = min(100, shutil.get_terminal_size((100, 24)).columns)
    click.echo(click.style(claim.id, bold=True))
    rows = [
        ("document", _document(claim, catalogue)),
        ("claim", claim.claim),
        ("quoted", " · ".join(claim.quoted)),
        ("kind", claim.kind),
        ("needs", ", ".join(claim.needs)),
        ("check", claim.check),
        ("checked by", _checked_by(claim, catalogue)),
        ("expected", claim.expect),
        ("why", claim.why),
    ]
    for other in claim.otherwise:
        when = ", ".join(f"{name} {value}" for name, value in other.when.items())
        rows += [(f"if {when}", other.expect), ("why", other.why)]
    for name, text in rows:
        if text:
            click.echo(
                textwrap.fill(
                    text,
                    width,
                    initial_indent=f"  {name:<10} ",
                    subsequent_indent=" " * 13,
                    break_on_hyphens=False,  # IDs contain hyphens
                )
            )
    if claim.is_testable:
        run = " ".join([*(f"--catalogue {name}" for name in given), f"--claim {claim.id}"])
        click.echo(f"  {'run it':<10} testbed verify --all {run}")
        click.echo(f"  {'':<10} or testbed verify LAB {run} on a running lab")


def _document(claim: Claim, catalogue: Catalogue) -> str:
    document = catalogue.documents[claim.document]
    return ", ".join(filter(None, (f"{document.id} {document.title}", claim.place)))


def _checked_by(claim: Claim, catalogue: Catalogue) -> str:
    """Return file, line and name of a claim's test, without loading it."""
    place = catalogue.checked_by(claim.id)
    return f"{place.file.parent.name}/{place.file.name}:{place.line}, {place.name}" if place else ""
