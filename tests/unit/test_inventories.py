"""Machines from the files of other tools, and the topology that `testbed attach` writes of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from ipaddress import IPv4Interface
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from testbed import cli, owner
from testbed.errors import LabError, UsageError
from testbed.labs import survey as surveys
from testbed.labs.existing import SYSTEM
from testbed.labs.survey import RUNNING, survey
from testbed.nodes import wiring
from testbed.nodes.base import NodeSpec
from testbed.nodes.existing import Machines
from testbed.nodes.fake import Answer, FakeProvider
from testbed.nodes.openssh import ansible, client, inventories
from testbed.topology import keys, load_text
from testbed.topology.load import load_data

if TYPE_CHECKING:
    from testbed.labs.lab import Settings
    from testbed.testing.fakes import Bench


@pytest.fixture(autouse=True)
def no_ansible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ansible, "which", lambda _: None)


def machines(text: str, path: str = "/a/hosts") -> Mapping[str, Mapping[str, Any]]:
    found = inventories.read(path, text)
    assert found is not None
    return found.machines


INI = """\
; a comment
lonely ansible_host=192.0.2.9
[web]
web[01:03:2].example.com ansible_port=2222   # old
[db]
db-[a:b] ansible_user="root"
[site:children]
web
db
[site:vars]
ansible_ssh_common_args='-o ProxyJump=ops@bastion'
[all:vars]
ansible_user = admin
[local]
here ansible_connection=local
"""
YAML = """\
all:
  vars: {ansible_user: admin}
  hosts: {lonely: {ansible_host: 192.0.2.9}}
  children:
    web:
      vars: {ansible_ssh_common_args: -J ops@bastion}
      hosts: {'web[01:03:2].example.com': {ansible_port: 2222}}
    db:
      hosts: {db-a: {ansible_user: root, ansible_ssh_private_key_file: /k}, db-b: }
"""


def test_an_inventory_in_ini_form() -> None:
    found = machines(INI)
    assert [*found] == [
        "lonely", "web01.example.com", "web03.example.com", "db-a", "db-b",
    ]  # fmt: skip
    assert found["lonely"] == {"address": "192.0.2.9", "user": "admin"}
    assert found["web03.example.com"] == {
        "address": "web03.example.com", "user": "admin", "port": 2222, "jump": "ops@bastion",
    }  # fmt: skip
    assert found["db-b"]["user"] == "root"
    listed = inventories.read("/a/hosts", INI)
    assert listed is not None
    assert "local" in listed.left["here"]


def test_an_inventory_in_yaml() -> None:
    found = machines(YAML)
    assert {*found} == {"lonely", "web01.example.com", "web03.example.com", "db-a", "db-b"}
    assert found["web01.example.com"]["jump"] == "ops@bastion"
    assert found["db-a"] == {"address": "db-a", "user": "root", "key": "/k"}
    assert found["db-b"] == {"address": "db-b", "user": "admin"}


NEAR = {"web1": {"user": "web", "port": 2201}, "db1": {"user": "admin", "port": 2200}}
NEAR_YAML = """\
all:
  vars: {ansible_user: admin, ansible_port: 2200}
  hosts: {web1: , db1: }
  children: {site: }
site:
  children: {web: {vars: {ansible_user: web}}, old: {hosts: {web1: }, vars: {ansible_user: old}}}
  vars: {ansible_port: 2201, ansible_user: site}
web: {hosts: {web1: }}
"""
NEAR_INI = """\
db1
[web]  # a comment
web1
[old]
web1
[web:vars]
ansible_user=web
[site:children]
web  # and
old
[old:vars]
ansible_user=old
[region:children]
site
[region:vars]
ansible_port=2201
ansible_user=region
[all:vars]
ansible_user=admin
ansible_port='2200'
"""


@pytest.mark.parametrize("text", [NEAR_YAML, NEAR_INI])
def test_the_nearest_group_wins(text: str) -> None:
    """As ansible/inventory/helpers.py sorts groups: by depth, then by name."""
    found = machines(text)
    assert {name: {**own} for name, own in found.items()} == {
        name: {"address": name, **keys} for name, keys in NEAR.items()
    }


def test_groups_in_a_circle_end() -> None:
    assert [*machines("[a]\nweb1\n[a:children]\nb\n[b:children]\na\n")] == ["web1"]


def test_the_output_of_ansible_inventory_is_one() -> None:
    said = {
        "_meta": {"hostvars": {"a": {"ansible_host": "192.0.2.1"}}},
        "all": {"children": ["ungrouped", "web"]},
        "web": {"hosts": ["a", "b"], "vars": {"ansible_user": "admin"}},
    }
    assert machines(json.dumps(said), "") == {
        "a": {"address": "192.0.2.1", "user": "admin"}, "b": {"address": "b", "user": "admin"},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("web[01:10]", [f"web{n:02}" for n in range(1, 11)]),
        ("web[9:11]", ["web9", "web10", "web11"]),
        ("web[:2]", ["web0", "web1", "web2"]),
        ("web[1:5:2]-[a:c:2]", ["web1-a", "web1-c", "web3-a", "web3-c", "web5-a", "web5-c"]),
        ("2001:db8::1", ["2001:db8::1"]),
    ],
)
@pytest.mark.parametrize("form", ["[g]\n{}\n", "g: {{hosts: {{'{}': }}}}\n"])
def test_ranges_of_hosts(pattern: str, names: list[str], form: str) -> None:
    assert [*machines(form.format(pattern))] == names


@pytest.mark.parametrize("pattern", ["w[2:1]", "w[1:9:0]", "w[aa:bb]", "w[a:9]", "w[z:a]"])
@pytest.mark.parametrize("form", ["[g]\n{}\n", "g: {{hosts: {{'{}': }}}}\n"])
def test_a_range_without_hosts_is_refused(pattern: str, form: str) -> None:
    with pytest.raises(UsageError) as caught:
        machines(form.format(pattern))
    assert pattern in caught.value.message


@pytest.mark.parametrize("form", ["[g]\n{}\n", "g: {{hosts: {{'{}': }}}}\n"])
@pytest.mark.parametrize(
    ("host", "address"), [("web1:2222", "web1"), ("[2001:db8::1]:2222", "2001:db8::1")]
)
def test_a_port_may_follow_the_host(form: str, host: str, address: str) -> None:
    assert machines(form.format(host)) == {address: {"address": address, "port": 2222}}


@pytest.mark.parametrize(
    "given",
    [
        "ansible_port='{{ port }}'", "ansible_port=70000", "ansible_host={{host}}",
        "ansible_user=-x", "ansible_host='-oProxyCommand=reboot'", "ansible_host='a b'",
        "ansible_ssh_common_args='-J{{x}}'", "ansible_connection=docker",
    ],
)  # fmt: skip
def test_a_host_that_ssh_cannot_reach_is_left_out(given: str) -> None:
    found = inventories.read("/a/hosts", f"[g]\nweb1 {given}\nweb2\n")
    assert found is not None
    assert [*found.machines] == ["web2"]
    assert given.partition("=")[2].strip("'").removeprefix("-J") in found.left["web1"]


def test_a_host_may_be_called_host() -> None:
    assert machines("[g]\nhost ansible_user=a\nhost\n") == {
        "host": {"address": "host", "user": "a"}
    }
    assert machines("host ansible_user=a\n") == {"host": {"address": "host", "user": "a"}}


def test_a_key_is_relative_to_the_inventory() -> None:
    text = "[g]\na ansible_ssh_private_key_file=keys/a\nb ansible_private_key_file=~/b\n"
    found = machines(text, "/etc/site/hosts")
    assert [one["key"] for one in found.values()] == ["/etc/site/keys/a", "~/b"]


def test_secrets_of_ansible_vault_do_not_matter() -> None:
    text = """\
web:
  hosts: {web1: , web2: text}
  vars:
    ansible_user: admin
    ansible_become_password: !vault |
      $ANSIBLE_VAULT;1.1;AES256
      6162
    made: 2001-99-99
"""
    assert [one["user"] for one in machines(text).values()] == ["admin", "admin"]


@pytest.mark.parametrize(
    ("given", "jump", "left"),
    [
        ("-o Ciphers=x", None, "Ciphers"),
        ("-J ops@bastion -o Ciphers=x", "ops@bastion", "Ciphers"),
        ('-o "ProxyJump ops@bastion" -C', "ops@bastion", "-C"),
        ("-oProxyJump=bastion:2222", "bastion:2222", ""),
        ("-o ProxyCommand='ssh -W %h:%p -q bastion'", None, "ProxyCommand"),
    ],
)
def test_options_of_ssh_that_are_not_read_are_told(given: str, jump: str | None, left: str) -> None:
    found = inventories.read("/a", yaml.safe_dump(
        {"g": {"hosts": {"b": {"ansible_ssh_common_args": given}}}}
    ))  # fmt: skip
    assert found is not None
    assert found.machines["b"].get("jump") == jump
    assert bool(found.left) == bool(left)
    assert left in str(found.left)


def test_ansible_itself_is_asked_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {
        "_meta": {"hostvars": {"a": {"ansible_host": "192.0.2.1"}}},
        "all": {"children": ["ungrouped"]},
        "ungrouped": {"hosts": ["a", "b"]},
    }
    program = tmp_path / "ansible-inventory"
    program.write_text(f"#!/bin/sh\ncat << 'END'\n{json.dumps(said)}\nEND\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(ansible, "which", lambda name: name)
    assert machines("anything") == {"a": {"address": "192.0.2.1"}, "b": {"address": "b"}}
    # Under sudo it is run as the caller: an inventory may be a program.
    program.write_text('#!/bin/sh\nprintf \'{"all": {"hosts": ["%s"]}}\' "$BY"\n')
    monkeypatch.setattr(client, "as_caller", lambda: ["env", "BY=caller"])
    assert [*machines("anything")] == ["caller"]
    # A path with a comma would be a list of hosts (-i of ansible-inventory).
    assert [*machines("[g]\nc\n", "/a,b/hosts")] == ["c"]


def test_hosts_of_an_ssh_config() -> None:
    text = 'Include more\nHost *\n  User a\nHost web1 web2 !web3\nhost="db"\nMatch all\n'
    found = inventories.read("/home/a/config", text)
    assert found is not None
    assert [*found.machines] == ["web1", "web2", "db"]
    assert found.shared == {"config": "/home/a/config"}
    with pytest.raises(UsageError) as caught:
        inventories.read("", text)
    assert "vagrant ssh-config" in (caught.value.hint or "")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(owner, "login_home", lambda: tmp_path)
    (tmp_path / ".ssh" / "config.d").mkdir(parents=True)
    return tmp_path


def test_hosts_of_included_files(home: Path) -> None:
    folder = home / ".ssh" / "config.d"
    (folder / "a").write_text("Host web1\nInclude ~/.ssh/more\n")
    (folder / "b").write_text("  host web2 web1\n\tInclude config.d/*\n")  # itself
    (folder / "c").mkdir()
    (home / ".ssh" / "more").write_text("Host db\n")
    text = f"Include config.d/* {home}/none\nHost *\n  User a\n"
    assert [*machines(text, str(home / "main"))] == ["web1", "db", "web2"]


def test_an_ssh_config_with_an_open_quote_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        machines('Host a\n\nHost "b\n', "/a/config")
    assert caught.value.where == "/a/config:3"


def test_a_host_that_would_be_an_option_is_left_out() -> None:
    found = inventories.read("/a/config", "Host web1 -oProxyCommand=reboot\n")
    assert found is not None
    assert [*found.machines] == ["web1"]
    assert [*found.left] == ["-oProxyCommand=reboot"]


def test_contexts_of_docker() -> None:
    table = """\
NAME        DESCRIPTION     DOCKER ENDPOINT                 ERROR
default *   Current         unix:///var/run/docker.sock
web         the web host    ssh://admin@web.example.com:2222
db                          ssh://db
"""
    wanted = {
        "web": {"address": "web.example.com", "user": "admin", "port": 2222},
        "db": {"address": "db"},
    }
    assert machines(table, "") == wanted
    lines = [
        {"Name": "default", "DockerEndpoint": "unix:///var/run/docker.sock"},
        {"Name": "web", "DockerEndpoint": "ssh://admin@web.example.com:2222"},
        {"Name": "db", "DockerEndpoint": "ssh://db"},
    ]
    assert machines("\n".join(map(json.dumps, lines)), "") == wanted


@pytest.mark.parametrize(
    ("endpoint", "keys"),
    [
        ("ssh://[2001:db8::1]:22", {"address": "2001:db8::1", "port": 22}),
        ("ssh://a@web:99999", None),
        ("ssh://-oProxyCommand=x", None),
        ("ssh://[web", None),
    ],
)
def test_endpoints_of_docker(endpoint: str, keys: Mapping[str, Any] | None) -> None:
    found = inventories.read("", json.dumps({"Name": "web", "DockerEndpoint": endpoint}))
    assert found is not None
    assert found.machines.get("web") == keys
    assert ("web" in found.left) == (keys is None)


@pytest.mark.parametrize(
    "text",
    [
        "", "hello world\n", "a: [1\n", "[a]\nb c d\n", "- a\n", "{}", "[a]\nkey=value\n",
        "[a]\nkey = value\n", "g: {hosts: 3}\n", "g: {vars: [a], hosts: }\n", "[a:b]\nc\n",
        '{"DockerEndpoint"', '{"DockerEndpoint": 1}\n{', "Host\n", "a: 2001-99-99\n",
        "[a]\nb 'c\n", "g: {children: [a, [b]]}\n",
    ],
)  # fmt: skip
def test_other_files_are_no_list_of_machines(text: str) -> None:
    assert inventories.read("/a", text) is None or not machines(text)


# -- what is found there -------------------------------------------------------------------

PROCESSES = {"web-1": "containerd\ndockerd\nsshd\n", "db": "etcd\n"}


def links(*addresses: str) -> bytes:
    found = [
        {"ifname": f"ens{number}", "flags": ["UP"], "addr_info": [
            {"family": "inet", "local": one.split("/")[0], "prefixlen": int(one.split("/")[1])}
        ]}
        for number, one in enumerate(addresses)
    ]  # fmt: skip
    routes = [{"dst": "default", "gateway": "10.0.0.1", "dev": "ens0"}]
    return json.dumps(found).encode() + b"\0" + json.dumps(routes).encode() + b"\0001\n"


@pytest.fixture
def there(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Settings:
    fake = FakeProvider(name="there")

    def nodes(self: Machines, lab: str) -> Any:
        del lab
        known = fake.nodes("there")
        new = [NodeSpec(name, "") for name in self._topology.nodes if name not in known]
        fake.create("there", new)
        return {name: fake.nodes("there")[name] for name in self._topology.nodes}

    fake.script(["sh", "-c", SYSTEM], Answer(out=b"6.1.0\nDebian GNU/Linux 12\n"))
    fake.script(
        ["sh", "-c", RUNNING], lambda call: Answer(out=PROCESSES.get(call.node, "").encode())
    )
    fake.script(["docker", "version"], Answer(out=b"29.0.1\n"))
    seen = {
        "web-1": links("10.0.0.4/24", "172.17.0.1/16"),
        "db": links("10.0.0.5/24", "172.17.0.1/16", "192.168.7.1/24"),
    }
    fake.script(["sh", "-c", wiring.LOOK[2]], lambda call: Answer(out=seen[call.node]))
    fake.fail("run", "gone", LabError("gone cannot be reached: Connection refused"))
    monkeypatch.setattr(Machines, "nodes", nodes)
    from testbed.nodes.openssh.provider import SshProvider

    monkeypatch.setattr(
        bench.settings, "providers",
        {**bench.settings.providers, "ssh": SshProvider.of(bench.settings.setup)},
    )  # fmt: skip
    return bench.settings


def test_a_topology_says_what_was_found(there: Settings, tmp_path: Path) -> None:
    file = tmp_path / "Office.ini"
    file.write_text("[all]\nWeb_1 ansible_user=admin\ndb ansible_user=root\ngone ansible_user=a\n")
    found = survey(there, str(file), None)
    text = yaml.safe_dump(found.plain)
    topology = load_text(text, "made.yaml")
    assert topology.name == "office"
    assert topology.provider == "ssh"
    assert found.plain["networks"] == {"lan": {"subnet": "10.0.0.0/24"}}
    web, db = found.plain["nodes"]["web-1"], found.plain["nodes"]["db"]
    assert web["networks"] == {"lan": {"address": "10.0.0.4", "name": "ens0"}}
    assert web["ssh"] == {"address": "Web_1", "user": "admin"}
    assert web["roles"] == ["docker"]
    assert db["roles"] == ["etcd"]
    assert db["ssh"] == {"user": "root"}
    assert found.plain["nodes"]["gone"] == {"ssh": {"user": "a"}}
    told = {line.split()[0]: line for line in surveys.lines(found)}
    assert "Docker 29.0.1" in told["web-1"]
    assert "refused" in told["gone"]


def test_the_command_writes_it(
    there: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("testbed.cli.common.make_settings", lambda **_: there)
    file, made = tmp_path / "hosts", tmp_path / "made.yaml"
    file.write_text("[all]\nweb-1 ansible_user=admin\n")
    assert cli.run(["attach", str(file), "-o", str(made), "--name", "mine"]) == 0
    assert load_text(made.read_text(), "made.yaml").name == "mine"
    assert "Docker 29.0.1" in capfd.readouterr().err
    made.write_text("# edited")
    assert cli.run(["attach", str(file), "-o", str(made)]) == 2
    assert cli.run(["attach", str(file), "-o", str(made), "--json"]) == 2
    assert cli.run(["attach", str(file), "-o", str(tmp_path / "no" / "folder")]) == 2
    assert made.read_text() == "# edited"
    assert "Docker" not in capfd.readouterr().err  # refused before anything is looked at
    assert cli.run(["attach", str(file), "-o", str(made), "--force"]) == 0
    assert load_text(made.read_text(), "made.yaml").name == "hosts"
    assert cli.run(["attach", str(file), "-o", "-"]) == 0
    assert load_text(capfd.readouterr().out, "made.yaml").name == "hosts"
    assert cli.run(["attach", str(file)]) == 0
    assert load_text(capfd.readouterr().out, "made.yaml").name == "hosts"
    assert cli.run(["attach", str(file), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["machines"]["web-1"]["error"] == ""
    assert cli.run(["attach", str(tmp_path / "none")]) == 2
    file.write_text("hello\n")
    assert cli.run(["attach", str(file)]) == 2
    assert cli.run(["attach", "-o", str(made)]) == 2


def test_two_names_that_become_one_are_two_nodes() -> None:
    assert surveys._names({"Web.1": 0, "web_1": 0, "1st": 0}) == {
        "web-1": "Web.1", "web-1-2": "web_1", "m-1st": "1st",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["default", "all", "localhost", "lo", "br-1", "tasks", "if2"])
def test_a_name_that_a_node_cannot_have_gets_another_one(name: str) -> None:
    (label,) = surveys._names({name: 0})
    load_text(f"name: a\nprovider: ssh\nnodes: {{{label}: {{}}}}\n", "made.yaml")
    assert name in label


def test_many_long_names_are_many_nodes() -> None:
    theirs = [f"machine-of-the-office-{number}" for number in range(1100)]
    found = surveys._names(dict.fromkeys(theirs))
    assert [*found.values()] == theirs
    assert max(map(len, found)) <= keys.NODE_MAX


def _plain(count: int) -> dict[str, Any]:
    return {"name": "a", "provider": "ssh", "nodes": {f"n{i}": {} for i in range(count)}}


@pytest.mark.parametrize(
    "address", ["127.0.0.2/8", "10.0.0.4/1", "10.0.0.4/32", "10.0.0.0/24", "10.0.0.4/31"]
)
def test_an_address_that_no_network_can_have_is_left_out(address: str) -> None:
    found = {"n0": surveys.Found(addresses=[("eth0", IPv4Interface(address))], way="eth0")}
    made = surveys._with_networks(_plain(1), found)
    assert load_data(made, "made").nodes["n0"].ports == ()


def test_many_machines_with_roles_are_checked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[object] = []

    def counted(plain: Any, source: str) -> Any:
        loads.append(source)
        return load_data(plain, source)

    monkeypatch.setattr(surveys, "load_data", counted)
    roles = ["docker"]
    found = {f"n{i}": surveys.Found(roles=[*roles]) for i in range(20)}
    for number, one in enumerate(found.values()):
        one.addresses = [("eth0", IPv4Interface(f"10.0.0.{number + 2}/24"))]
    made = surveys._with_roles(surveys._with_networks(_plain(20), found), found)
    assert all(node["roles"] == roles for node in made["nodes"].values())
    assert len(loads) == 1


def test_a_role_that_needs_more_is_told() -> None:
    found = {"n0": surveys.Found(roles=["docker"]), "n1": surveys.Found(roles=["flannel"])}
    for number, one in enumerate(found.values()):
        one.addresses = [("eth0", IPv4Interface(f"10.0.0.{number + 2}/24"))]
    made = surveys._with_roles(surveys._with_networks(_plain(2), found), found)
    assert made["nodes"]["n0"]["roles"] == ["docker"]
    assert "roles" not in made["nodes"]["n1"]
    assert "flannel" in found["n1"].words[0]
