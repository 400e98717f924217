"""``testbed completion``."""

from __future__ import annotations

import click

HELP = """Print the completion script for a shell.

It completes commands, labs and nodes.

\b
  bash: testbed completion bash > /etc/bash_completion.d/testbed
  zsh:  testbed completion zsh > "${fpath[1]}/_testbed"
  fish: testbed completion fish > ~/.config/fish/completions/testbed.fish
"""


@click.command("completion", help=HELP)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """See HELP."""
    from click.shell_completion import get_completion_class

    from testbed.cli import cli

    kind = get_completion_class(shell)
    assert kind is not None, "click supports the three shells above"
    click.echo(kind(cli, {}, "testbed", "_TESTBED_COMPLETE").source())
