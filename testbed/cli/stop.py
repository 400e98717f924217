"""``testbed stop``."""

from __future__ import annotations

import click

from testbed.cli.restart import act, grace_option, options

HELP = """Stop nodes, services or containers, gracefully.

\b
  testbed stop node1/flanneld       SIGTERM, and SIGKILL after the grace
  testbed stop node1/container-1    as `docker stop` does
  testbed stop node1                stop its services, then remove it; its changed files are lost

It stays stopped, and `testbed status` tells so, until `testbed start` or the next
`testbed up`. A repeated `stop` does nothing.

`testbed fault stop` is something else: it freezes processes, which keep their
state and connections and continue later. `testbed fault kill` kills at once.
"""


@click.command("stop", help=HELP)
@options
@grace_option
def command(lab_name: str | None, targets: tuple[str, ...], grace: float, as_json: bool) -> None:
    """See HELP."""
    act("stop", lab_name, targets, as_json=as_json, grace=grace)
