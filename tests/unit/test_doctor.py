"""Requirements of a machine, with a stand-in; the live tests use the real one."""

from __future__ import annotations

import os
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import pytest

from testbed import doctor, kernel, requirement
from testbed.artifacts import Store, bootstrap
from testbed.artifacts.debian import LIBRARIES
from testbed.artifacts.store import Entry
from testbed.errors import CommandError, MachineError, TimeoutExpired
from testbed.labs import preflight
from testbed.nodes.fake import FakeProvider
from testbed.process import Completed
from testbed.registry import PROVIDERS, ROLES
from testbed.requirement import Feature, Requirement, program
from testbed.roles.base import Role
from testbed.settings import settings
from testbed.testing import declare
from testbed.topology import load
from testbed.vm import accel, box

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from testbed.artifacts.source import Runner
    from testbed.steps.step import Step
    from testbed.topology import Topology
    from testbed.topology.model import Node


class Machine:
    """Answers by program; notes what was run."""

    def __init__(self, **answers: Completed | Exception) -> None:
        self.answers = answers
        self.calls: list[list[str]] = []

    def __call__(
        self,
        argv: Sequence[str | Path],
        *,
        cwd: str | Path | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
        check: bool = True,
        on_line: Callable[[str], None] | None = None,
        on_tick: Callable[[float], None] | None = None,
        cancel: object = None,
    ) -> Completed:
        self.calls.append([str(arg) for arg in argv])
        answer = self.answers.get(Path(argv[0]).name.replace("-", "_"), completed())
        if isinstance(answer, Exception):
            raise answer
        return answer


def completed(out: str = "", status: int = 0, err: str = "") -> Completed:
    return Completed((), status, out.encode(), err.encode())


@pytest.fixture
def store(tmp_path: Path) -> Store:
    config = tmp_path / "config.toml"
    config.touch()
    return Store(tmp_path / "cache", {}, config)


def features(output: str) -> dict[str, Requirement]:
    machine = Machine(unshare=completed(output))
    return {item.name: item for item in kernel.features(machine)}


def test_a_feature_is_what_its_try_said() -> None:
    found = features(
        "veth\t0\t\niptables variant\t0\tiptables v1.8.9 (nf_tables)\n"
        "netem\t2\tError: Specified qdisc kind is unknown.\nnf_tables\t127\tsh: nft: not found\n"
    )
    assert found["veth"].ok
    assert found["iptables variant"].detail == "iptables v1.8.9 (nf_tables)"
    netem = found["netem"]
    assert (netem.ok, netem.required) == (False, False)
    assert "qdisc kind is unknown" in netem.detail
    assert "CONFIG_NET_SCH_NETEM" in netem.fix
    assert found["nf_tables"].fix == "install the tool first"
    assert not found["bridge"].ok  # the script ended before it came to that
    assert found["bridge"].required


def test_no_namespaces_is_one_finding_not_twenty() -> None:
    machine = Machine(unshare=completed("", 1, "unshare: unshare failed: Operation not permitted"))
    (finding,) = kernel.features(machine)
    assert (finding.ok, finding.required) == (False, True)
    assert "Operation not permitted" in finding.detail


def test_without_mount_namespaces_are_not_tried() -> None:
    """A bare Debian 13 has no mount(8), nor has a minimal container."""
    machine = Machine(unshare=completed("", 127, "sh: 2: mount: not found"))
    (finding,) = kernel.features(machine)
    assert (finding.ok, finding.fix) == (False, kernel.TOOL_FIRST)
    assert "mount" in finding.detail
    assert next(tool for tool in doctor.tools() if tool.name == "mount").required
    assert preflight.programs(load("two-node"))["mount"] == "mount"


@pytest.mark.parametrize(
    "error",
    [
        CommandError(["unshare"], where="this machine", status=127, stderr="not found"),
        TimeoutExpired("not done"),
    ],
)
def test_a_probe_that_cannot_run_is_a_finding(error: Exception) -> None:
    (finding,) = kernel.features(Machine(unshare=error))
    assert not finding.ok


def test_every_try_is_one_shell_word_and_named_once() -> None:
    names = [item.name for item in kernel.known()]
    assert len(names) == len(set(names))
    for item in kernel.known():
        assert "'" not in item.try_it
        assert shlex.split(item.try_it)


def test_nothing_is_tried_outside_of_namespaces(store: Store) -> None:
    machine = Machine(unshare=completed("veth\t0\t\n"))
    doctor.findings(store, full=False, runner=machine)
    programs = {Path(call[0]).name for call in machine.calls}
    assert programs <= {"unshare", "cc", "gcc", "pkg-config"}
    (unshare,) = (call for call in machine.calls if call[0] == "unshare")
    assert {"--net", "--mount", "--pid"} <= set(unshare)


def test_each_finding_that_is_not_ok_has_a_fix(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor, "which", lambda _: None)
    monkeypatch.setattr(requirement, "which", lambda _: None)
    monkeypatch.setattr(accel, "which", lambda _: None)
    monkeypatch.setattr(bootstrap, "which", lambda _: None)
    monkeypatch.setattr(doctor, "go_on_path", lambda: None)
    monkeypatch.setattr(doctor, "DISK", 1 << 60)
    machine = Machine(unshare=completed("veth\t1\tno\n"))
    found = doctor.findings(store, state=tmp_path, runner=machine)
    bad = [item for item in found if not item.ok]
    assert len(bad) > 20
    assert [item.name for item in bad if not item.fix] == []
    assert [item.name for item in found if item.ok and (item.fix or item.packages)] == []
    ip = next(item for item in found if item.name == "ip")
    assert (ip.required, ip.packages) == (True, ("iproute2",))
    assert ip.fix == "apt-get install -y --no-install-recommends iproute2"
    for name in ("KVM", "virtual machines"):
        item = next(item for item in found if item.name == name)
        assert not item.required
        assert not item.packages  # --fix must not bring a hypervisor


def test_artifacts_that_are_missing_are_no_failure_but_a_users_wrong_path_is(
    tmp_path: Path,
) -> None:
    config = tmp_path / "config.toml"
    config.write_text("[artifacts]\nflanneld = {path = '/nowhere'}\n")
    store = Store(tmp_path, {}, config)
    found = {item.name: item for item in doctor._artifacts(store, store.list())}
    assert not found["artifact docker"].required
    assert found["artifact flanneld"].required
    assert "/nowhere" in found["artifact flanneld"].detail
    assert "artifact go" not in found


def test_entries_of_one_name_and_all_old_ones_share_a_line(tmp_path: Path) -> None:
    made = Entry("seed", "1.0", "k", tmp_path, 2_000_000, "engine", "cached")
    entries = [replace(made, key=str(number)) for number in range(30)]
    entries.append(replace(made, name="one"))
    entries += [replace(made, name="etcd", key=str(n), state="old") for n in range(4)]
    entries.append(Entry("gone", "", "g", None, 0, "go", "missing"))
    found = {item.name: item for item in doctor._artifacts(Store(tmp_path), entries)}
    assert list(found) == ["artifact seed", "artifact one", "artifact gone", "old artifacts"]
    assert found["artifact seed"].detail == "30 in the cache, 60 MB"
    assert found["artifact one"].detail == "1.0, 2 MB"
    assert found["old artifacts"].detail.startswith("4 in the cache, 8 MB")
    assert [item.ok for item in found.values()] == [True, True, False, True]
    assert not any(item.required for item in found.values())


@pytest.mark.parametrize(("status", "ok"), [(0, True), (1, False)])
def test_headers_that_go_programs_are_linked_with(
    status: int, ok: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("testbed.artifacts.gomod.which", lambda name: f"/usr/bin/{name}")
    answer = completed("", status)
    (found,) = doctor._headers(lambda *_, **__: answer)
    assert found.ok == ok
    assert not found.required  # only engine 29 is built with them
    assert ok or found.packages == ("pkg-config", "libseccomp-dev")


def test_fix_installs_in_one_go_and_makes_what_is_missing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    made: list[str] = []
    monkeypatch.setattr(store, "fetch", made.append)
    machine = Machine()
    said: list[str] = []

    def tell(_: str, words: str, /, *, ended: bool = False) -> None:
        said.append(f"{words}{' (ended)' * ended}")

    given = [
        Requirement("ip", False, "", packages=("iproute2",)),
        Requirement("C compiler", False, "", packages=("gcc", "libc6-dev")),
        Requirement("nft", True, "", packages=("nftables",)),
        Requirement("KVM", False, ""),
    ]
    doctor.fix(given, store, tell=tell, runner=machine)
    assert machine.calls == [
        [
            *("apt-get", "--yes", "--no-install-recommends", "--quiet", "install"),
            *("gcc", "iproute2", "libc6-dev"),
        ]
    ]
    assert made == [
        *("docker", "etcd", "flanneld", "docker-29", "docker-cli-29", "runc-1.5"),
        *("net-tools", "slirp4netns", "testbed-init", "nginx"),
    ]
    assert said[0] == "install gcc iproute2 libc6-dev"


def test_fix_updates_the_lists_when_the_packages_are_not_found(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(store, "fetch", lambda _: None)
    failure = CommandError(["apt-get"], where="this machine", status=100)
    machine = Machine(apt_get=failure)
    with pytest.raises(CommandError):
        doctor.fix([Requirement("ip", False, "", packages=("iproute2",))], store, runner=machine)
    assert [call[-1] for call in machine.calls] == ["iproute2", "update"]


def test_fix_needs_root_for_packages_only(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(store, "fetch", lambda _: None)
    doctor.fix([], store)
    with pytest.raises(MachineError, match=r"root .*: iproute2"):
        doctor.fix([Requirement("ip", False, "", packages=("iproute2",))], store)


class Hypervisor(FakeProvider):
    """A provider that needs a program, and a feature of the kernel (as qemu does)."""

    name = "qemu"
    kernel = ("tun",)

    def probe(self) -> list[Requirement]:
        return [
            Requirement("root", ok=False, detail="the doctor's own comes first"),
            Requirement("a hypervisor", ok=False, detail="no", fix="...", packages=("hypervisor",)),
        ]


def test_with_a_provider_what_it_needs_is_needed_and_is_what_fix_installs(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(store, "fetch", lambda _: None)
    machine = Machine(unshare=completed("veth\t0\t\ntun\t1\tno\n"))
    plain = doctor.findings(store, full=False, runner=machine)
    found = doctor.findings(store, provider=Hypervisor(), runner=machine)
    names = [item.name for item in found]
    assert names.count("root") == 1
    assert "virtual machines" not in names  # the summary for those who have not asked
    required = {item.name for item in found if item.required} - {
        i.name for i in plain if i.required
    }
    assert required == {"tun", "a hypervisor"}
    machine.calls.clear()
    doctor.fix([item for item in found if item.name == "a hypervisor"], store, runner=machine)
    assert machine.calls[0][-1] == "hypervisor"


class Deployer(FakeProvider):
    """A provider with an artifact that only its labs need."""

    name = "containerlab"

    def probe(self) -> list[Requirement]:
        return []


def test_with_a_provider_its_artifacts_are_needed_and_fix_builds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    machine = Machine(unshare=completed("veth\t0\t\n"))
    found = {i.name: i for i in doctor.findings(store, provider=Deployer(), runner=machine)}
    part = found["artifact containerlab"]
    assert (part.ok, part.required) == (False, True)
    plain = {i.name: i for i in doctor.findings(store, full=False, runner=machine)}
    assert not plain["artifact containerlab"].required

    fetched: list[str] = []
    monkeypatch.setattr(store, "fetch", fetched.append)
    doctor.fix([], store, runner=machine)
    assert "containerlab" not in fetched
    doctor.fix([], store, provider=Deployer(), runner=machine)
    assert "containerlab" in fetched


def test_the_packages_of_a_role_are_fetched_for_its_labs(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(store, "fetch", asked.append)
    machine = Machine(unshare=completed(""))
    doctor.fix([], store, runner=machine)
    assert not [name for name in asked if name.startswith("packages-")]
    doctor.fix([], store, role="frr", runner=machine)
    assert [name for name in asked if name.startswith("packages-")] == ["packages-frr"]
    found = doctor.findings(store, full=False, role="frr", runner=machine)
    needed = {item.name for item in found if item.required and not item.ok}
    assert "artifact packages-frr" in needed
    assert "artifact packages-bird2" not in needed


def test_what_qemu_needs_is_a_finding_with_its_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accel, "which", lambda _: None)
    monkeypatch.setattr(bootstrap, "which", lambda name: None if name == "qemu-img" else name)
    monkeypatch.setattr(bootstrap, "KEYRING", Path("/"))
    monkeypatch.setenv("TESTBED_CACHE", str(tmp_path))
    found = {item.name: item for item in settings().provider("qemu").probe()}
    assert found["virtual machines"].packages == ("qemu-system-x86", "qemu-utils")
    assert not any(found[name].ok for name in ("virtual machines", "a guest"))


def test_with_an_add_on_its_parts_are_needed_and_those_of_a_cluster(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(unshare=completed(""))
    asked: list[str] = []
    monkeypatch.setattr(store, "fetch", asked.append)

    def made(role: str) -> set[str]:
        asked.clear()
        doctor.fix([], store, role=role, runner=machine)
        return set(asked)

    def needed(role: str) -> set[str]:
        found = doctor.findings(store, full=False, role=role, runner=machine)
        return {item.name for item in found if item.required}

    everybodys, clusters = made(""), made("kubernetes")
    assert not {"contour", "envoy", "kubernetes"} & everybodys
    assert {"kubernetes", "coredns"} <= clusters
    assert made("ingress") - clusters == {"contour", "contour-image", "envoy", "envoy-image"}
    assert "artifact contour" not in needed("kubernetes")
    assert {"artifact contour", "artifact kubernetes", "socat"} <= needed("ingress")


@pytest.mark.parametrize("name", ["calico", "weave", "bgp", "kube-router"])
def test_a_network_plugin_is_known_and_what_it_needs_is_needed(store: Store, name: str) -> None:
    lacks_dummy = Machine(unshare=completed("dummy\t2\tUnknown device type\nipset\t0\t\n"))

    def found(role: str) -> dict[str, Requirement]:
        said = doctor.findings(store, full=False, role=role, runner=lacks_dummy)
        return {item.name: item for item in said}

    assert not found("")["dummy"].required
    assert found(name)["dummy"].required == (name == "weave")
    assert not found(name)["dummy"].ok
    brought = {"calico": "Calico", "weave": "Weave Net"}
    for plugin, title in brought.items():
        item = found(name)[title]
        assert not item.ok
        assert item.required == (plugin == name)
        assert f"{plugin}-manifest" in item.fix


class Tunnels(Role):
    """Brings a kernel feature that testbed does not know, and uses one that it does."""

    name = "tunnels"
    kernel = ("gre", "overlay")
    optional_kernel: ClassVar[dict[str, str]] = {"netem": "slow tunnels"}
    trials = (Feature("gre", "ip link add t9 type gre", "CONFIG_NET_IPGRE"),)
    programs: ClassVar[dict[str, str]] = {"ip": "iproute2", "swanctl": "strongswan-swanctl"}

    def requirements(self, store: Store) -> Iterable[Requirement]:
        del store
        yield program("ip", "iproute2", ("tunnels in namespaces",), required=False)

    def steps(self, topology: Topology, node: Node) -> Iterable[Step]:
        del topology, node
        return ()


class RareTunnels(Tunnels):
    on_request = True


@pytest.mark.parametrize("role", [Tunnels, RareTunnels])
def test_a_role_of_somebody_else_says_itself_what_it_needs(
    store: Store, monkeypatch: pytest.MonkeyPatch, role: type[Tunnels]
) -> None:
    declare(monkeypatch, ROLES, "tunnels", f"{__name__}:{role.__name__}")
    machine = Machine(unshare=completed("veth\t0\t\ngre\t2\tunknown\nnetem\t0\t\n"))

    def look(role: str = "") -> dict[str, Requirement]:
        found = doctor.findings(store, full=False, role=role, runner=machine)
        return {item.name: item for item in found}

    found = look()
    assert "ip link add t9 type gre" in machine.calls[0]
    assert (found["gre"].ok, found["gre"].needed_by) == (False, ("tunnels",))
    assert "CONFIG_NET_IPGRE" in found["gre"].fix
    assert found["gre"].required == found["swanctl"].required == (not role.on_request)
    assert found["swanctl"].needed_by == ("tunnels",)
    assert "tunnels" in found["overlay"].needed_by
    assert "slow tunnels" in found["netem"].needed_by
    assert not found["netem"].required
    assert {"every lab", "tunnels", "tunnels in namespaces"} <= {*found["ip"].needed_by}
    assert found["ip"].required
    asked = look("tunnels")
    assert asked["gre"].required
    assert asked["swanctl"].required
    assert not asked["netem"].required


class Tunnelled(FakeProvider):
    name = "tunnelled"
    kernel = ("gre",)
    trials = Tunnels.trials

    @classmethod
    def summary(cls, cache: Path, *, full: bool, runner: Runner) -> Iterable[Requirement]:
        del cache, runner
        yield Requirement("a far end", ok=full, detail="", needed_by=("provider tunnelled",))


def test_a_provider_of_somebody_else_says_itself_what_it_needs(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(monkeypatch, PROVIDERS, "tunnelled", f"{__name__}:Tunnelled")
    machine = Machine(unshare=completed("gre\t0\t\n"))
    found = {item.name: item for item in doctor.findings(store, full=False, runner=machine)}
    assert (found["gre"].ok, found["gre"].required) == (True, False)
    assert found["gre"].needed_by == ("provider tunnelled",)
    assert (found["a far end"].ok, found["a far end"].required) == (False, False)
    asked = doctor.findings(store, provider=Tunnelled(), runner=machine)
    assert {item.name: item.required for item in asked}["gre"]


def test_a_requirement_of_several_is_one_and_unmet_if_one_says_so() -> None:
    one = Requirement("disk", ok=True, detail="fine", needed_by=("a",), required=False)
    other = Requirement("disk", ok=False, detail="too small", needed_by=("b", "a"), required=True)
    for given in ([one, other], [other, one]):
        (found,) = requirement.merge(given)
        assert (found.ok, found.detail, found.required) == (False, "too small", True)
        assert {*found.needed_by} == {"a", "b"}


def test_docker_and_etcd_are_never_installed() -> None:
    packages = {tool.package for tool in doctor.tools()} | set(LIBRARIES.values())
    assert not {"docker.io", "etcd-server", "etcd-client", "containerd", "runc"} & packages


@pytest.mark.parametrize(("kind", "ok"), [("kvm", True), ("tcg", False)])
def test_kvm_is_what_the_probe_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: accel.Kind, ok: bool
) -> None:
    answer = accel.Acceleration(kind, "a guest told", 0.1)
    monkeypatch.setattr(accel, "probe", lambda *_, **__: answer)
    finding = box.kvm("qemu", tmp_path)
    assert finding.ok == ok
    assert finding.detail == f"a guest told; {answer.cost}"
    assert bool(finding.fix) != ok
    assert not finding.required


def test_without_qemu_kvm_is_not_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(accel, "which", lambda _: None)
    finding = box.kvm("qemu", tmp_path)
    assert not finding.ok
    assert finding.detail.startswith("not tested: ")
    assert finding.fix
