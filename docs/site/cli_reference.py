"""The page on the command line, from the commands themselves."""

from __future__ import annotations

import inspect
import re

import click

from testbed.cli import cli

HEAD = """# Command line

Every command with its options, as `testbed COMMAND --help` prints them.
"""
#: Marks a paragraph whose lines are not joined (click's own sign).
AS_IS = "\b"


def page() -> str:
    """Return the page in Markdown."""
    context = click.Context(cli, info_name="testbed", **cli.context_settings)
    return HEAD + "\n" + "\n".join(section(cli, context, 2))


def section(command: click.Command, context: click.Context, level: int) -> list[str]:
    """Return the headings, texts and tables of a command and of those below it."""
    lines = [f"{'#' * level} {context.command_path}", ""]
    lines += paragraphs(command.help)
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    lines += ["```text", usage, "```", "", *options(command, context), *paragraphs(command.epilog)]
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            if below is None or below.hidden:
                continue
            inner = click.Context(below, info_name=name, parent=context)
            lines += section(below, inner, level if command is cli else level + 1)
    return lines


def options(command: click.Command, context: click.Context) -> list[str]:
    """Return the table of a command's options."""
    records = [
        record
        for param in command.get_params(context)
        if isinstance(param, click.Option) and (record := param.get_help_record(context))
    ]
    rows = [f"| `{cell(names)}` | {cell(about)} |" for names, about in records]
    return ["| option | meaning |", "|---|---|", *rows, ""] if rows else []


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def paragraphs(text: str | None) -> list[str]:
    """Return a help text in Markdown; lines that click leaves as they are become a block."""
    lines = []
    for part in re.split(r"\n\s*\n", inspect.cleandoc(text or "")):
        if part.strip().startswith(AS_IS):
            lines += ["```text", inspect.cleandoc(part.strip().removeprefix(AS_IS)), "```", ""]
        elif part:
            lines += [part.strip().replace("<", "&lt;"), ""]
    return lines
