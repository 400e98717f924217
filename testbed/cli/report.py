"""``testbed report``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from testbed import files
from testbed.errors import TestbedError, UsageError


@click.command("report")
@click.argument(
    "run", type=click.Path(path_type=Path, exists=True, dir_okay=False, allow_dash=True)
)
@click.option(
    "--html", type=click.Path(path_type=Path, allow_dash=True), metavar="FILE",
    help="Write the report here; - is standard output.",
)  # fmt: skip
@click.option(
    "--markdown", type=click.Path(path_type=Path, allow_dash=True), metavar="FILE",
    help="Append a summary in Markdown, such as to $GITHUB_STEP_SUMMARY; - is standard output.",
)  # fmt: skip
@click.option(
    "--lang",
    default="en",
    metavar="LANGUAGE",
    help="The report's language: en, zh, or one that the claims are translated to.",
)
def command(run: Path, html: Path | None, markdown: Path | None, lang: str) -> int:
    """Write the HTML report of a run, or its summary.

    RUN is the output file of `testbed verify --json`; - is standard input. The
    report is a single HTML file without external resources.
    """
    if html is None and markdown is None:
        raise click.UsageError("name a file: --html FILE or --markdown FILE")
    if html and markdown and files.leads_to_stdout(html) and files.leads_to_stdout(markdown):
        raise click.UsageError("--html and --markdown both name standard output")
    try:
        with click.open_file(str(run), encoding="utf-8") as file:
            data = json.load(file)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"not JSON: {error}",
            where=str(run),
            hint="create one with `testbed verify --json FILE`",
        ) from None
    except OSError as error:
        raise UsageError(
            str(error.strerror), where=str(run), hint="check its permissions"
        ) from None
    page = summary = ""
    try:
        if html:
            from testbed.report.html import render

            page = render(data, lang=lang)
        if markdown:
            from testbed.report.markdown import render as summarize

            summary = summarize(data)
    except TestbedError:
        raise
    except Exception as error:  # whatever is missing in a record that was changed
        raise UsageError(
            f"not the whole record of a run: {type(error).__name__}: {error}",
            where=str(run),
            hint="create one with `testbed verify --json FILE`",
        ) from error
    if html:
        files.write(html, page)
    if markdown:
        files.append(markdown, summary)
    return 0
