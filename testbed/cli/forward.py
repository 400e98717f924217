"""``testbed forward``."""

from __future__ import annotations

import ipaddress

import click

from testbed.cli import common
from testbed.requirement import need_root

HELP = """Open a port of a node or container on this machine, until Ctrl-C.

TARGET is NODE:PORT or NODE/CONTAINER:PORT. NODE:HOST:PORT is a port of a host that the
node reaches, with an IPv6 address in brackets. LOCAL is a port of 127.0.0.1, or
ADDRESS:PORT; 0 is any free port. Its default is the port of TARGET.

\b
  testbed forward node1:80 8080             http://127.0.0.1:8080/ is port 80 of node1
  testbed forward node1/container-1:80 0    of a container; prints the port
  testbed forward pc:10.2.0.9:80 8080       of another host, as pc reaches it

Each connection is carried by a program on the node. This machine's rules and routes are
not changed. TCP only.
"""


@click.command("forward", help=HELP)
@common.lab_option
@common.json_option
@click.argument("target", metavar="TARGET", shell_complete=common.complete_nodes)
@click.argument("local", metavar="[LOCAL]", required=False)
def command(lab_name: str | None, as_json: bool, target: str, local: str | None) -> None:
    """See HELP."""
    need_root("`testbed forward`")
    from testbed.labs import forward

    meant = forward.target(target)
    address, port = forward.local(local, meant.port)
    with common.live_lab(lab_name) as lab:
        way = forward.way(meant, *common.place(lab, meant.place))

    def tell(words: str) -> None:
        click.echo(f"testbed: {words}", err=True)

    server = forward.Forwarder(way, address, port, tell)
    if as_json:
        common.print_json(
            {"lab": lab.name, "target": target, "address": server.address, "port": server.port}
        )
    else:
        host = f"[{server.address}]" if ":" in server.address else server.address
        click.echo(f"{host}:{server.port} is {target}; Ctrl-C ends it")
    if not ipaddress.ip_address(server.address).is_loopback:
        tell("other machines can connect to this port, too")
    try:
        server.serve()
    finally:
        server.close()
