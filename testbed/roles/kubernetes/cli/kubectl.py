"""``testbed kubectl``."""

from __future__ import annotations

from pathlib import Path

import click

from testbed import owner
from testbed.cli import common
from testbed.requirement import need_root

HELP = """Run kubectl on a lab's cluster, with all rights; exit with its status.

kubectl has the version of the cluster. It runs on this machine, with your files,
current folder, terminal, editor and plugins. KUBECONFIG gives it the cluster, on a
port of 127.0.0.1 that is open while it runs.

Everything after LAB belongs to kubectl, including options. A `--` before it is
optional.

\b
  testbed kubectl k8s-two-node get pods -A -o wide
  testbed kubectl k8s-two-node -- apply -f deployment.yaml
  testbed kubectl k8s-two-node exec -it web-1 sh
"""


@click.command(
    "kubectl", help=HELP, short_help="Run kubectl on a lab's cluster.", cls=common.RunsCommand
)
@common.set_option
@click.argument("lab_name", metavar="LAB", shell_complete=common.complete_labs)
@click.argument("words", nargs=-1, required=True, type=click.UNPROCESSED, metavar="WORD...")
def command(lab_name: str, words: tuple[str, ...]) -> int:
    """See HELP."""
    need_root("`testbed kubectl`")
    from testbed.roles.kubernetes import api_port, client

    context = common.lab_meant(common.make_settings(), lab_name).context()
    client.control_plane(context)  # refuses a lab without a cluster before anything is built
    with owner.giving(_created(words)):
        return api_port.run(context, [str(context.store.binary("kubectl")), *words])


def _created(words: tuple[str, ...]) -> list[Path]:
    """Return the paths to which `kubectl cp` may copy on this machine.

    They are the words without a Pod.
    """
    if "cp" not in words:
        return []
    after = words[words.index("cp") + 1 :]
    return [Path(word) for word in after if ":" not in word and not word.startswith("-")]
