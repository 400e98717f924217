"""The command line: one file a command, each loaded only when it is called.

Exit status: 0 fine; 1 a claim or a check failed; 2 wrong use or a bad
topology; 3 this machine lacks something; 4 the lab failed to come up or is not
there; 130 and 143 when ended by Ctrl-C or SIGTERM, 141 when nobody reads
standard output any more.
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
    "ls": "ls",
    "verify": "verify",
    "claims": "claims",
    "report": "report",
    "exec": "exec_",
    "shell": "shell",
    "logs": "logs",
    "fault": "fault",
    "kubectl": "kubectl",
    "kubeconfig": "kubeconfig",
    "conformance": "conformance",
    "plan": "plan",
    "doctor": "doctor",
    "topologies": "topologies",
    "schema": "schema",
    "artifacts": "artifacts",
    "box": "box",
    "vagrant": "vagrant",
    "completion": "completion",
}

HELP = """Bring up container networks on machines of their own, put what is said about
them to the test, and take everything down without a trace.

\b
  testbed up two-node        two machines, Docker, etcd, flannel, two containers
  testbed verify two-node    every claim that this lab can decide, with evidence
  testbed shell node1        look around
  testbed down two-node      all gone
"""

EPILOG = """\b
Exit status:
  0 fine · 1 a claim or check failed · 2 wrong use or bad topology ·
  3 this machine lacks something · 4 the lab failed to come up or is not there ·
  130/143 ended by Ctrl-C/SIGTERM · 141 nobody reads the output any more

\b
Variables:
  TESTBED_STATE   folder of the labs' records (~/.local/state/testbed)
  TESTBED_CACHE   folder of binaries and images (~/.cache/testbed)
  TESTBED_CONFIG  configuration file (~/.config/testbed/config.toml)
  TESTBED_LAB     the lab meant where none is named
  NO_COLOR        no colours
"""


@contextlib.contextmanager
def _no_broken_pipe() -> Iterator[None]:
    """One to a daemon: click would end with status 1, without a word."""
    try:
        yield
    except BrokenPipeError as error:
        from testbed.errors import LabError

        raise LabError(
            f"a daemon closed the connection: {error}",
            hint="`testbed status` shows what runs",
        ) from error


class Commands(click.Group):
    """Finds a command's module by its name, and loads no other."""

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        with _no_broken_pipe():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        with _no_broken_pipe():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"testbed.cli.{COMMANDS[cmd_name]}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from testbed.spelling import closest

            close = closest(args[0], COMMANDS)
            hint = f"did you mean `testbed {close}`?" if close else "see `testbed --help`"
            raise click.UsageError(f"no command {args[0]!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # Not by loading every command: --help is to be there at once.
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, ABOUT[name]) for name in COMMANDS])


ABOUT = {
    "up": "Bring a lab up, or what of it is missing or different.",
    "down": "Take a lab down, or all of them.",
    "status": "Show what runs of a lab, as it is now.",
    "ls": "List the labs of this machine.",
    "verify": "Put the claims to the test on a lab that is up.",
    "claims": "List the claims of the catalogue, or show one.",
    "report": "Write the HTML report of a run.",
    "exec": "Run a command on a node or in a container.",
    "shell": "Open a shell on a node or in a container.",
    "logs": "Show what a node's daemons have written.",
    "fault": "Break something of a lab on purpose, and heal it.",
    "kubectl": "Run kubectl on a lab's cluster.",
    "kubeconfig": "Let tools of this machine ask a lab's cluster.",
    "conformance": "Run upstream's end-to-end tests on a lab's cluster.",
    "plan": "Show what `up` would do; nothing is touched.",
    "doctor": "Say what this machine can do, and how to mend what it can't.",
    "topologies": "List the topologies that come with testbed, or show one.",
    "schema": "Print the JSON Schema of topology files, for editors.",
    "artifacts": "List, build or remove binaries and images.",
    "box": "Build, list or remove the boxes of virtual machines.",
    "vagrant": "Answer what the Vagrantfile asks, for plain `vagrant up`.",
    "completion": "Print the script that completes commands in a shell.",
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
    """Run a command line; return its exit status.  Nothing but a defect leaves as a traceback."""
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
        if not isinstance(error, ReaderGone):  # of which other tools say nothing either
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
    """The error to show for one that says that a limit of this machine has been reached."""
    from testbed.limits import exhausted
    from testbed.process import no_more_processes

    if isinstance(error, OSError):
        return exhausted(error)
    return no_more_processes() if "can't start new thread" in str(error) else None  # its own words


def _interrupted(error: Exception) -> int | None:
    """The signal that came while a class was made: Python 3.11 wraps what it raised there."""
    from testbed.errors import Interrupted

    if isinstance(error.__cause__, KeyboardInterrupt):
        return signal.SIGINT
    return error.__cause__.signum if isinstance(error.__cause__, Interrupted) else None


def complain(error: Any) -> None:
    """Print an error and what to do about it, on standard error."""
    text = click.style("testbed: ", fg="red", bold=True) + error.message
    if error.hint:
        text += click.style("\n  -> ", fg="yellow") + error.hint
    click.echo(text, err=True, color=_colours())


def _colours() -> bool | None:
    """Not where NO_COLOR says so (no-color.org); None leaves it to the terminal."""
    return False if os.environ.get("NO_COLOR") else None


def _interrupt(signum: int, _: Any) -> None:
    from testbed.errors import Interrupted

    raise Interrupted(signum)
