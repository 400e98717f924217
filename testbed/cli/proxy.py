"""``testbed proxy``."""

from __future__ import annotations

import signal

import click

from testbed.cli import common
from testbed.requirement import need_root


@click.command("proxy")
@common.lab_option
@click.argument("node", shell_complete=common.complete_nodes)
def command(lab_name: str | None, node: str) -> int:
    """Connect standard input and output to the SSH server of a node.

    For the option ProxyCommand of ssh; `testbed export --to ssh-config` writes it. A node without
    a server gets one for this connection.
    """
    need_root("`testbed proxy`")
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # how ssh ends it, which is no failure
    from testbed.labs.live import LiveLab
    from testbed.nodes.ssh import sshd

    settings = common.make_settings()
    meant = common.lab_meant(settings, lab_name)
    meant.refuse_attached("changed: sshd needs files on its nodes")
    lab = LiveLab(meant.context())
    login = sshd.login(lab.node(node), settings.store)
    lab.close()
    return login.join()
