"""``testbed fault``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from testbed.cli import common
from testbed.errors import NotFound, UsageError
from testbed.faults.model import KINDS, Kind, breakable
from testbed.requirement import need_root

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from testbed.faults.force import Faults
    from testbed.faults.model import Fault
    from testbed.topology.model import Topology

EPILOG = """\b
Faults:
{kinds}

\b
  testbed fault partition node1:node2 --for 10
  testbed fault ls
  testbed fault heal
"""


@click.group(
    "fault",
    epilog=EPILOG.format(
        kinds="\n".join(f"  {kind} {about.form}" for kind, about in KINDS.items())
    ),
)
def command() -> None:
    """Break parts of a lab on purpose, list active faults, and heal them.

    Faults exist only in the lab's own namespaces. They do not affect this machine,
    and `testbed down` removes them with the lab.
    """


def _complete(ctx: click.Context, _param: Any, incomplete: str) -> list[str]:
    """Return nodes, faults and NODE/SERVICE, for shell completion.

    They have the given prefix.
    """
    from testbed.errors import TestbedError
    from testbed.settings import settings

    try:
        topology = common.lab_meant(settings(), ctx.params.get("lab_name")).topology()
    except TestbedError:
        return []
    names = [*topology.nodes, *topology.faults, *common.services_of(topology)]
    return [name for name in names if name.startswith(incomplete)]


def _options(function: Any) -> Any:
    seconds = click.FloatRange(min=0, min_open=True, max=86400)
    limit = click.option(
        "--for", "seconds", type=seconds, metavar="SECONDS",
        help="Wait this long, or until Ctrl-C, then heal the fault.",
    )  # fmt: skip
    return limit(common.lab_option(common.json_option(function)))


class _Break(click.Command):
    """The command whose help lists the words of all roles, which are imported for it."""

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_help_text(ctx, formatter)
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_dl(list(breakable().items()))


def _kind(kind: Kind) -> click.Command:
    """Return the command for a kind of fault."""
    about = KINDS[kind]

    def run(
        words: tuple[str, ...], seconds: float | None, lab_name: str | None, as_json: bool
    ) -> None:
        _apply([kind, *words], seconds=seconds, lab_name=lab_name, as_json=as_json)

    does = f"{about.does[0].upper()}{about.does[1:]}."
    example = f"  Example: testbed fault {about.example}"
    words = click.Argument(
        ["words"], nargs=-1, required=True, metavar=about.form, shell_complete=_complete
    )
    made = (_Break if kind == "break" else click.Command)(
        kind,
        callback=run,
        params=[words],
        help=f"{does}\n\nAfter `heal`: {about.healed}.{example}",
        short_help=does,
    )
    return _with_options(made)


def _with_options(made: click.Command) -> click.Command:
    """Add the options that all kinds share."""

    @_options
    def carrier() -> None: ...

    made.params += reversed(carrier.__click_params__)
    return made


for _each in KINDS:
    command.add_command(_kind(_each))


@command.command("apply")
@click.argument("name", shell_complete=_complete)
@_options
def apply(name: str, seconds: float | None, lab_name: str | None, as_json: bool) -> None:
    """Cause a fault that the lab's topology names."""
    _apply([name], seconds=seconds, lab_name=lab_name, as_json=as_json)


def _faults(lab_name: str | None) -> tuple[Faults, Topology, str]:
    need_root("`testbed fault`")
    from testbed.cli.up import tell
    from testbed.faults.force import Faults
    from testbed.labs.run import Watch

    lab = common.lab_meant(common.make_settings(), lab_name)
    return Faults(lab, Watch(words=tell)), lab.topology(), lab.name


def _apply(
    words: Sequence[str], *, seconds: float | None, lab_name: str | None, as_json: bool
) -> None:
    from testbed.faults.force import fault_of

    faults, topology, lab = _faults(lab_name)
    if len(words) == 1 and words[0] not in topology.faults:
        _refuse_name(words[0], topology)
    fault = fault_of(words, topology)
    try:
        changed = faults.apply(fault)
        if as_json:
            common.print_json({"lab": lab, **_to_dict(fault, topology), "changed": changed})
        else:
            state = "is active" if changed else "was already active"
            click.echo(f"{click.style(fault.words, bold=True)} {state} in {lab}")
            if seconds is None:
                click.echo(click.style(f"  testbed fault heal -l {lab} {fault.words}", dim=True))
        if seconds is not None:
            time.sleep(seconds)
    finally:
        if seconds is not None:
            _end(faults, fault, silent=as_json)


def _refuse_name(name: str, topology: Topology) -> None:
    from testbed.spelling import nearest

    known = ", ".join(topology.faults) or "none"
    raise UsageError(
        f"{topology.name} has no fault {name!r}",
        hint=nearest(name, topology.faults, f"faults: {known}; see docs/topologies.md"),
    )


def _end(faults: Faults, fault: Fault, *, silent: bool) -> None:
    """Heal a fault at the end of its time.

    A second Ctrl-C does not interrupt this.
    """
    from testbed import signals

    with signals.held() as held:
        try:
            healed = faults.heal(lambda one: one.key == fault.key, kinds=(fault.kind,))
        except NotFound:  # the lab was removed meanwhile, and the fault with it
            healed = []
    if healed and not silent:
        click.echo(f"{click.style(fault.words, bold=True)} is healed")
    held.check()


@command.command("ls")
@common.lab_option
@common.json_option
def ls(lab_name: str | None, as_json: bool) -> None:
    """List the active faults, as found on the machine."""
    faults, topology, lab = _faults(lab_name)
    seen = faults.in_force()
    if as_json:
        rows = [{**_to_dict(one.fault, topology), "seen": one.how} for one in seen]
        common.print_json({"lab": lab, "faults": rows})
        return
    common.table(
        [(one.fault.words, _name(one.fault, topology), one.how) for one in seen],
        ("fault", "name", "seen"),
    )
    if not seen:
        click.echo(f"no faults in {lab}", err=True)


@command.command("heal")
@click.argument("words", nargs=-1, metavar="[NAME | KIND [TARGET]]", shell_complete=_complete)
@common.lab_option
@common.json_option
def heal(words: tuple[str, ...], lab_name: str | None, as_json: bool) -> None:
    """Heal all faults, or the selected ones.

    `heal` heals all, `heal loss` all of a kind, `heal loss node2` one with any
    amount. NAME is a fault in the topology. It is no error if the fault is not active.
    """
    faults, topology, lab = _faults(lab_name)
    meant, kinds = _meant(words, topology)
    healed = faults.heal(meant, kinds=kinds)
    if as_json:
        common.print_json({"lab": lab, "healed": [_to_dict(one, topology) for one in healed]})
        return
    for one in healed:
        click.echo(f"{click.style(one.words, bold=True)} is healed")
    if not healed:
        what = f"fault {' '.join(words)} is not active" if words else "no faults"
        click.echo(f"{what} in {lab}")


def _meant(
    words: tuple[str, ...], topology: Topology
) -> tuple[Callable[[Fault], bool], Sequence[str]]:
    """Return a filter for the faults that ``heal`` selects, and their kinds.

    Raises UsageError for words that select no fault.
    """
    if not words:
        return (lambda _: True), tuple(KINDS)
    if len(words) == 1 and words[0] in topology.faults:
        named = topology.faults[words[0]]
        return (lambda fault: fault.key == named.key), (named.kind,)
    if words[0] not in KINDS:
        from testbed.spelling import nearest

        known = [*topology.faults, *KINDS]
        raise UsageError(f"no fault {words[0]!r}", hint=nearest(words[0], known))
    if len(words) == 1:
        return (lambda _: True), words
    node, colon, peer = words[1].partition(":")
    target = ":".join(sorted((node, peer))) if colon else words[1]

    def meant(fault: Fault) -> bool:
        # The amount is ignored, but each word of `break` is a fault of its own.
        what = words[2] if fault.what and len(words) > 2 else fault.what
        return (fault.target, fault.what) == (target, what)

    return meant, words[:1]


def _name(fault: Fault, topology: Topology) -> str:
    """Return the topology's name of a fault, with any amount.

    It is empty if the fault has no name.
    """
    return next((name for name, one in topology.faults.items() if one.key == fault.key), "")


def _to_dict(fault: Fault, topology: Topology) -> dict[str, Any]:
    return {
        "fault": fault.words,
        "name": _name(fault, topology) or None,
        "kind": fault.kind,
        "target": fault.target,
        "amount": fault.amount or None,
    }
