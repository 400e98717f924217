"""``testbed proxy``."""

from __future__ import annotations

import signal

import click

from testbed.cli import common
from testbed.requirement import need_root

STREAMS = (0, 1, 2)  # standard input, output and error


@click.command("proxy")
@common.lab_option
@click.argument("target", metavar="NODE|TARGET", shell_complete=common.complete_nodes)
def command(lab_name: str | None, target: str) -> int:
    """Connect standard input and output to a port of a node or container.

    NODE alone is its SSH server, for the option ProxyCommand of ssh; `testbed export --to
    ssh-config` writes it. A node without a server gets one for this connection. TARGET is that of
    `testbed forward`: NODE:PORT, NODE/CONTAINER:PORT or NODE:HOST:PORT.
    """
    need_root("`testbed proxy`")
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # how ssh ends it, which is no failure
    if ":" in target:
        return _to_port(lab_name, target)
    from testbed.labs.live import LiveLab
    from testbed.nodes.ssh import sshd

    settings = common.make_settings()
    meant = common.lab_meant(settings, lab_name)
    meant.refuse_attached("changed: sshd needs files on its nodes")
    lab = LiveLab(meant.context())
    login = sshd.login(lab.node(target), settings.store)
    lab.close()
    return login.join()


def _to_port(lab_name: str | None, target: str) -> int:
    from testbed.labs import forward

    meant = forward.target(target)
    with common.live_lab(lab_name) as lab:
        way = forward.way(meant, *common.place(lab, meant.place))
    return way.connect(STREAMS[:2], STREAMS[2])
