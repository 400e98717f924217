"""systemctl, service and journalctl on a namespace node: what its own pid 1 knows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from testinfra.modules.service import SystemdService

from testbed.artifacts import Store
from testbed.nodes.base import Node, Service
from testbed.nodes.keeper import COMMANDS
from testbed.nodes.netns.provider import NetnsProvider
from testbed.roles.base import start
from testbed.testing.provider import NOTIFY, PYTHON, spec, until

LAB = "services"
# It ignores none of its signals, says two lines, and then a third on SIGHUP.
WRITES = "trap 'echo again' HUP; echo one; echo two; while :; do sleep 60 & wait; done"
FAILS = Service("fails", ("sh", "-c", "echo no luck; exit 7"))
NAMES = ("keeper", "daemon", "daemon.service", "fails")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node with a daemon that notifies, has a unit's name, and another that has failed."""
    init = Store().binary("testbed-init")
    provider = NetnsProvider(tmp_path_factory.mktemp("services"), lambda: init)
    made = provider.create_one(LAB, spec("node1"))
    notifies = (PYTHON, "-S", "-c", NOTIFY)
    start(made, Service("keeper", notifies, env={"A": 'b "c"'}, notify=True, unit="daemon"))
    start(made, Service("writer", ("sh", "-c", WRITES)))
    start(made, FAILS)
    assert until(lambda: made.services()["fails"].state == "dead")
    assert until(lambda: made.logs("writer") == "one\ntwo\n", 60)
    yield made
    provider.destroy(LAB)


def ask(node: Node, line: str) -> tuple[int, str]:
    result = node.run(line.split(), check=False)
    return result.status, result.stdout


@pytest.mark.parametrize(
    ("line", "status", "out"),
    [
        ("is-active daemon", 0, "active\n"),
        ("is-active keeper.service --quiet", 0, ""),
        ("is-active fails", 3, "failed\n"),
        ("is-active nginx", 4, "inactive\n"),
        ("is-active nginx daemon", 0, "inactive\nactive\n"),
        ("is-failed fails", 0, "failed\n"),
        ("is-failed daemon", 1, "active\n"),
        ("is-enabled daemon", 0, "enabled\n"),
        ("is-enabled nginx", 1, ""),
        ("is-system-running", 1, "degraded\n"),
        ("show -p ActiveState,SubState daemon", 0, "ActiveState=active\nSubState=running\n"),
        ("show --property=ExecMainStatus --value fails", 0, "7\n"),
        ("show -P LoadState nginx", 0, "not-found\n"),
        ("status nginx", 4, ""),
        ("enable daemon", 0, ""),
        ("start nginx", 5, ""),
        ("daemon-reload", 1, ""),
        ("disable daemon", 1, ""),
        ("--user status", 1, ""),
        ("status -H elsewhere daemon", 1, ""),
    ],
)
def test_answers_as_the_manual_of_systemctl_has_them(
    line: str, status: int, out: str, node: Node
) -> None:
    """systemctl(1), "Exit status", and the descriptions of the commands."""
    result = node.run(["systemctl", *line.split()], check=False)
    assert (result.status, result.stdout) == (status, out)
    if not out and status:
        assert result.stderr.strip(), "what fails says why"


def test_status_names_process_command_and_last_lines(node: Node) -> None:
    pid = node.services()["keeper"].pid
    status, out = ask(node, "systemctl status daemon --no-pager")
    assert status == 0
    assert "daemon.service" in out
    assert "Active: active (running) since " in out
    assert f"Main PID: {pid} (python3" in out
    assert out.endswith("\nready soon\n")
    status, out = ask(node, "systemctl status fails")
    assert status == 3
    assert "Active: failed" in out
    assert "status=7" in out
    assert out.endswith("\nno luck\n")
    assert ask(node, "service daemon status")[0] == 0
    assert ask(node, "service fails status")[0] == 3


def lines(node: Node, text: str) -> list[str]:
    """The output lines of a command, without a service that another test could not start."""
    return [line for line in ask(node, text)[1].splitlines() if "never" not in line]


def test_lists(node: Node) -> None:
    units = lines(node, "systemctl list-units --type=service --no-legend --plain")
    assert [line.split()[:4] for line in units] == [
        ["daemon.service", "loaded", "active", "running"],
        ["writer.service", "loaded", "active", "running"],
        ["fails.service", "loaded", "failed", "failed"],
    ]
    units = lines(node, "systemctl list-units --state=failed --no-legend --plain")
    assert [line.split()[0] for line in units] == ["fails.service"]
    units = lines(node, "systemctl list-units daem* --no-legend --plain")
    assert [line.split()[0] for line in units] == ["daemon.service"]
    assert ask(node, "systemctl list-units -t socket --no-legend") == (0, "")
    assert "daemon.service enabled" in ask(node, "systemctl list-unit-files")[1]
    assert lines(node, "service --status-all") == [
        " [ + ]  daemon",
        " [ + ]  writer",
        " [ - ]  fails",
    ]


def test_cat_shows_how_a_service_was_started(node: Node) -> None:
    status, out = ask(node, "systemctl cat daemon")
    assert status == 0
    assert "Type=notify\n" in out
    assert 'Environment="A=b \\"c\\""\n' in out
    assert f"ExecStart={PYTHON} -S -c " in out


def test_start_stop_and_restart(node: Node) -> None:
    before = node.services()["keeper"]
    assert ask(node, "systemctl stop daemon") == (0, "")
    assert node.services()["keeper"].state == "dead"
    # SIGTERM is a clean end (systemd.service(5), SuccessExitStatus=).
    assert ask(node, "systemctl is-active daemon") == (3, "inactive\n")
    assert ask(node, "systemctl try-restart daemon") == (0, "")
    assert node.services()["keeper"].state == "dead"
    assert ask(node, "systemctl start daemon") == (0, "")
    started = node.services()["keeper"]
    assert (started.state, started.digest) == ("ready", before.digest)
    assert node.run(["cat", f"/proc/{started.pid}/environ"]).stdout.count('A=b "c"') == 1
    assert ask(node, "service daemon restart") == (0, "")
    again = node.services()["keeper"]
    assert again.state == "ready"
    assert len({before.pid, started.pid, again.pid}) == 3
    start(node, Service("keeper", (PYTHON, "-S", "-c", NOTIFY), notify=True, unit="daemon"))
    assert node.services()["keeper"].pid == again.pid, "its settings are those that it had"


def test_a_service_that_dies_again_is_an_error_of_start(node: Node) -> None:
    never = Service("never", (PYTHON, "-S", "-c", "import sys; sys.exit(9)"), notify=True)
    with pytest.raises(Exception, match="died"):
        start(node, never)
    result = node.run(["systemctl", "start", "never"], check=False)
    assert result.status == 1
    assert "exit 9" in result.stderr


def test_the_journal_is_what_services_have_written(node: Node) -> None:
    assert ask(node, "journalctl -u writer --no-pager")[1].startswith("one\ntwo\n")
    assert ask(node, "journalctl -u fails -n 1 -o cat") == (0, "no luck\n")
    assert ask(node, "journalctl -xeu fails") == (0, "no luck\n")
    assert ask(node, "journalctl -u writer -u fails -n1 -r")[1].splitlines()[-1] == "fails: no luck"
    for unsupported in ("-u nginx", "--since today", "-k", "-p err", "-u writer -o json", "-b -1"):
        result = node.run(["journalctl", *unsupported.split()], check=False)
        assert (result.status, result.out) == (1, b""), unsupported
        assert result.stderr.startswith("journalctl: ")


def test_the_journal_can_be_followed(node: Node) -> None:
    with node.spawn(["journalctl", "-fu", "writer", "-n", "1"]) as running:
        assert until(lambda: running.out.count(b"\n") == 1, 60)
        seen = running.out
        assert ask(node, "systemctl kill -s HUP writer") == (0, "")
        assert until(lambda: running.out == seen + b"again\n", 60)


@pytest.mark.parametrize("name", NAMES)
def test_testinfra_and_the_command_say_the_same(name: str, node: Node) -> None:
    own = node.host.service(name)
    unit = type(SystemdService.__name__, (SystemdService,), {"_host": node.host})
    asked: Any = unit(name)
    for what in ("exists", "is_running", "is_enabled", "is_masked"):
        assert getattr(own, what) == getattr(asked, what), what
    shown = asked.systemd_properties
    for key, value in own.systemd_properties.items():
        if key not in ("Id", "Names") or name == "daemon":  # those asked for by another name
            assert shown[key] == value, key


def test_others_than_root_are_told_so(node: Node) -> None:
    became = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    result = node.run([*became, "systemctl", "is-active", "daemon"], check=False)
    assert (result.status, result.out) == (4, b"")
    assert "root" in result.stderr


def test_this_machines_own_are_not_seen(node: Node) -> None:
    for name in COMMANDS:
        places = node.run(["which", "-a", name]).stdout.split()
        reals = node.run(["realpath", *places]).stdout.split()
        assert {Path(real).name for real in reals} == {"testbed-init"}
    assert "testbed-init" in ask(node, "systemctl --version")[1]
