"""``testbed claims``."""

from __future__ import annotations

import shutil
import textwrap
from typing import TYPE_CHECKING, get_args

import click

from testbed.claims.model import Kind, Verdict
from testbed.cli import common
from testbed.errors import CatalogueError, UsageError

if TYPE_CHECKING:
    from testbed.claims.model import Claim


@click.group("claims", invoke_without_command=True)
@click.option("--document", "documents", multiple=True, metavar="NNN", help="Only this document.")
@click.option(
    "--kind", "kinds", multiple=True, type=click.Choice(get_args(Kind)), help="Only this kind."
)
@click.option("--needs", "needs", multiple=True, metavar="FEATURE", help="Only with this need.")
@click.option(
    "--verdict", "verdicts", multiple=True, type=click.Choice(get_args(Verdict)),
    help="Only with this expected verdict.",
)  # fmt: skip
@common.json_option
@click.pass_context
def command(
    ctx: click.Context,
    documents: tuple[str, ...],
    kinds: tuple[str, ...],
    needs: tuple[str, ...],
    verdicts: tuple[str, ...],
    as_json: bool,
) -> None:
    """List the claims of the catalogue, or show one.

    Different options narrow the list. A repeated option accepts any of its values.
    """
    if ctx.invoked_subcommand is not None:
        return
    from testbed.claims.catalogue import claims

    found = [
        claim
        for claim in claims().values()
        if (not documents or claim.document in documents)
        and (not kinds or claim.kind in kinds)
        and (not needs or set(needs) & set(claim.needs))
        and (not verdicts or {claim.expect, *(o.expect for o in claim.otherwise)} & set(verdicts))
    ]
    if as_json:
        common.print_json([claim.to_dict() for claim in found])
        return
    width = shutil.get_terminal_size((120, 24)).columns
    longest = max((len(claim.id) for claim in found), default=0)
    for claim in found:
        start = f"{claim.document}  {claim.id:<{longest}}  {claim.expect:<12}  "
        text = textwrap.shorten(claim.claim, max(30, width - len(start)), placeholder=" …")
        click.echo(start + text)
    click.echo(f"{len(found)} of {len(claims())} claims", err=True)


def complete_claims(_ctx: object, _param: object, incomplete: str) -> list[str]:
    """Return the claim IDs with this prefix, for shell completion."""
    from testbed.claims.catalogue import claims

    try:
        return [name for name in claims() if name.startswith(incomplete)]
    except CatalogueError:  # the command itself reports it
        return []


@command.command("show")
@click.argument("claim", shell_complete=complete_claims)
@common.json_option
def show(claim: str, as_json: bool) -> None:
    """Show one claim and its check."""
    from testbed.claims.catalogue import claims

    found = claims().get(claim)
    if found is None:
        from testbed.spelling import closest

        close = closest(claim, claims())
        raise UsageError(
            f"no claim {claim!r}",
            hint=f"did you mean {close}?" if close else "`testbed claims` lists them",
        )
    if as_json:
        common.print_json(found.to_dict())
    else:
        _show(found)


def _show(claim: Claim) -> None:
    width = min(100, shutil.get_terminal_size((100, 24)).columns)
    click.echo(click.style(claim.id, bold=True))
    rows = [
        ("document", f"{claim.document}, {claim.place}"),
        ("claim", claim.claim),
        ("quoted", " · ".join(claim.quoted)),
        ("kind", claim.kind),
        ("needs", ", ".join(claim.needs)),
        ("check", claim.check),
        ("checked by", _checked_by(claim) if claim.is_testable else ""),
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
        run = f"--claim {claim.id}"
        click.echo(f"  {'run it':<10} testbed verify --all {run}")
        click.echo(f"  {'':<10} or testbed verify LAB {run} on a lab that is up")


def _checked_by(claim: Claim) -> str:
    """Return file, line and name of a claim's test, without loading a suite."""
    import ast

    from testbed.claims.catalogue import FOLDER as folder  # noqa: N811

    for path in sorted(folder.glob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        if f'"{claim.id}"' not in text:
            continue
        for part in ast.walk(ast.parse(text)):
            marks = part.decorator_list if isinstance(part, ast.FunctionDef) else []
            if any(f"'{claim.id}'" in ast.unparse(mark) for mark in marks):
                assert isinstance(part, ast.FunctionDef)
                return f"{folder.name}/{path.name}:{part.lineno}, {part.name}"
    return f'no test yet: mark one with @pytest.mark.testbed_claim("{claim.id}")'
