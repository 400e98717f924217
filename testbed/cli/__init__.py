"""The command line: one file per command, loaded only when it is used.

Exit status: 0 success; 1 a claim or check failed; 2 wrong use or invalid topology; 3 this machine
lacks a requirement; 4 the lab failed or does not exist; 130 and 143 after Ctrl-C or SIGTERM; 141
if the reader of standard output has exited.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from testbed import __version__

if TYPE_CHECKING:
    from testbed.errors import TestbedError

COMMANDS = {
    "up": "up",
    "down": "down",
    "status": "status",
    "graph": "graph",
    "capture": "capture",
    "diff": "diff",
    "save": "save",
    "snapshot": "snapshot",
    "restore": "restore",
    "ls": "ls",
    "attach": "attach",
    "new": "new",
    "verify": "verify",
    "claims": "claims",
    "report": "report",
    "exec": "exec_",
    "shell": "shell",
    "logs": "logs",
    "walk": "walk",
    "cp": "cp",
    "restart": "restart",
    "stop": "stop",
    "start": "start",
    "fault": "fault",
    "export": "export",
    "forward": "forward",
    "proxy": "proxy",
    "plan": "plan",
    "doctor": "doctor",
    "topologies": "topologies",
    "schema": "schema",
    "artifacts": "artifacts",
    "completion": "completion",
}

HELP = """Create container-network labs, check claims about them, and remove them without a trace.

\b
  testbed up two-node        create a lab: two nodes with Docker, etcd, flannel, two containers
  testbed verify two-node    check every claim that this lab can decide, with evidence
  testbed shell node1        open a shell on a node
  testbed down two-node      remove the lab
"""

EPILOG = """\b
Exit status:
  0 success · 1 a claim or check failed · 2 wrong use or invalid topology ·
  3 this machine lacks a requirement · 4 the lab failed or does not exist ·
  5 nothing was checked · 130/143 ended by Ctrl-C/SIGTERM ·
  141 the reader of the output has exited

\b
Environment variables:
  TESTBED_STATE   folder of the labs' records (~/.local/state/testbed)
  TESTBED_CACHE   folder of binaries and images (~/.cache/testbed)
  TESTBED_CONFIG  configuration file (~/.config/testbed/config.toml)
  TESTBED_LAB     default lab for commands without one
  NO_COLOR        disable colours
"""


@contextlib.contextmanager
def _no_broken_pipe() -> Iterator[None]:
    """Report a broken pipe to a daemon as LabError.

    click would exit with status 1, without a message.
    """
    try:
        yield
    except BrokenPipeError as error:
        from testbed.errors import LabError

        raise LabError(
            f"a daemon closed the connection: {error}",
            hint="`testbed status` shows what runs",
        ) from error


def brought() -> dict[str, str]:
    """Return the commands that distributions bring, ours included: name and short help.

    They are declared as entry points, and none is imported.  Names of commands above are ignored.
    """
    from testbed.errors import MachineError
    from testbed.registry import COMMANDS as OTHERS

    with contextlib.suppress(MachineError):  # this copy of testbed is not installed
        return {
            name: points[0].about or f"Command of {points[0].distribution}."
            for name, points in OTHERS.declared().items()
            if name not in COMMANDS
        }
    return {}


class Commands(click.Group):
    """A group that loads only the module of the command in use."""

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        with _no_broken_pipe():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        with _no_broken_pipe():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return [*COMMANDS, *brought()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in COMMANDS:
            if cmd_name not in brought():
                return None
            from testbed.registry import COMMANDS as OTHERS

            return OTHERS[cmd_name]
        module = importlib.import_module(f"testbed.cli.{COMMANDS[cmd_name]}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not (args[0].startswith("-") or args[0] in COMMANDS or args[0] in brought()):
            from testbed.registry import COMMANDS as OTHERS
            from testbed.spelling import nearest

            known = [*COMMANDS, *OTHERS]
            hint = nearest(args[0], known, "see `testbed --help`", form="`testbed {}`")
            raise click.UsageError(f"no command {args[0]!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # Do not load every command: --help must be fast.
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, ABOUT[name]) for name in COMMANDS])
        if others := brought():
            with formatter.section("Commands of providers and roles"):
                formatter.write_dl(list(others.items()))


ABOUT = {
    "up": "Create or update a lab.",
    "down": "Remove a lab, or all labs.",
    "status": "Show the current state of a lab.",
    "graph": "Draw a running lab's network: a tree, SVG, Mermaid, Graphviz or JSON.",
    "capture": "Show the packets at places of a running lab, or write them into one file.",
    "diff": "Show what `up` would change on a running lab.",
    "save": "Write a running lab as a topology file.",
    "snapshot": "Save the state of a running lab of virtual machines.",
    "restore": "Return a running lab to a snapshot.",
    "ls": "List the labs on this machine.",
    "attach": "Use a lab that exists already.",
    "new": "Write a small lab with a test, also of a bug report, to begin with.",
    "verify": "Check claims on a running lab.",
    "claims": "List the claims of a catalogue, show one, or begin a catalogue.",
    "report": "Write the HTML report of a run.",
    "exec": "Run a command on a node or in a container.",
    "shell": "Open a shell on a node or in a container.",
    "logs": "Show the logs of services and containers.",
    "walk": "Show the way of a packet through a lab.",
    "cp": "Copy files between this machine and a node or container.",
    "restart": "Restart nodes, services or containers.",
    "stop": "Stop nodes, services or containers, gracefully.",
    "start": "Start nodes, services or containers that were stopped.",
    "fault": "Break parts of a lab on purpose, and heal them.",
    "export": "Write a lab as the files of another tool.",
    "forward": "Open a port of a node or container on this machine.",
    "proxy": "Connect standard input and output to a node, as for ssh.",
    "plan": "Show what `up` would do, without doing it.",
    "doctor": "Check this machine's requirements and show how to fix what is missing.",
    "topologies": "List the shipped topologies, or show one.",
    "schema": "Print the JSON Schema of topology or claims files, for editors.",
    "artifacts": "List, build or remove binaries and images.",
    "completion": "Print the completion script for a shell.",
}


@click.group(
    cls=Commands,
    help=HELP,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="testbed", message="%(prog)s %(version)s")
def cli() -> None:
    """The group of all commands."""


def main(argv: list[str] | None = None) -> None:
    """Run a command line and exit with its status."""
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def run(argv: list[str]) -> int:
    """Run a command line; return its exit status.

    Only a bug causes a traceback.
    """
    from testbed.errors import Interrupted, ReaderGone, TestbedError
    from testbed.signals import never_lost

    try:
        for signum in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, _interrupt)
        with never_lost():
            result = cli.main(
                args=argv, prog_name="testbed", standalone_mode=False, color=_colours()
            )
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("testbed: interrupted", err=True)
        return 128 + signal.SIGINT
    except Interrupted as error:
        if not isinstance(error, ReaderGone):  # silent, as in other tools
            click.echo(f"testbed: {error}", err=True)
        return error.exit_code
    except TestbedError as error:
        complain(error)
        return error.exit_code
    except (OSError, RuntimeError) as error:
        if (came := _interrupted(error)) is not None:
            click.echo(f"testbed: {Interrupted(came)}", err=True)
            return 128 + came
        if (lacking := _limit_reached(error)) is None:
            raise
        complain(lacking)
        return lacking.exit_code
    return result if isinstance(result, int) else 0


def _limit_reached(error: Exception) -> TestbedError | None:
    """Return the error to show if a limit of this machine was reached.

    Return None for any other error.
    """
    from testbed.limits import exhausted
    from testbed.process import no_more_processes

    if isinstance(error, OSError):
        return exhausted(error)
    return no_more_processes() if "can't start new thread" in str(error) else None  # Python's text


def _interrupted(error: Exception) -> int | None:
    """Return the signal that caused an error, or None.

    Python 3.11 wraps an exception that a signal handler raises while a class is created.
    """
    from testbed.errors import Interrupted

    if isinstance(error.__cause__, KeyboardInterrupt):
        return signal.SIGINT
    return error.__cause__.signum if isinstance(error.__cause__, Interrupted) else None


def complain(error: Any) -> None:
    """Print an error and its hint on standard error."""
    text = click.style("testbed: ", fg="red", bold=True) + error.message
    if error.hint:
        text += click.style("\n  -> ", fg="yellow") + error.hint
    click.echo(text, err=True, color=_colours())


def _colours() -> bool | None:
    """Return False if NO_COLOR is set (no-color.org), otherwise None.

    None lets the terminal decide.
    """
    return False if os.environ.get("NO_COLOR") else None


def _interrupt(signum: int, _: Any) -> None:
    from testbed.errors import Interrupted

    raise Interrupted(signum)
