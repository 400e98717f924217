"""``testbed walk``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from testbed.cli import common, walk_output
from testbed.errors import UsageError
from testbed.requirement import need_root

if TYPE_CHECKING:
    from pathlib import Path

PORT_MAX = 65535
#: Parameters of the request, and of the output for one walk.
REQUEST = ("icmp", "tcp", "udp", "http", "six", "reply", "size", "timeout")
OUTPUT = ("pcapng", "outputs", "expect", "lang")

HELP = """Send one request and show the way of its packets, hop by hop.

\b
  testbed walk node1/container-1 node2/container-2
  testbed walk outside 10.168.0.2 --tcp 8080 --reply
  testbed walk node1/container-1 node2/container-2 --http /

SOURCE is NODE or NODE/CONTAINER, a Pod or a named namespace. TARGET is one of these, a
Service, an address, or a name that SOURCE resolves. Without an option the request is an ICMP
echo, and to a Service a TCP connection.

Every device, chain of netfilter, translation and route that the packet met is a hop, with what
changed and why. ● was seen, ? was asked of the kernel there, ~ is inferred. A packet that is
lost is shown to its last place, with the reason.

\b
  testbed walk node1/container-1 outside -o walk.json -o walk.html
  testbed walk node1/container-1 outside --expect walk.json
  testbed walk --from walk.json --mermaid
  testbed walk --compare walk.json later.json

A path is compared without times, MACs, ids and source ports, and by the names of addresses.

Exit status: 0 the packets arrived, 1 one was lost. With --expect or --compare: 0 the same path,
1 another one.
"""


@click.command("walk", help=HELP)
@common.lab_option
@click.option("--icmp", is_flag=True, help="Send an ICMP echo request.")
@click.option(
    "--tcp", type=click.IntRange(1, PORT_MAX), metavar="PORT", help="Open a TCP connection."
)
@click.option(
    "--udp", type=click.IntRange(1, PORT_MAX), metavar="PORT", help="Send a UDP datagram."
)
@click.option("--http", metavar="URL", help="Send an HTTP request: a URL, or a path on port 80.")
@click.option("-6", "six", is_flag=True, help="Use IPv6.")
@click.option("--reply", is_flag=True, help="Show the way back of the answer, too.")
@click.option(
    "--size", type=click.IntRange(0, 65000), metavar="OCTETS",
    help="Data of an echo or a datagram. Default: 56.",
)  # fmt: skip
@click.option(
    "--timeout", type=click.FloatRange(0.1, 60), default=1.0, metavar="SECONDS",
    help="Time to wait for an answer. Default: 1.",
)  # fmt: skip
@walk_output.options
@click.argument("source", required=False, shell_complete=common.complete_nodes)
@click.argument("target", required=False, shell_complete=common.complete_nodes)
def command(
    lab_name: str | None,
    source: str | None,
    target: str | None,
    icmp: bool,
    tcp: int | None,
    udp: int | None,
    http: str | None,
    six: bool,
    reply: bool,
    size: int | None,
    timeout: float,
    saved: Path | None,
    compare: tuple[Path, Path] | None,
    **output: Any,
) -> int:
    """See HELP."""
    given = _given(source, target, saved, compare)
    if compare:
        return walk_output.compare_saved(*compare, output["form"])
    shown = walk_output.WalkOutput(**output)
    if saved:
        return shown.show(walk_output.load_saved(saved))
    from testbed.walk.request import request_of
    from testbed.walk.run import walk

    need_root("`testbed walk`")
    request = request_of(icmp=icmp, tcp=tcp, udp=udp, http=http, size=size, seconds=timeout)
    with common.live_lab(lab_name) as lab:
        found = walk(lab, *given, request, reply=reply, family=6 if six else 4, seconds=timeout)
    return shown.show(found)


def _given(
    source: str | None, target: str | None, saved: Path | None, compare: tuple[Path, Path] | None
) -> tuple[str, str]:
    """Return source and target; both empty for saved walks.  Raises UsageError."""
    options = [name for name, value in (("--from", saved), ("--compare", compare)) if value]
    if len(options) > 1:
        raise UsageError("--from and --compare exclude each other")
    if options:
        if source or target:
            raise UsageError("nothing is sent for a saved walk", where=options[0],
                             hint="leave out SOURCE and TARGET")  # fmt: skip
        if unused := _options_of(REQUEST):
            raise UsageError("nothing is sent for a saved walk", where=options[0],
                             hint=f"leave out {', '.join(unused)}")  # fmt: skip
        if compare and (unused := _options_of(OUTPUT)):
            raise UsageError("a difference is shown as lines or, with --json, as data",
                             where=options[0], hint=f"leave out {', '.join(unused)}")  # fmt: skip
        return "", ""
    if source is None or target is None:
        raise click.UsageError("wanted SOURCE and TARGET")
    return source, target


def _options_of(names: tuple[str, ...]) -> list[str]:
    """Return those of the options that the command line has, by their parameters' names."""
    context = click.get_current_context()
    return [
        max(one.opts, key=len)
        for one in context.command.params
        if one.name in names
        and context.get_parameter_source(one.name) is ParameterSource.COMMANDLINE
    ]
