"""Shared parts of the commands: the selected lab, options, output."""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from testbed.errors import LabError, NoSuchLab, NoSuchNode, TestbedError, UsageError
from testbed.registry import PROVIDERS

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from testbed.artifacts.config import Policy
    from testbed.artifacts.source import Preference
    from testbed.claims.catalogue import Catalogue
    from testbed.labs.lab import Lab, Settings
    from testbed.labs.live import LiveContainer, LiveLab
    from testbed.nodes.base import Node, ProviderOption
    from testbed.progress import Log
    from testbed.steps.context import Context
    from testbed.topology.model import Topology

F = TypeVar("F", bound=Callable[..., Any])


def make_settings(
    *,
    artifacts: tuple[str, ...] = (),
    pull: Policy | None = None,
    images_from: tuple[str, ...] = (),
    way: Preference | None = None,
    chosen: Mapping[str, str] | None = None,
) -> Settings:
    """Return the settings with the options of :func:`artifact_option` and :func:`image_options`.

    ``way`` is the value of :func:`way_option`, ``chosen`` has those of :func:`for_providers`.

    The progress of builds is shown on standard error.
    """
    from testbed.settings import settings

    overrides: dict[str, str] = {}
    for given in artifacts:
        name, equals, path = given.partition("=")
        if not equals or not name or not path:
            raise UsageError("wanted NAME=PATH", where=f"--artifact {given}")
        overrides[name] = path
    found = settings(
        overrides=overrides,
        progress=tell_artifact,
        pull=pull,
        images_from=images_from,
        way=way,
        chosen=chosen,
    )
    tell_unseen(found.broken.values())
    return found


def tell_unseen(errors: Iterable[TestbedError]) -> None:
    """Print the reasons that labs of some providers are not seen."""
    for error in errors:
        click.echo(f"testbed: {error.message}; its labs are not shown\n  -> {error.hint}", err=True)


@functools.cache
def _log() -> Log:
    """Return the progress log for a standard error that is not a terminal."""
    from testbed.progress import Log

    return Log(lambda line: click.echo(line, err=True))


def tell_artifact(thing: str, words: str, *, ended: bool = False) -> None:
    """Show the progress of an artifact's build on standard error."""
    line = f"  {click.style(thing, bold=True)}: {words}"
    if sys.stderr.isatty():
        click.echo(line, err=True)
    elif ended:
        _log().end(thing, line)
    else:
        _log().tell(thing, line)


def tell_fix(thing: str, words: str, *, ended: bool = False) -> None:
    """Show the progress of `doctor --fix` on standard output.

    Artifacts have a progress of their own.
    """
    if sys.stdout.isatty():
        if not ended:
            click.echo(f"  {words}")
    elif ended:
        _log().end(thing, f"  {thing}: {words}")
    else:
        _log().tell(thing, f"  {thing}: {words}")


def lab_meant(settings: Settings, name: str | None) -> Lab:
    """Return the lab of that name, or the default lab.

    The default is TESTBED_LAB or the only running lab. The path of a topology file selects the lab
    that was created from it, with :func:`set_option` the one with these values of the file's
    variables. Raises NoSuchLab, UsageError.
    """
    from testbed.labs import origin
    from testbed.labs.lab import Lab, labs

    name = name or os.environ.get("TESTBED_LAB")
    variables = values_given()
    if name:
        return Lab(origin.named(settings, name, variables), settings)
    there = labs(settings)
    if not there:
        raise NoSuchLab("no lab is up", hint="`testbed up two-node` creates one")
    if len(there) > 1:
        raise UsageError(
            f"several labs are up: {', '.join(there)}",
            hint=f"choose one: {_how_to_name(there[0])}, or set TESTBED_LAB",
        )
    origin.refuse_other_values(settings.state.read(there[0]), variables)
    return Lab(there[0], settings)


def live_lab(name: str | None) -> LiveLab:
    """Return the running lab of that name, or the default lab, for a ``with`` block."""
    from testbed.labs.live import LiveLab

    return LiveLab(lab_meant(make_settings(), name).context())


def place(lab: LiveLab, where: str) -> tuple[Node, LiveContainer | None]:
    """Return the node of NODE or NODE/CONTAINER, and the container or None.

    Raises NoSuchNode, NoSuchContainer.
    """
    name, slash, container = where.partition("/")
    try:
        node = lab.node(name)
    except NoSuchNode as error:
        from testbed.labs.lab import labs

        if name in labs(make_settings()):
            command = click.get_current_context().info_name
            error.hint = f"{name} is a lab: `testbed {command} -l {name} NODE ...`"
        raise
    return node, lab.container(container, node=name) if slash else None


def file_of(lab: Lab) -> str:
    """Return the path of the topology file that a lab came from; empty if it is unknown."""
    record = lab.settings.state.read(lab.name)
    return record.source if record else ""


def whole(lab: Lab) -> Context:
    """Return a running lab.

    Raises NoSuchLab, and LabError if one of its nodes does not run.
    """
    context = lab.context()
    silent = context.provider.ended(lab.name) if context.topology.attached else {}
    absent = [name for name in context.topology.nodes if name not in context.nodes]
    absent += [name for name in silent if name in context.nodes]
    if absent:
        reasons = "".join(f"\n    {silent[name]}" for name in absent if silent.get(name))
        raise LabError(
            f"lab {lab.name} is incomplete: {', '.join(absent)} not running{reasons}",
            hint="start them with the tool that created the lab"
            if lab.attached
            else f"`testbed up -l {lab.name}` restores it",
        )
    return context


def _how_to_name(lab: str) -> str:
    """Return the current command line with a lab.

    The lab is an option or an argument.
    """
    running = click.get_current_context(silent=True)
    if running is None:
        return "name it"
    by_option = any(param.name == "lab_name" for param in running.command.params)
    return f"`testbed {running.info_name} {f'-l {lab} ...' if by_option else lab}`"


def has_image(lab: str | None, node: str) -> bool:
    """Tell whether a node of a lab has the file system of an image."""
    found = lab_meant(make_settings(), lab).topology().nodes.get(node)
    return bool(found and found.image)


def show_uplinks(topology: Topology) -> None:
    """Show the way out of a lab, if it has one."""
    if topology.uplinks:
        names = ", ".join(network.name for network in topology.uplinks)
        words = "has a way out: its nodes reach what this machine reaches, as the internet (NAT)"
        click.echo(f"  {click.style('uplink', fg='yellow', bold=True)}     {names} {words}")


def show_installed(listed: Mapping[str, Mapping[str, str]]) -> None:
    """Show what `up` installs on machines that exist already, by node and kind."""
    for node, parts in listed.items():
        words = "`up` installs on its machine, and `down` removes:"
        click.echo(f"  {click.style('install', fg='yellow', bold=True)}    {node}: {words}")
        for kind, text in parts.items():
            click.echo(f"  {'':<11}  {kind:<9} {text}")


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, default=str))


def table(rows: Sequence[tuple[str, ...]], header: tuple[str, ...] = ()) -> None:
    """Print rows as a table with columns of the required width."""
    everything = [header, *rows] if header else [*rows]
    if not everything:
        return
    widths = [max(len(row[i]) for row in everything) for i in range(len(everything[0]))]
    for index, row in enumerate(everything):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        line = "  ".join(cells).rstrip()
        click.echo(click.style(line, bold=True) if header and index == 0 else line)


class RunsCommand(click.Command):
    """A command that runs another one: ``exec NODE COMMAND [ARG]...``.

    Everything after its first argument belongs to the other command, including options, as with
    ssh, ``docker exec`` and ``kubectl exec``. A ``--`` before the other command is accepted.
    """

    #: Options may also stand between the first argument and the other command.
    options_follow = False
    allow_interspersed_args = False

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own, rest = self.split(ctx, args)
        first, rest = rest[:1], rest[1:]
        if self.options_follow:
            more, rest = self.split(ctx, rest)
            own = own + more
        elif rest[:1] == ["--"]:
            rest = rest[1:]
        return super().parse_args(ctx, own + first + rest)

    def split(self, ctx: click.Context, args: list[str]) -> tuple[list[str], list[str]]:
        """Split ``args`` into the options at the beginning and the rest."""
        found, _, _ = self.make_parser(ctx).parse_args(list(args))
        first, words = (found.get(name) for name in self._arguments())
        count = isinstance(first, str) + (len(words) if isinstance(words, list | tuple) else 0)
        return args[: len(args) - count], args[len(args) - count :]

    def _arguments(self) -> list[str]:
        return [p.name or "" for p in self.params if isinstance(p, click.Argument)]

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        params = super().get_params(ctx)
        # Completion runs after the parser: the word to complete belongs to the other command.
        return [] if self._is_forwarding(ctx) else params

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        return [] if self._is_forwarding(ctx) else super().shell_complete(ctx, incomplete)

    def _is_forwarding(self, ctx: click.Context) -> bool:
        """Tell whether the word to complete belongs to the other command."""
        if not ctx.resilient_parsing or not ctx.params:
            return False
        first, words = self._arguments()
        return bool(ctx.params.get(words if self.options_follow else first))


def json_option(function: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="Print data as JSON.")(function)


def lab_option(function: F) -> F:
    """Add the options for the lab that a command works on."""
    return click.option(
        "-l", "--lab", "lab_name", metavar="LAB", shell_complete=complete_labs,
        help="The lab, or its topology file; required only if several are running.",
    )(set_option(function))  # fmt: skip


def set_option(function: F) -> F:
    """Add the option for the values of variables with which a lab was created from its file.

    :func:`lab_meant` reads it.
    """
    return click.option(
        "--set", multiple=True, metavar="VAR=VALUE", callback=_chosen, expose_value=False,
        help="With a topology file as the lab: the values that its `up` had; repeatable.",
    )(function)  # fmt: skip


class VariantCommand(click.Command):
    """A command with options for variants of a topology, such as ``--backend``.

    Roles declare these options, and providers those of ``up``. They are imported only if the
    command line may have one of them, for help and for completion.
    """

    #: The command has the options of providers, too; :func:`for_providers` reads them.
    of_providers = False
    _of_roles: Sequence[click.Option] = ()

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        known = {word for param in self.params for word in param.opts}
        words = {arg.partition("=")[0] for arg in args if arg.startswith("-")} - {"-", "--"}
        if ctx.resilient_parsing or not words <= known:
            self.complete()
        return super().parse_args(ctx, args)

    def complete(self) -> None:
        """Add the options of roles, of formats and of providers."""
        from testbed.registry import FORMATS
        from testbed.topology.variant import options

        self.params = [param for param in self.params if param not in self._of_roles]
        self._of_roles = [
            click.Option(
                [f"--{name}"],
                type=same[0].type,
                metavar=same[0].metavar,
                help=same[0].help,
                shell_complete=_completion([word for one in same for word in one.words]),
            )
            for name, same in options().items()
        ] + [
            click.Option(
                [f"--{option.name}"],
                type=click.Path(exists=True, dir_okay=False, resolve_path=True),
                multiple=True,
                callback=lambda _ctx, _param, files: files or None,
                metavar="FILE",
                help=option.help,
            )
            for kind in FORMATS.usable().values()
            for option in kind.options
        ]
        if self.of_providers:
            self._of_roles += map(provider_option, _provider_options().values())
        own = [param.name for param in self.params].index(FIRST)
        self.params[own:own] = self._of_roles


def _provider_options() -> dict[str, ProviderOption]:
    """Return the options of all providers, by name."""
    makers = PROVIDERS.usable().values()
    return {option.name: option for maker in makers for option in maker.options}


def provider_option(option: ProviderOption) -> click.Option:
    """Return an option of a provider; :func:`chosen_for_providers` has its value."""
    return click.Option(
        [f"--{option.name}"],
        metavar=option.metavar,
        help=option.help,
        expose_value=False,
        callback=_for_provider,
    )


CHOSEN = "testbed.chosen"  #: key of the values of providers' options in the metadata of a context


def _for_provider(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    """Keep the value of a provider's option for :func:`for_providers`."""
    if value is not None:
        ctx.meta.setdefault(CHOSEN, {})[param.opts[0].removeprefix("--")] = value


def chosen_for_providers() -> dict[str, str]:
    """Return the values of the options of providers on the command line, by their names."""
    running = click.get_current_context(silent=True)
    return dict(running.meta.get(CHOSEN, {})) if running else {}


def for_providers(topology: Topology) -> dict[str, str]:
    """Return :func:`chosen_for_providers`.

    Raises UsageError for an option of a provider that creates no node of the topology.
    """
    chosen = chosen_for_providers()
    for name in chosen:
        makers = [
            maker
            for maker, one in PROVIDERS.usable().items()
            if any(option.name == name for option in one.options)
        ]
        if not {*makers} & {*topology.providers}:
            raise UsageError(
                f"{topology.name} has no nodes by {' or '.join(makers)}",
                where=f"--{name}",
                hint=f"leave it out, or add --provider {makers[0]}",
            )
    return chosen


FIRST = "provider"  #: the first option for variants that no role declares


def variant_options(function: F) -> F:
    """Add the options for variants of all topologies; see :class:`VariantCommand`."""
    options = [
        click.option(
            f"--{FIRST}", metavar="NAME",
            help=f"Default provider for nodes that don't set one: {', '.join(PROVIDERS)}.",
        ),
        click.option("--name", metavar="NAME", help="Name of the lab."),
        variables_option,
    ]  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


def variables_option(function: F) -> F:
    """Add the option for the variables of a topology file that is read."""
    return click.option(
        "--set", multiple=True, metavar="VAR=VALUE", callback=_assigned,
        help="Set a variable of the file, instead of the environment; repeatable.",
    )(function)  # fmt: skip


def _assigned(_ctx: object, _param: object, words: tuple[str, ...]) -> dict[str, str] | None:
    """Return the variables of ``--set``; None without any."""
    if not words:
        return None
    from testbed.topology.variables import assigned

    return assigned(words)


VALUES = "testbed.values"  #: key of the values of variables in the metadata of a click context


def _chosen(ctx: click.Context, param: object, words: tuple[str, ...]) -> None:
    """Keep the values of ``--set`` for :func:`lab_meant`."""
    ctx.meta[VALUES] = _assigned(ctx, param, words)


def values_given() -> dict[str, str] | None:
    """Return the values of variables that choose a lab; None without any."""
    running = click.get_current_context(silent=True)
    return running.meta.get(VALUES) if running else None


def catalogue_option(function: F) -> F:
    return click.option(
        "--catalogue", "catalogues", multiple=True, metavar="DIR",
        shell_complete=complete_catalogues,
        help="Claims to use: a folder, or the name of an installed catalogue; repeatable.",
    )(function)  # fmt: skip


def artifact_option(function: F) -> F:
    return click.option(
        "--artifact", "artifacts", multiple=True, metavar="NAME=PATH",
        help="Use your own file, such as flanneld=/path; repeatable.",
    )(function)  # fmt: skip


def way_option(function: F) -> F:
    return click.option(
        "--from", "way", type=click.Choice(["download", "source"]),
        help="Download programs that their makers build, or build them here. "
        "By default, download them, and build them if the makers' site cannot be reached.",
    )(function)  # fmt: skip


def image_options(function: F) -> F:
    """Add the options for the sources of images."""
    from testbed.artifacts.config import POLICIES

    options = [
        click.option(
            "--pull", type=click.Choice(POLICIES),
            help="When to pull images from a registry: also those that are in the cache (always), "
            "those that are not (missing, the default), or none (never).",
        ),
        click.option(
            "--images-from", multiple=True, metavar="SOURCE", shell_complete=complete_sources,
            help="Look for images in a source before a registry: docker or podman of this machine, "
            "an archive, or a folder of archives; repeatable.",
        ),
    ]  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


def load_variant(topology: str, artifacts: tuple[str, ...] = (), **variant: Any) -> Topology:
    """Return the topology of a name or path, with variant options and variables applied.

    Without options, the name of a lab that was created from a file selects the recorded topology.
    ``artifacts`` are ``--artifact`` options, for programs that read other tools' files.
    """
    from testbed.topology.load import Overrides, is_path, load, names

    given = {key: value for key, value in variant.items() if value is not None}
    variables = given.pop("set", None)
    if values := _values(topology, given):
        variables = {**(variables or {}), **values}
    if not (given or variables or is_path(topology) or topology in names()):
        from testbed.labs.lab import Lab

        lab = Lab(topology, make_settings())
        if lab.settings.state.read(topology):
            return to_update(lab)
    overrides = Overrides(**given) if given else None
    return load(
        topology,
        overrides,
        store=lambda: make_settings(artifacts=artifacts).store,
        variables=variables,
    )


def _values(topology: str, given: dict[str, Any]) -> dict[str, str]:
    """Take the options of formats from the given ones; return the variables that they set.

    Raises UsageError for a topology that is not a file of that format.
    """
    from testbed.registry import FORMATS
    from testbed.topology.load import format_at

    found: dict[str, str] = {}
    tuples = {name: value for name, value in given.items() if isinstance(value, tuple)}
    for kind in FORMATS.usable().values() if tuples else ():
        for option in kind.options:
            files = given.pop(option.name, ())
            if files and format_at(topology) is not kind:
                raise UsageError(
                    f"{topology} is not a file of {kind.name}",
                    where=f"--{option.name}",
                    hint="remove it; --set gives values to variables",
                )
            if files:
                found[option.variable] = os.pathsep.join(files)
    return found


def to_update(lab: Lab) -> Topology:
    """Return the topology for an `up` of a lab as it was created.

    Raises NoSuchLab, and UsageError if testbed has not created it.
    """
    topology = recorded(lab)
    if topology.foreign is not None:
        lab.refuse_attached("updated")
    return topology


def recorded(lab: Lab) -> Topology:
    """Return the topology that a lab was created from, with its options.

    Raises NoSuchLab.
    """
    return lab.topology()


def _completion(words: Iterable[str]) -> Callable[[Any, Any, str], list[str]]:
    """Return the completion of a value that is one of these words."""
    known = dict.fromkeys(words)
    return lambda _ctx, _param, incomplete: [one for one in known if one.startswith(incomplete)]


def complete_labs(_ctx: Any, _param: Any, incomplete: str) -> list[str]:
    from testbed.labs.state import State, folder

    return [name for name in State(folder()).labs() if name.startswith(incomplete)]


def complete_topologies(_ctx: Any, _param: Any, incomplete: str) -> list[Any]:
    from click.shell_completion import CompletionItem

    from testbed.topology.load import names

    found = [CompletionItem(name) for name in names() if name.startswith(incomplete)]
    return [*found, CompletionItem(incomplete, type="file")]


def complete_sources(_ctx: Any, _param: Any, incomplete: str) -> list[Any]:
    from click.shell_completion import CompletionItem

    from testbed.artifacts.config import ENGINES

    found = [CompletionItem(name) for name in ENGINES if name.startswith(incomplete)]
    return [*found, CompletionItem(incomplete, type="file")]


def complete_catalogues(_ctx: Any, _param: Any, incomplete: str) -> list[Any]:
    from click.shell_completion import CompletionItem

    from testbed.claims.choose import installed

    found = [CompletionItem(name) for name in installed() if name.startswith(incomplete)]
    return [*found, CompletionItem(incomplete, type="dir")]


def complete_claims(ctx: Any, _param: Any, incomplete: str) -> list[str]:
    return [name for name in _catalogue_meant(ctx).claims if name.startswith(incomplete)]


def complete_documents(ctx: Any, _param: Any, incomplete: str) -> list[str]:
    return [name for name in _catalogue_meant(ctx).documents if name.startswith(incomplete)]


def _catalogue_meant(ctx: click.Context) -> Catalogue:
    """Return the catalogue of the options typed so far; an empty one if it has problems."""
    from testbed.claims.catalogue import Catalogue
    from testbed.claims.choose import choose
    from testbed.labs.state import State, folder

    try:
        lab = ctx.params.get("lab") or os.environ.get("TESTBED_LAB")
        record = State(folder()).read(lab) if lab else None
        return choose(given_catalogues(ctx), source=record.source if record else "")
    except TestbedError:  # the command itself reports it
        return Catalogue()


def given_catalogues(ctx: click.Context) -> tuple[str, ...]:
    """Return the value of ``--catalogue`` of a command, else of the group that it is in."""
    at: click.Context | None = ctx
    while at is not None:
        if given := at.params.get("catalogues"):
            return tuple(given)
        at = at.parent
    return ()


def complete_nodes(ctx: click.Context, _param: Any, incomplete: str) -> list[str]:
    from testbed.settings import settings

    try:
        topology = lab_meant(settings(), ctx.params.get("lab_name")).topology()
    except TestbedError:
        return []
    names = list(topology.nodes)
    names += [f"{c.node}/{c.name}" for c in topology.containers.values()]
    return [name for name in names if name.startswith(incomplete)]


def complete_parts(ctx: click.Context, param: Any, incomplete: str) -> list[str]:
    """Complete NODE, NODE/CONTAINER and NODE/SERVICE."""
    from testbed.settings import settings

    try:
        topology = lab_meant(settings(), ctx.params.get("lab_name")).topology()
    except TestbedError:
        return []
    services = [name for name in services_of(topology) if name.startswith(incomplete)]
    return [*complete_nodes(ctx, param, incomplete), *services]


def complete_snapshots(ctx: click.Context, _param: Any, incomplete: str) -> list[str]:
    from testbed.labs.snapshots import found
    from testbed.settings import settings

    try:
        names = [one.name for one in found(lab_meant(settings(), ctx.params.get("lab")))]
    except TestbedError:
        return []
    return [name for name in names if name.startswith(incomplete)]


def age(created: object) -> str:
    """Return the time since a point in time, in Unix seconds, as one number with a unit."""
    if not isinstance(created, int | float):
        return "?"
    seconds = max(0, int(time.time() - created))
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def services_of(topology: Topology) -> list[str]:
    """Return the services of a lab's roles and of its file, as NODE/SERVICE."""
    from testbed.labs.status import expected_services

    return [
        f"{node}/{name}" for node in topology.nodes for name in expected_services(topology, node)
    ]
