"""Machines that exist already: reached by the user's own ssh, looked at, never changed."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from topology_texts import problems

from testbed import cli, owner, process
from testbed.catalogues.shipped import FOLDER
from testbed.cli import common
from testbed.errors import LabError, NoSuchNode, StepsFailed, TimeoutExpired, UsageError
from testbed.faults.force import Faults, fault_of
from testbed.labs import plan
from testbed.labs.existing import SYSTEM
from testbed.labs.lab import Lab
from testbed.labs.live import LiveLab
from testbed.labs.status import status
from testbed.nodes.attachable import AttachedProvider
from testbed.nodes.base import NodeSpec, Service, Setup
from testbed.nodes.fake import Answer, FakeProvider
from testbed.nodes.openssh import client
from testbed.nodes.openssh.node import OpenSshNode
from testbed.nodes.openssh.provider import SshProvider
from testbed.registry import PROVIDERS
from testbed.suites.model import Selection
from testbed.suites.runner import run
from testbed.testing.fakes import declare
from testbed.topology import load_text
from testbed.topology.load import load_data

if TYPE_CHECKING:
    from testbed.labs.lab import Settings
    from testbed.nodes.base import Node, Provider
    from testbed.nodes.fake import FakeMachine
    from testbed.testing.fakes import Bench
    from testbed.topology import Topology

TEXT = """\
name: shop
provider: ssh
ssh: {user: admin, jump: "ops@bastion:2222", key: id}
networks: {lan: {subnet: 10.168.0.0/24}}
nodes:
  web1: {networks: {lan: 10.168.0.2}, ssh: {address: 192.0.2.1, port: 2022, user: root}}
  web2: {networks: {lan: {address: 10.168.0.3, name: ens3}}, roles: [docker]}
"""


def shop(text: str = TEXT, name: str = "shop.yaml") -> Topology:
    return load_text(text, name)


# -- the file ------------------------------------------------------------------------------


def words(topology: Topology, node: str, folder: Path) -> list[str]:
    found = SshProvider(Setup(folder, None)).of_machines(topology).nodes("shop")[node]  # type: ignore[arg-type]
    assert isinstance(found, OpenSshNode)
    return found._argv


def test_the_keys_of_a_node_precede_those_of_all(tmp_path: Path) -> None:
    topology = shop()
    key = str(topology.folder / "id")
    assert words(topology, "web1", tmp_path) == [
        "ssh", "-i", key, "-o", "IdentitiesOnly=yes", "-p", "2022", "-l", "root",
        "-J", "ops@bastion:2222", "192.0.2.1",
    ]  # fmt: skip
    assert words(topology, "web2", tmp_path)[-5:] == [
        "-l", "admin", "-J", "ops@bastion:2222", "web2",
    ]  # fmt: skip


def test_a_node_needs_no_key_at_all(tmp_path: Path) -> None:
    topology = shop("name: a\nprovider: ssh\nnodes: {db: {}}\n")
    assert words(topology, "db", tmp_path) == ["ssh", "db"]
    assert topology.attached


def test_under_sudo_the_home_folder_is_that_of_its_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    """HOME may be root's then: env_reset and always_set_home of sudoers(5)."""
    monkeypatch.setenv("HOME", "/root")
    monkeypatch.setattr(owner, "login_home", lambda: Path("/home/a"))
    topology = shop("name: a\nprovider: ssh\nssh: {key: ~/k, config: ~/c}\nnodes: {db: {}}\n")
    section = topology.to_dict()["ssh"]
    assert (section["key"], section["config"]) == ("/home/a/k", "/home/a/c")


def test_a_record_has_all_of_it() -> None:
    topology = shop()
    again = load_data(topology.to_dict(), "record")
    assert again.to_dict() == topology.to_dict()
    assert again.sections == topology.sections
    assert again.nodes == topology.nodes


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("  web1: {ssh: {install: perhaps}}", ""),
        ("  web1: {ssh: {password: x}}", "agent"),
        ("  web1: {ssh: {address: -oProxyCommand=reboot}}", "user"),
        ("  web1: {ssh: {user: '-x'}}", "spaces"),
        ("  web1: {ssh: {jump: '-x'}}", "commas"),
        ("  web1: {ssh: {port: 0}}", ""),
        ("  web1: {sysctls: {net.ipv4.ip_forward: 1}}", "looks"),
        ("  web1: {run: [reboot]}", "looks"),
        ("  web1: {services: {a: {command: sleep 1}}}", "looks"),
        ("  web1: {memory: 1G}", "looks"),
        ("  web1: {files: {/etc/a: {content: b}}}", "looks"),
        ("  web1: {packages: [tcpdump]}", ""),
        ("  web1: {image: alpine}", ""),
        ("  web1: {networks: {lan: 10.1.0.2}, roles: [namespaces]}", "docker"),
        ("  web1: {provider: netns}", ""),
    ],
)  # fmt: skip
def test_what_would_change_a_machine_is_refused_by_name(line: str, hint: str) -> None:
    text = f"name: a\nprovider: ssh\nnetworks: {{lan: {{subnet: 10.1.0.0/24}}}}\nnodes:\n{line}\n"
    (found,) = problems(text)
    assert found.line == len(text.splitlines())
    assert hint in found.hint


def test_such_machines_are_a_lab_of_their_own() -> None:
    text = "name: a\nnodes: {web1: {provider: ssh}, web2: {provider: ssh}}\n"
    assert len(problems(text)) == 2


def test_its_keys_need_its_provider() -> None:
    text = "name: a\nssh: {user: b}\nnodes: {web1: {ssh: {user: c}}}\n"
    assert [one.line for one in problems(text)] == [2, 3]


def test_a_network_with_properties_of_ours_is_refused() -> None:
    for more in ("uplink: true", "rate: 1mbit"):
        text = (
            "name: a\nprovider: ssh\n"
            f"networks: {{lan: {{subnet: 10.1.0.0/24, {more}}}}}\n"
            "nodes: {a: {networks: {lan: 10.1.0.2}}}\n"
        )
        assert problems(text), more


# -- ssh -----------------------------------------------------------------------------------

#: In the place of ssh: runs the command here, as a login shell would.
SSH = """\
#!/bin/sh
for last; do :; done
printf '%s\\n' "$@" > "$OUT/ssh"
exec "${LOGIN:-sh}" -c "$last"
"""
#: In the place of the agent: greets, tells where its file is, and ends with its input.
AGENT = """\
#!/bin/sh
readlink "$0" > "$OUT/agent"
printf '\\0\\0\\0\\0\\0\\0\\0h\\0\\0\\0\\0'
exec cat > /dev/null
"""


def put(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs that come first, and in OUT what they write; the user is root."""
    folder = put(tmp_path / "bin" / "ssh", SSH).parent
    put(folder / "id", "#!/bin/sh\necho 0\n")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("OUT", str(tmp_path))
    monkeypatch.setattr(owner, "caller", lambda: None)
    return folder


@pytest.fixture
def node(tools: Path, tmp_path: Path) -> Iterator[OpenSshNode]:
    agent = put(tmp_path / "agent-of-ours", AGENT)
    made = OpenSshNode(
        "web1", ["ssh", "web1"], lab="shop", agent=lambda: agent, services=(), folder=tmp_path
    )
    yield made
    made.close()


@pytest.mark.parametrize("login", ["sh", "bash"])
def test_the_agent_runs_without_a_name(
    node: OpenSshNode, tools: Path, tmp_path: Path, login: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGIN", login)
    link = node.link()
    assert not link.closed
    assert (tmp_path / "agent").read_text().endswith("(deleted)\n")
    given = (tmp_path / "ssh").read_text().splitlines()
    assert {"BatchMode=yes", "RemoteCommand=none", "web1"} <= {*given}
    # These would leave ~/.Xauthority, a socket, or a network interface on the machine.
    assert {"ForwardX11=no", "ForwardAgent=no", "Tunnel=no"} <= {*given}
    assert given.index("--") == given.index("web1") - 1
    assert not [option for option in given if "StrictHostKeyChecking" in option]


def test_what_a_login_prints_is_not_the_agent(node: OpenSshNode, tools: Path) -> None:
    put(tools / "ssh", SSH.replace("exec", "echo Welcome; printf 'to this machine'\nexec"))
    assert not node.link().closed


def test_the_user_is_the_one_who_called_sudo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, "caller", lambda: owner.Owner(1000, 1001))
    monkeypatch.setattr(owner, "login_home", lambda: Path("/home/a"))
    given = client.as_caller()
    assert given[:3] == ["setpriv", "--reuid=1000", "--regid=1001"]
    assert "HOME=/home/a" in given[given.index("env") :]  # for ProxyCommand and Match exec
    monkeypatch.setattr(owner, "caller", lambda: None)
    assert client.as_caller() == []


@pytest.mark.parametrize(
    ("said", "message", "hint"),
    [
        ("@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\n"
         "Offending ED25519 key in /home/a/.ssh/known_hosts:7\nHost key verification failed.",
         "another host key", "line 7 of /home/a/.ssh/known_hosts"),
        ("Host key verification failed.", "not known", "ssh web1"),
        ("No ED25519 host key is known for web1 and you have requested strict checking.\n"
         "Host key verification failed.", "not known", "fingerprint"),
        ("root@web1: Permission denied (publickey).", "publickey", "ssh-add"),
        ("ssh: connect to host web1 port 22: Connection refused", "refused", "ssh web1"),
        ("ssh: Could not resolve hostname web1: Name or service not known", "resolve", "ssh web1"),
        ("channel 0: open failed: connect failed: No route to host\n"
         "Connection closed by UNKNOWN port 65535", "No route", "ssh web1"),
        ("", "255", "ssh web1"),
    ],
)  # fmt: skip
def test_a_login_that_fails_says_why(
    node: OpenSshNode, tools: Path, said: str, message: str, hint: str
) -> None:
    put(tools / "ssh", f"#!/bin/sh\ncat >&2 << 'END'\n{said}\nEND\nexit 255\n")
    with pytest.raises(LabError) as caught:
        node.link()
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")
    assert "web1" in caught.value.message


def test_a_user_who_is_not_root_needs_sudo(node: OpenSshNode, tools: Path) -> None:
    put(tools / "id", "#!/bin/sh\necho 1000\n")
    put(tools / "sudo", "#!/bin/sh\necho 'sudo: a password is required' >&2\nexit 1\n")
    with pytest.raises(LabError) as caught:
        node.link()
    assert "password" in caught.value.message
    assert "NOPASSWD" in (caught.value.hint or "")
    put(tools / "sudo", '#!/bin/sh\nshift\necho "$@" >> "$OUT/sudo"\nexec "$@"\n')
    assert not node.link().closed
    assert (Path(os.environ["OUT"]) / "sudo").read_text().startswith("true\nsh -c")


def test_a_machine_that_stops_reading_is_not_waited_for(
    node: OpenSshNode, tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "agent-of-ours").write_bytes(b"#" * (1 << 20))
    put(tools / "head", "#!/bin/sh\nexec sleep 600\n")
    answer = client._answer

    def impatient(*given: Any) -> str:
        found = answer(*given)
        monkeypatch.setattr(client, "PATIENCE", 0.0)
        return found

    monkeypatch.setattr(client, "_answer", impatient)
    with pytest.raises(LabError) as caught:
        node.link()
    assert "no answer" in caught.value.message


@pytest.mark.parametrize("size", [1, 1 << 20])
def test_a_machine_without_space_is_told(
    node: OpenSshNode, tools: Path, tmp_path: Path, size: int
) -> None:
    (tmp_path / "agent-of-ours").write_bytes(b"#" * size)
    put(tools / "head", "#!/bin/sh\necho 'head: No space left on device' >&2\nexit 1\n")
    with pytest.raises(LabError) as caught:
        node.link()
    assert "web1 cannot be reached" in caught.value.message
    assert "No space left" in caught.value.message
    assert caught.value.hint


def test_a_machine_without_linux_is_told(
    node: OpenSshNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "RECEIVE", client.RECEIVE.replace("/proc", "/no-proc"))
    with pytest.raises(LabError) as caught:
        node.link()
    assert "Linux" in caught.value.message


def test_a_machine_of_another_architecture_is_refused(node: OpenSshNode, tools: Path) -> None:
    put(tools / "uname", "#!/bin/sh\necho riscv64\n")
    with pytest.raises(LabError) as caught:
        node.link()
    assert "riscv64" in caught.value.message


def test_a_machine_that_does_not_answer_is_not_waited_for(
    node: OpenSshNode, tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tools / "ssh", "#!/bin/sh\nexec sleep 600\n")
    monkeypatch.setattr(client, "PATIENCE", 0.0)
    with pytest.raises(LabError) as caught:
        node.link()
    assert "no answer" in caught.value.message


def test_what_would_change_a_machine_is_refused(node: OpenSshNode, tmp_path: Path) -> None:
    asked: list[Callable[[], object]] = [
        lambda: node.start(Service("a", ("true",))),
        lambda: node.start_again("a"),
        lambda: node.stop("a"),
        lambda: node.put(b"", "/etc/a"),
        lambda: node.provide(tmp_path),
        lambda: node.offer({"a": tmp_path}),
    ]
    for ask in asked:
        with pytest.raises(UsageError):
            ask()


def test_daemons_are_found_by_their_names(tmp_path: Path) -> None:
    node = OpenSshNode(
        "a", ["ssh", "a"], lab="l", agent=Path, services=["dockerd", "etcd"], folder=tmp_path
    )
    node.run = lambda *_, **__: SimpleNamespace(stdout="dockerd 70\ndockerd 9\n")  # type: ignore[method-assign, assignment]
    assert {name: one.pid for name, one in node.services().items()} == {"dockerd": 9}


# -- labs ----------------------------------------------------------------------------------


class Racks(AttachedProvider):
    """Machines in memory that exist already."""

    name = "racks"
    existing = "racks in memory"
    there: ClassVar[FakeProvider]
    silent: ClassVar[dict[str, str]]

    def of_machines(self, topology: Topology) -> Provider:
        del topology
        return Filled()

    def nodes(self, lab: str) -> dict[str, Node]:
        del lab
        return {}


class Filled(Racks):
    def nodes(self, lab: str) -> dict[str, Node]:
        del lab
        return dict(self.there.nodes("machines"))

    def ended(self, lab: str) -> dict[str, str]:
        del lab
        return self.silent


LAB = """\
name: shop
provider: racks
networks: {lan: {subnet: 10.168.0.0/24}}
nodes:
  web1: {networks: {lan: 10.168.0.2}}
  web2: {networks: {lan: 10.168.0.3}}
"""


@pytest.fixture
def racks(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Settings:
    Racks.there, Racks.silent = FakeProvider(name="racks"), {}
    machine: FakeMachine = Racks.there.machine
    machine.script(["sh", "-c", SYSTEM], Answer(out=b"6.1.0\nDebian GNU/Linux 12\n"))
    bench.provider = Racks.there
    Racks.there.create("machines", [NodeSpec(name, "") for name in ("web1", "web2")])
    declare(monkeypatch, PROVIDERS, "racks", f"{__name__}:Racks")
    monkeypatch.setattr(bench.settings, "providers", {**bench.settings.providers, "racks": Racks()})
    return bench.settings


@pytest.fixture
def text(monkeypatch: pytest.MonkeyPatch, racks: Settings) -> Topology:
    del racks
    return shop(LAB)


def test_the_plan_only_looks(text: Topology) -> None:
    found = plan.make(text)
    assert [*found.steps] == ["node web1", "node web2"]
    assert all("look" in step.about for step in found.steps.values())


def test_up_looks_and_records_and_down_forgets(racks: Settings, text: Topology) -> None:
    lab = Lab("shop", racks)
    calls = Racks.there.machine.calls
    calls.clear()
    outcome = lab.up(text)
    assert len(outcome.changed) == 2
    assert "Debian GNU/Linux 12, kernel 6.1.0" in outcome.steps[0].words
    assert lab.attached == "racks in memory" == lab.topology().attached
    assert not lab.up(text).changed
    assert [*lab.context().nodes] == ["web1", "web2"]
    assert {call.what for call in calls} <= {"run", "services"}
    assert lab.down()
    assert [*Racks.there.nodes("machines")] == ["web1", "web2"]
    assert not lab.down()


def test_a_lab_of_one_file_is_not_replaced_by_that_of_another(
    racks: Settings, text: Topology, bench: Bench
) -> None:
    lab = Lab("shop", racks)
    lab.up(text)
    other = shop(LAB.replace("web2", "web3"))
    with pytest.raises(UsageError):
        lab.up(other)
    with pytest.raises(UsageError):
        lab.up(shop(LAB.replace("racks", "netns")))
    lab.down()
    lab.up(shop(LAB.replace("racks", "netns")))
    with pytest.raises(UsageError):
        lab.up(text)
    assert not lab.attached
    del bench


def test_a_machine_that_cannot_be_reached_fails_up(racks: Settings, text: Topology) -> None:
    Racks.there.machine.script(["sh", "-c", SYSTEM], lambda call: _away(call.node))
    lab = Lab("shop", racks)
    with pytest.raises(StepsFailed):
        lab.up(text)
    assert racks.state.read("shop") is None
    with pytest.raises(StepsFailed):
        lab.up(text, keep=True)
    assert lab.attached


def test_a_machine_that_the_file_has_got_since_is_new(racks: Settings, text: Topology) -> None:
    lab = Lab("shop", racks)
    lab.up(shop(LAB[: LAB.index("  web2")]))
    changed = lab.up(text, replace=True).changed
    assert [one.step.name for one in changed] == ["node web2"]


def test_the_timeout_is_for_waiting_too(racks: Settings, text: Topology) -> None:
    with racks.state.lock("shop", "another up"), pytest.raises(TimeoutExpired):
        Lab("shop", racks).up(text, timeout=0.1)


def _away(name: str) -> Answer:
    if name == "web2":
        raise LabError("web2 cannot be reached: Connection refused")
    return Answer(out=b"6.1.0\n")


def test_a_machine_that_does_not_answer_is_missing(racks: Settings, text: Topology) -> None:
    lab = Lab("shop", racks)
    lab.up(text)
    Racks.silent = {"web2": "web2 cannot be reached: Connection refused"}
    found = {one.name: one for one in status(lab.remains()).nodes}
    assert (found["web1"].state, found["web2"].state) == ("up", "missing")
    assert "refused" in found["web2"].words
    with pytest.raises(LabError) as caught:
        common.whole(lab)
    assert "web2" in caught.value.message
    assert "refused" in caught.value.message
    Racks.silent = {}
    assert common.whole(lab).nodes


def test_the_lab_is_updated_and_not_broken(racks: Settings, text: Topology) -> None:
    lab = Lab("shop", racks)
    lab.up(text)
    assert common.to_update(lab).name == "shop"
    assert Faults(lab).in_force() == []
    with pytest.raises(UsageError):
        fault_of("kill web1/dockerd", text)
    for what in ("stopped", "compared"):
        with pytest.raises(UsageError):
            lab.refuse_attached(what)
    with pytest.raises(NoSuchNode):
        lab.node("web9")


@pytest.mark.parametrize("there", [True, False])
def test_a_machine_needs_no_os_release(tmp_path: Path, there: bool) -> None:
    file = tmp_path / "os-release"
    if there:
        file.write_text('PRETTY_NAME="Some  * Linux"\n')
    script = SYSTEM.replace("/etc/os-release", str(file))
    done = process.run(["sh", "-c", script])
    release, *names = done.out.decode().splitlines()
    assert release == os.uname().release
    assert [*filter(None, names)] == (["Some  * Linux"] if there else [])


def test_doctor_tells_what_it_needs(capfd: pytest.CaptureFixture[str]) -> None:
    cli.run(["doctor", "--provider", "ssh"])
    assert "ssh" in capfd.readouterr().out


# -- checks that change a machine ------------------------------------------------------------

CHECKS = """\
import pytest


@pytest.mark.testbed_changes
def test_changes(lab):
    pass


def test_breaks(fault):
    pass


def test_looks(lab):
    pass
"""


@pytest.mark.parametrize(
    ("provider", "allowed", "outcomes"),
    [
        ("racks", False, ["skipped", "skipped", "passed"]),
        ("racks", True, ["passed", "skipped", "passed"]),
        ("netns", False, ["passed", "passed", "passed"]),
    ],
)
def test_checks_that_change_machines_run_only_where_allowed(
    racks: Settings, tmp_path: Path, provider: str, allowed: bool, outcomes: list[str]
) -> None:
    lab = Lab("shop", racks)
    lab.up(shop(LAB.replace("racks", provider)))
    file = tmp_path / f"test_changes_{provider}_{allowed}.py"
    file.write_text(CHECKS)
    selection = Selection(paths=(file,), changes=allowed)
    live = LiveLab(lab.context())
    results = run(live, selection)
    live.close()
    assert [one.outcome for one in results.checks] == outcomes
    for one in results.checks:
        assert one.outcome != "skipped" or "racks in memory" in one.problem


def test_no_shipped_check_changes_a_machine_without_its_mark() -> None:
    """Helpers that change something are used by marked checks alone."""
    words = re.compile(
        r"\b(extra_container|extra_network|undone|link_down|sysctl_set|serving|scratch_machine"
        r"|fresh_docker|direct_access|third_host)\("
        r"|\.(put|provide|offer)\("
    )
    found = {}
    for path in sorted(FOLDER.glob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        if not re.search(r'testbed_needs\("(docker|flannel|etcd)', text):
            continue
        body = ast.parse(text).body
        functions = {node.name: node for node in body if isinstance(node, ast.FunctionDef)}
        for node in functions.values():
            if node.name.startswith("test_"):
                marks = " ".join(map(ast.unparse, node.decorator_list))
                needs_pods = re.search(r"pods|kubernetes|namespaces|cilium", marks + _mark_of(text))
                used = "\n".join(map(ast.unparse, _used(node, functions)))
                if words.search(used) and "testbed_changes" not in marks:
                    found[f"{path.name}::{node.name}"] = bool(needs_pods)
    assert [name for name, elsewhere in found.items() if not elsewhere] == []


def _used(test: ast.FunctionDef, functions: Mapping[str, ast.FunctionDef]) -> list[ast.FunctionDef]:
    """Return a test with the fixtures and functions of its file that it uses."""
    found, new = [test], [test]
    while new:
        one = new.pop()
        names = {node.id for node in ast.walk(one) if isinstance(node, ast.Name)}
        names |= {argument.arg for argument in one.args.args}
        for other in (functions[name] for name in names & functions.keys()):
            # A value may have the name of a fixture of other tests.
            fixture = any("fixture" in ast.unparse(mark) for mark in other.decorator_list)
            if other not in found and (not fixture or other.name in {a.arg for a in one.args.args}):
                found.append(other)
                new.append(other)
    return found


def test_no_shipped_check_takes_the_link_of_a_node_for_eth0() -> None:
    """A lab of this tool has eth0 there, and a machine that exists has any link."""
    own = re.compile(r"""\b(node|outside),\s*["']eth0["']""")
    found = {
        path.name: own.findall(text)
        for path in sorted(FOLDER.glob("test_docker_*.py")) + sorted(FOLDER.glob("test_fl*.py"))
        if own.search(text := path.read_text(encoding="utf-8"))
    }
    assert found == {}


def _mark_of(text: str) -> str:
    found = re.search(r"^pytestmark = (.*)$", text, re.MULTILINE)
    return found[1] if found else ""
