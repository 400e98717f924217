"""``testbed start``."""

from __future__ import annotations

import click

from testbed.cli.restart import act, options

HELP = """Start nodes, services or containers that were stopped, or have ended.

\b
  testbed start node1/flanneld      with the settings of its last start
  testbed start node1/container-1   as `docker start` does
  testbed start node1               create it again, with all its steps

Everything else that was stopped by hand stays so. `testbed up -l LAB` starts all.
What was frozen by `testbed fault stop` continues after `testbed fault heal`.
"""


@click.command("start", help=HELP)
@options
def command(lab_name: str | None, targets: tuple[str, ...], as_json: bool) -> None:
    """See HELP."""
    act("start", lab_name, targets, as_json=as_json)
