"""Machines that are nodes of a cluster: the Pods that lead there, with an API server in memory."""

from __future__ import annotations

import functools
import json
import os
import platform
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from kube_api import Api, kubeconfig, served
from topology_texts import problems

from testbed import cli
from testbed.errors import LabError, MachineError, NoAnswer, StepsFailed, UsageError
from testbed.labs.existing import SYSTEM
from testbed.labs.lab import Lab, labs
from testbed.labs.survey import lines, survey
from testbed.nodes.base import NodeSpec, Setup
from testbed.nodes.fake import Answer, FakeProvider
from testbed.nodes.kubectl_debug import kubeconfig as source
from testbed.nodes.kubectl_debug import manifest
from testbed.nodes.kubectl_debug.machines import ClusterMachines
from testbed.nodes.kubectl_debug.node import ENTER
from testbed.nodes.kubectl_debug.provider import KubectlDebugProvider
from testbed.nodes.kubectl_debug.way import ARCHITECTURES, Way, settings_of
from testbed.nodes.kubernetes import CONTEXT, manifests
from testbed.nodes.kubernetes.cluster import Cluster, Refused
from testbed.roles.kubernetes import config, noticed
from testbed.testing import FakeStore
from testbed.topology import load_text
from testbed.topology.load import load_data

if TYPE_CHECKING:
    from testbed.labs.lab import Settings
    from testbed.testing.fakes import Bench
    from testbed.topology import Topology

TEXT = """\
name: prod
provider: kubectl-debug
nodes:
  worker-1: {}
  db: {on: ip-10-0-2.ec2}
"""
HERE = next(go for go, uname in ARCHITECTURES.items() if uname == platform.machine())


def machine(name: str, **status: Any) -> dict[str, Any]:
    """A node of a cluster as the API returns it."""
    info = {"architecture": HERE, "operatingSystem": "linux"}
    info["containerRuntimeVersion"] = "containerd://1.7.2"
    ready = {"type": "Ready", "status": "True"}
    there = {"nodeInfo": info, "conditions": [ready], **status}
    meta = {"name": name, "uid": name, "labels": {}}
    return {"kind": "Node", "metadata": meta, "status": there}


def away(name: str) -> dict[str, Any]:
    words = "Kubelet stopped posting node status."
    return machine(name, conditions=[{"type": "Ready", "status": "Unknown", "message": words}])


@pytest.fixture
def api() -> Iterator[Api]:
    with served() as made:
        for name in ("worker-1", "ip-10-0-2.ec2"):
            made.objects[f"/api/v1/nodes/{name}"] = machine(name)
        yield made


@pytest.fixture
def file(api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The kubeconfig, which is the user's."""
    path = Path(kubeconfig(tmp_path, api.url))
    monkeypatch.setenv("KUBECONFIG", str(path))
    for name in (CONTEXT, "TESTBED_KUBE_NAMESPACE", "TESTBED_KUBE_IMAGE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("testbed.nodes.kubernetes.cluster.PATIENCE", 0.0)
    return path


def provider(folder: Path) -> KubectlDebugProvider:
    return KubectlDebugProvider.of(Setup(folder / "state", FakeStore()))


def way(made: KubectlDebugProvider, text: str = TEXT) -> Way:
    return Way(load_text(text, "prod.yaml"), made._sites, made._setup)


def objects(api: Api, kind: str) -> list[dict[str, Any]]:
    return [one for one in api.objects.values() if one["kind"] == kind]


def made_in(api: Api) -> set[str]:
    return {one["kind"] for one in api.objects.values()} - {"Node"}


# -- the file ----------------------------------------------------------------------------


def test_keys_of_the_file_precede_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", "/env")
    for name, value in {CONTEXT: "env", "TESTBED_KUBE_NAMESPACE": "env",
                        "TESTBED_KUBE_IMAGE": "env:1"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    given = settings_of(load_text(TEXT, "prod.yaml"))
    found = (given.kubeconfig, given.context, given.namespace, given.image)
    assert found == ("/env", "env", "env", "env:1")
    section = "kubectl-debug: {kubeconfig: k, context: a b, namespace: debug, image: 'r:5/n@sha256:"
    topology = load_text(f"{TEXT}{section}{'0' * 64}'}}\n", "prod.yaml")
    given = settings_of(topology)
    assert given.kubeconfig == str(topology.folder / "k")
    assert (given.context, given.namespace) == ("a b", "debug")
    assert given.image.startswith("r:5/n@sha256:")
    assert load_data(topology.to_dict(), "record").to_dict() == topology.to_dict()


@pytest.mark.parametrize(
    ("section", "hint"),
    [
        ("context: ''", "kubectl"), ("namespace: My Space", "kubectl"), ("image: A B", "push"),
        ("node: x", "`on`"), ("kubeconfig: ''", ""), ("config: x", "kubeconfig"),
        ("profile: general", "sysadmin"), ("install: true", "looks"),
    ],
)  # fmt: skip
def test_a_wrong_key_is_told(section: str, hint: str) -> None:
    text = f"{TEXT}kubectl-debug: {{{section}}}\n"
    (found,) = problems(text)
    assert found.line == len(text.splitlines())
    assert hint in found.hint


def test_what_would_change_a_machine_is_refused_by_name() -> None:
    (found,) = problems(TEXT.replace("worker-1: {}", "worker-1: {sysctls: {kernel.panic: 1}}"))
    assert found.line == 4


# -- the Pod -----------------------------------------------------------------------------


def test_the_pod_is_in_the_namespaces_of_the_node_and_ends_by_itself() -> None:
    owner = {"name": "job", "uid": "1"}
    made = manifest.pod("p", {"a": "b"}, owner, machine="db", host="w", image="i", seconds=60)
    spec = made["spec"]
    assert spec["nodeName"] == "w"
    assert {spec["hostNetwork"], spec["hostPID"], spec["hostIPC"]} == {True}
    assert spec["tolerations"] == [{"operator": "Exists"}]
    assert spec["activeDeadlineSeconds"] == 60
    assert spec["containers"][0]["securityContext"] == {"privileged": True}
    assert not spec["automountServiceAccountToken"]
    assert made["metadata"]["ownerReferences"][0]["uid"] == "1"


AGENT = """\
#!/bin/sh
readlink "$0"
[ -e /proc/self/fd/9 ] && echo open
echo "$HOME ${KUBERNETES_PORT-unset}"
cat
exit 7
"""


def test_the_agent_is_started_from_its_open_file(tmp_path: Path) -> None:
    """The script itself, but for the namespaces of another process."""
    agent = tmp_path / "agent"
    agent.write_text(AGENT)
    agent.chmod(0o755)
    enter = "nsenter --target=1 --mount --uts --ipc --net --cgroup -- "
    assert enter in ENTER
    done = subprocess.run(
        ["sh", "-c", ENTER.replace(enter, ""), "sh", str(agent)],
        input=b"said", capture_output=True, check=False, env={**os.environ, "KUBERNETES_PORT": "1"},
    )  # fmt: skip
    assert done.stdout.decode().splitlines() == [str(agent), "/root unset", "said"], done.stderr
    assert done.returncode == 7


# -- the way to the machines -------------------------------------------------------------


def test_a_pod_is_created_when_a_machine_is_needed(api: Api, file: Path, tmp_path: Path) -> None:
    made = provider(tmp_path)
    nodes = made.of_machines(load_text(TEXT, "prod.yaml")).nodes("prod")
    assert [*nodes] == ["worker-1", "db"]
    assert api.asked == [], "no cluster is asked"
    found = way(made).entrance("db")
    assert found.pod.worker == "ip-10-0-2.ec2"
    (pod,) = objects(api, "Pod")
    assert pod["spec"]["nodeName"] == "ip-10-0-2.ec2"
    (job,) = objects(api, "Job")
    assert pod["metadata"]["ownerReferences"][0]["uid"] == job["metadata"]["uid"]
    (namespace,) = objects(api, "Namespace")
    assert namespace["metadata"]["labels"][manifests.ENFORCE] == "privileged"
    assert made.labs() == ["prod"]


def test_another_process_uses_what_is_there(api: Api, file: Path, tmp_path: Path) -> None:
    first = way(provider(tmp_path)).entrance("worker-1")
    before = len(api.asked)
    again = way(provider(tmp_path)).entrance("worker-1")
    assert again.pod.uid == first.pod.uid
    assert [method for method, _ in api.asked[before:]] == ["GET"], "one list of Pods"
    way(provider(tmp_path)).entrance("db")
    assert len(objects(api, "Pod")) == 2
    assert len(objects(api, "Namespace")) == 1


def test_a_lab_that_has_expired_is_connected_again(api: Api, file: Path, tmp_path: Path) -> None:
    way(provider(tmp_path)).entrance("db")
    (namespace,) = objects(api, "Namespace")
    for kind in ("Pod", "Job"):  # as the cluster does it
        api.objects = {path: one for path, one in api.objects.items() if one["kind"] != kind}
    way(provider(tmp_path)).entrance("db")
    assert len(objects(api, "Pod")) == 1
    (there,) = objects(api, "Namespace")
    assert there["metadata"]["uid"] != namespace["metadata"]["uid"]


def test_a_file_that_names_another_place_moves_the_pods(
    api: Api, file: Path, tmp_path: Path
) -> None:
    way(provider(tmp_path)).entrance("db")
    same = f"{TEXT}kubectl-debug: {{context: here}}\n"
    way(provider(tmp_path), same).entrance("db")
    assert len(objects(api, "Namespace")) == 1
    moved = f"{TEXT}kubectl-debug: {{namespace: debug}}\n"
    way(provider(tmp_path), moved).entrance("db")
    assert objects(api, "Namespace") == []
    assert [path.split("/")[4] for path in api.objects if "/pods/" in path] == ["debug"]


def test_a_pod_that_has_ended_is_replaced(api: Api, file: Path, tmp_path: Path) -> None:
    used = way(provider(tmp_path))
    first = used.entrance("db")
    (pod,) = objects(api, "Pod")
    pod["status"] = {"phase": "Failed", "reason": "Evicted"}
    assert "Evicted" in first.why_ended()
    error = first.lost_error()
    assert "Evicted" in error.message
    assert "again" in (error.hint or "")
    assert used.entrance("db").pod.uid != first.pod.uid
    assert len(objects(api, "Pod")) == 1


@pytest.mark.parametrize(
    ("there", "words"),
    [
        (away("worker-1"), "stopped posting"),
        (None, "no node worker-1"),
        (machine("worker-1", nodeInfo={"architecture": "riscv64"}), "riscv64"),
        (machine("worker-1", conditions=[]), "not ready"),
    ],
)
def test_a_node_on_which_nothing_runs_is_told_and_gets_no_pod(
    api: Api, file: Path, tmp_path: Path, there: dict[str, Any] | None, words: str
) -> None:
    del api.objects["/api/v1/nodes/worker-1"]
    if there is not None:
        api.objects["/api/v1/nodes/worker-1"] = there
    used = way(provider(tmp_path))
    with pytest.raises(LabError) as caught:
        used.entrance("worker-1")
    assert words in caught.value.message
    assert "kubectl" in (caught.value.hint or "")
    assert objects(api, "Pod") == []
    assert used.entrance("db"), "the others can be reached"


def test_all_pods_are_created_at_once_but_those_that_would_not_run(
    api: Api, file: Path, tmp_path: Path
) -> None:
    api.objects["/api/v1/nodes/worker-1"] = away("worker-1")
    used = way(provider(tmp_path))
    used.prepare()
    used.prepare()
    assert [pod["spec"]["nodeName"] for pod in objects(api, "Pod")] == ["ip-10-0-2.ec2"]
    with pytest.raises(LabError):
        used.entrance("worker-1")


def test_who_may_not_look_at_nodes_learns_it_from_the_pod(
    api: Api, file: Path, tmp_path: Path
) -> None:
    api.refuse = lambda method, path: (
        (403, {"reason": "Forbidden", "message": "no"}) if "/api/v1/nodes" in path else None
    )
    used = way(provider(tmp_path))
    used.prepare()
    assert len(objects(api, "Pod")) == 2
    assert used.entrance("db")


def test_an_image_that_cannot_be_pulled_is_told(api: Api, file: Path, tmp_path: Path) -> None:
    create = api.create

    def stuck(plain: str, query: str, body: Any) -> tuple[int, dict[str, Any]]:
        status, made = create(plain, query, body)
        if body["kind"] == "Pod":
            state = {"waiting": {"reason": "ErrImagePull", "message": "no such image"}}
            named = [{"name": "node", "state": state}]
            made["status"] = {"phase": "Pending", "containerStatuses": named}
        return status, made

    api.create = stuck  # type: ignore[method-assign]
    with pytest.raises(LabError) as caught:
        way(provider(tmp_path)).entrance("db")
    assert "no such image" in caught.value.message
    assert "`image`" in (caught.value.hint or "")


@pytest.mark.parametrize("own", [True, False])
def test_podsecurity_refuses_before_anything_stays(
    api: Api, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, own: bool
) -> None:
    if not own:
        monkeypatch.setenv("TESTBED_KUBE_NAMESPACE", "shared")
    words = 'violates PodSecurity "restricted:latest": host namespaces'
    api.refuse = lambda method, path: (
        (403, {"reason": "Forbidden", "message": words}) if "/pods?dryRun" in path else None
    )
    made = provider(tmp_path)
    machines = made.of_machines(load_text(TEXT, "prod.yaml"))
    with pytest.raises(MachineError) as caught:
        machines.prepare("prod", ())
    assert "kubectl label namespace" in (caught.value.hint or "")
    assert made_in(api) == set()
    assert made.labs() == []


def test_missing_rights_are_named_before_anything_is_made(
    api: Api, file: Path, tmp_path: Path
) -> None:
    api.allowed = False
    with pytest.raises(MachineError) as caught:
        way(provider(tmp_path)).site()
    assert "create pods/exec" in caught.value.missing
    assert made_in(api) == set()


def test_requests_for_a_machine_do_not_grow_with_the_lab(
    api: Api, file: Path, tmp_path: Path
) -> None:
    counts = []
    for many in (1, 20):
        names = [f"n{many}-{number}" for number in range(many)]
        for name in names:
            api.objects[f"/api/v1/nodes/{name}"] = machine(name)
        nodes = "".join(f"  {name}: {{}}\n" for name in names)
        text = f"name: l{many}\nprovider: kubectl-debug\nnodes:\n{nodes}"
        used = way(provider(tmp_path), text)
        before = len(api.asked)
        used.prepare()
        for name in names:
            used.entrance(name)
        counts.append((len(api.asked) - before, many))
    (few, one), (more, twenty) = counts
    assert (more - few) / (twenty - one) <= 4


# -- labs --------------------------------------------------------------------------------


@pytest.fixture
def there(
    bench: Bench, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Settings, FakeProvider]:
    """Settings with the provider, whose Pods are in the API and whose machines are in memory."""
    fake = FakeProvider(name="there")
    fake.script(["sh", "-c", SYSTEM], Answer(out=b"6.1.0\nDebian GNU/Linux 12\n"))

    def nodes(self: ClusterMachines, lab: str) -> Any:
        del lab
        known = fake.nodes("there")
        new = [NodeSpec(name, "") for name in self._topology.nodes if name not in known]
        fake.create("there", new)
        return {name: fake.nodes("there")[name] for name in self._topology.nodes}

    monkeypatch.setattr(ClusterMachines, "nodes", nodes)
    made = KubectlDebugProvider.of(bench.settings.setup)
    monkeypatch.setattr(
        bench.settings, "providers", {**bench.settings.providers, "kubectl-debug": made}
    )
    return bench.settings, fake


def prod() -> Topology:
    return load_text(TEXT, "prod.yaml")


def test_down_removes_the_pods_and_forgets_the_lab(
    api: Api, there: tuple[Settings, FakeProvider]
) -> None:
    settings, _ = there
    lab = Lab("prod", settings)
    lab.up(prod())
    assert lab.attached == "nodes of a Kubernetes cluster"
    assert made_in(api) >= {"Job", "Namespace"}
    lab.up(prod())
    assert len(objects(api, "Job")) == 1
    assert lab.down()
    assert made_in(api) == set()
    assert labs(settings) == []


def test_a_lab_of_a_cluster_that_is_gone_is_kept_and_can_be_forgotten(
    api: Api, there: tuple[Settings, FakeProvider]
) -> None:
    settings, _ = there
    lab = Lab("prod", settings)
    lab.up(prod())
    api.refuse = lambda method, path: (503, {})
    with pytest.raises(NoAnswer) as caught:
        lab.down()
    assert lab.attached
    (_, named, _) = (caught.value.hint or "").rsplit("`", 2)
    Path(named.removeprefix("rm ")).unlink()
    assert lab.down()


def test_an_up_that_fails_leaves_nothing(api: Api, there: tuple[Settings, FakeProvider]) -> None:
    settings, fake = there
    fake.fail("run", "db", LabError("db cannot be reached"))
    with pytest.raises(StepsFailed):
        Lab("prod", settings).up(prod())
    assert made_in(api) == set()
    assert labs(settings) == []


def test_an_up_after_one_that_was_killed_uses_what_it_has_left(
    api: Api, there: tuple[Settings, FakeProvider]
) -> None:
    settings, _ = there

    def die() -> None:
        settings.providers["kubectl-debug"].of_machines(prod()).prepare("prod", ())

    die()
    assert labs(settings) == ["prod"], "`ls` shows it"
    Lab("prod", settings).up(prod())
    assert len(objects(api, "Job")) == 1
    Lab("prod", settings).down()
    die()
    assert Lab("prod", settings).down(), "without a record, too"
    assert made_in(api) == set()


def test_nothing_but_the_whole_is_removed(file: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        provider(tmp_path).destroy("prod", ["db"])


# -- testbed attach ----------------------------------------------------------------------


def listed(file: Path, **chosen: str) -> Any:
    found = source.read(str(file), file.read_text(), chosen)
    assert found is not None
    return found


def test_a_kubeconfig_lists_the_nodes_of_its_cluster(api: Api, file: Path) -> None:
    windows = {"operatingSystem": "windows", "architecture": "amd64"}
    api.objects["/api/v1/nodes/win"] = machine("win", nodeInfo=windows)
    found = listed(file)
    assert [*found.machines] == ["worker-1", "ip-10-0-2.ec2"]
    assert found.shared == {"kubeconfig": str(file), "context": "here"}
    assert found.name == "here"
    assert found.words["worker-1"] == ["containerd 1.7.2"]
    assert "windows" in found.left["win"]


def test_options_and_variables_are_in_the_file_that_is_written(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TESTBED_KUBE_NAMESPACE", "debug")
    monkeypatch.setenv("TESTBED_KUBE_IMAGE", "env:1")
    monkeypatch.setenv(CONTEXT, "nowhere")
    found = listed(file, context="here", image="r/n:2").shared
    assert (found["context"], found["namespace"], found["image"]) == ("here", "debug", "r/n:2")
    assert listed(file, context="here").shared["image"] == "env:1"


def test_a_context_that_is_unknown_is_told(file: Path) -> None:
    with pytest.raises(MachineError) as caught:
        listed(file, context="other")
    assert caught.value.missing == ("kubeconfig",)
    assert "other" in caught.value.message


def test_a_cluster_that_does_not_answer_is_told(
    api: Api, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "Cluster", functools.partial(Cluster, patience=0))
    api.refuse = lambda method, path: (503, {})
    with pytest.raises(NoAnswer):
        listed(file)


@pytest.mark.parametrize("status", [401, 403])
def test_who_may_not_list_nodes_is_told_what_to_ask_for(api: Api, file: Path, status: int) -> None:
    api.refuse = lambda method, path: (status, {"reason": "No", "message": "no"})
    with pytest.raises((MachineError, Refused)) as caught:
        listed(file)
    assert ("ClusterRole" if status == 403 else "log in") in (caught.value.hint or "")


def test_standard_input_is_refused(file: Path) -> None:
    with pytest.raises(UsageError):
        source.read("", file.read_text(), {})


@pytest.mark.parametrize(
    "text",
    ["", "clusters contexts users", "clusters: [\ncontexts: users", "- clusters\n- contexts users",
     "a: {hosts: {clusters: , contexts: , users: }}\n", "Host users\n# clusters, contexts\n"],
)  # fmt: skip
def test_other_files_are_no_kubeconfig(text: str) -> None:
    assert source.read("/a", text, {}) is None


def test_the_topology_says_what_was_found(
    api: Api, file: Path, there: tuple[Settings, FakeProvider]
) -> None:
    settings, fake = there
    fake.fail("run", "worker-1", LabError("worker-1 is not ready"))
    found = survey(settings, str(file), None)
    topology = load_data(found.plain, "made")
    assert (topology.name, topology.provider) == ("here", "kubectl-debug")
    assert found.plain["kubectl-debug"] == {"kubeconfig": str(file), "context": "here"}
    assert found.plain["nodes"]["worker-1"] == {}
    assert found.plain["nodes"]["ip-10-0-2-ec"]["on"] == "ip-10-0-2.ec2"
    told = {line.split()[0]: line for line in lines(found)}
    assert "kernel 6.1.0, containerd 1.7.2" in told["ip-10-0-2-ec"]
    assert "not ready" in told["worker-1"]
    assert made_in(api) == set(), "nothing stays"
    assert labs(settings) == []


def test_a_look_that_ends_early_leaves_nothing(
    api: Api, file: Path, there: tuple[Settings, FakeProvider], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, _ = there
    lab = Lab("here", settings)
    lab.up(replace(prod(), name="here"))
    before = {*api.objects}

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("testbed.labs.survey._look", interrupted)
    with pytest.raises(KeyboardInterrupt):
        survey(settings, str(file), None)
    assert {*api.objects} == before, "a lab of the same machines stays connected"
    lab.down()


def test_options_of_a_kubeconfig_are_refused_for_another_file(
    file: Path, there: tuple[Settings, FakeProvider], tmp_path: Path
) -> None:
    settings, _ = there
    inventory = tmp_path / "ssh_config"
    inventory.write_text("Host web1\n")
    with pytest.raises(UsageError) as caught:
        survey(settings, str(inventory), None, {"context": "x"})
    assert caught.value.where == "--context"
    assert cli.run(["attach", "--context", "x"]) == 2


# -- what runs on a machine --------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "plugin"),
    [
        ('{"name": "cbr0", "plugins": [{"type": "flannel"}, {"type": "portmap"}]}', "flannel"),
        ('{"name": "b", "type": "bridge"}', "bridge"),
        ("", ""), ("{", ""), ("[]", ""), ('{"plugins": []}', ""), ('{"plugins": [3]}', ""),
    ],
)  # fmt: skip
def test_the_network_plugin_of_a_machine(text: str, plugin: str) -> None:
    assert noticed.plugin_of(text) == plugin


@pytest.mark.parametrize(
    ("printed", "words"),
    [
        ("Kubernetes v1.36.3\n", "kubelet v1.36.3"), ("\n", "kubelet"),
        ('Kubernetes v1.36.3\n{"type": "bridge"}\n', "kubelet v1.36.3, CNI bridge"),
    ],
)  # fmt: skip
def test_the_kubelet_of_a_machine(bench: Bench, printed: str, words: str) -> None:
    node = bench.provider.create("l", [NodeSpec("a", "")])["a"]
    bench.provider.script(["sh", "-c", noticed.LOOK], Answer(out=printed.encode()))
    assert noticed.words(node) == words


def test_the_look_itself_runs(tmp_path: Path) -> None:
    (tmp_path / "10-b.conflist").write_text('{"plugins": [{"type": "flannel"}]}')
    (tmp_path / "20-a.conf").write_text('{"type": "bridge"}')
    (tmp_path / "00-readme").write_text("no configuration")
    script = noticed.LOOK.replace(config.CNI, str(tmp_path)).replace("kubelet", "no-such-program")
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    first, _, rest = done.stdout.partition("\n")
    assert first == ""
    assert json.loads(rest)["plugins"] == [{"type": "flannel"}]
