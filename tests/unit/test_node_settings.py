"""Settings and files of nodes: read from the topology, set, compared, changed, removed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from testbed.errors import LabError, MachineError, TopologyError
from testbed.labs import plan
from testbed.labs.commands import Surroundings, on_node
from testbed.labs.lab import Lab
from testbed.labs.live import LiveContainer, LiveLab
from testbed.labs.status import status
from testbed.nodes.base import Bind, Node
from testbed.nodes.fake import Answer, Behaviour, Call, FakeMachine, FakeNode
from testbed.roles.container import ContainerProcess
from testbed.testing.fakes import Bench
from testbed.testing.provider import spec
from testbed.topology import Topology, load, load_data, load_text
from testbed.topology.iproute import Unreadable, route, rule

TEXT = """
name: t
networks: {a: {subnet: 10.1.0.0/24}, b: {subnet: 10.2.0.0/24}}
nodes:
  r: {networks: {a: 10.1.0.1, b: 10.2.0.1}%s}
  n: {networks: {b: 10.2.0.2}}
"""
KEYS = (
    ", forward: true, sysctls: {net.ipv4.conf.all.rp_filter: 2, net.ipv4.tcp_rmem: 4096 8192  9000}"
    ", routes: [10.9.0.0/16 via 10.2.0.2, default via 10.1.0.9 metric 5, blackhole 10.8.0.0/16]"
    ", rules: [from 10.1.0.0/24 lookup 100 pref 7]"
)


def topology(keys: str = "") -> Topology:
    return replace(load_text(TEXT % keys, "t.yaml"), file="/lab/t.yaml")


def is_refused(keys: str, hint: str) -> None:
    """A node with these keys has one problem, with its place and this hint."""
    with pytest.raises(TopologyError) as caught:
        topology(keys)
    (problem,) = caught.value.problems
    assert problem.line == 5
    assert problem.column > 40
    assert hint in problem.hint


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    found = Bench(tmp_path)
    found.install(monkeypatch)
    return found


def node(lab: Lab, name: str = "r") -> FakeNode:
    found = lab.context().nodes[name]
    assert isinstance(found, FakeNode)
    return found


def words(lab: Lab, wanted: Topology, name: str = "r") -> tuple[str, bool]:
    (done,) = [one for one in lab.up(wanted).steps if one.step.name == f"node {name}"]
    return done.words, done.changed


# -- the file -----------------------------------------------------------------------------


def test_the_keys_of_a_node() -> None:
    one = topology(KEYS).nodes["r"]
    assert one.forward
    assert one.sysctls == {
        "net.ipv4.conf.all.rp_filter": "2",
        "net.ipv4.tcp_rmem": "4096 8192 9000",
    }
    assert [(r.destination, [*map(str, r.hops)], r.metric, r.kind) for r in one.routes] == [
        ("10.9.0.0/16", ["via 10.2.0.2"], None, "unicast"),
        ("default", ["via 10.1.0.9"], 5, "unicast"),
        ("10.8.0.0/16", [], None, "blackhole"),
    ]
    assert [r.table for r in one.ip_rules] == ["100"]


def test_a_node_stays_when_they_change() -> None:
    assert topology().node_digest("r") == topology(KEYS).node_digest("r")


@pytest.mark.parametrize(
    ("keys", "hint"),
    [
        (", forward: 1", "true or false"),
        (", sysctls: {net.ipv4.ip_forward: true}", "1 for on"),
        (", sysctls: {net/ipv4/ip_forward: 1}", "net.ipv4.ip_forward"),
        (", forward: true, sysctls: {net.ipv4.ip_forward: 0}", "remove one"),
        (", gateway: true, sysctls: {net.ipv4.conf.all.forwarding: 0}", "remove one"),
        (", sysctls: {kernel.pid_max: 1}", "this machine's kernel"),
        (", routes: [10.9.0.0/16 via 10.2.0]", "without a prefix"),
        (", routes: [10.9.0.1/16 via 10.2.0.2]", "10.9.0.0/16"),
        (", routes: [10.9.0.0/33 via 10.2.0.2]", "10.2.0.0/16"),
        (", routes: [10.9.0.0/16 via 10.3.0.2]", "onlink"),
        (", routes: [10.9.0.0/16 via 10.2.0.1]", "change it"),
        (", routes: [10.9.0.0/16 via 10.2.0.2 dev eth7]", "eth1"),
        (", routes: [10.9.0.0/16 via 10.2.0.2 metrik 7]", "metric"),
        (", routes: [10.9.0.0/16 via]", "add it"),
        (", routes: [10.9.0.0/16]", "via ADDRESS"),
        (", routes: [ip route add 10.9.0.0/16 via 10.2.0.2]", "remove"),
        (", routes: [10.9.0.0/16 via 10.2.0.2 table blue]", "number"),
        (", routes: [10.9.0.0/16 via 10.2.0.2, 10.9.0.0/16 dev eth0]", "remove one"),
        (", routes: [default via 10.2.0.2, default via 10.2.0.3 metric 0]", "remove one"),
        (", routes: [unreachable 10.9.0.0/16 via 10.2.0.2]", "leads nowhere"),
        (", routes: ['fd00::/64 via 10.2.0.2']", "IPv6"),
        (", routes: ['fd00::/64 via fe80::1']", "dev LINK"),
        (", routes: [10.9.0.0/16 via 10.2.0.2 table 99999999999]", "from 0"),
        (", rules: [from 10.1.0.0/24]", "lookup TABLE"),
        (", rules: [from 10.1.0.0/24 lookup blue]", "number"),
        (", rules: [from 10.1.0.9/24 lookup 100]", "10.1.0.0/24"),
        (", rules: [fwmark x lookup 100]", "number"),
        (", rules: [from 10.1.0.0/24 to fd00::/8 lookup 100]", "two rules"),
        (", rules: [from 10.1.0.0/24 lokup 100]", "lookup"),
        (", rules: [from 10.1.0.0/24 lookup 100, table 100 from 10.1.0.0/24]", "remove one"),
        (", rules: [fwmark 1 lookup main, table 254 fwmark 0x1]", "remove one"),
    ],
)
def test_a_mistake_has_its_place_and_a_hint(keys: str, hint: str) -> None:
    is_refused(keys, hint)


def test_an_invalid_entry_does_not_move_the_place_of_the_next() -> None:
    with pytest.raises(TopologyError) as caught:
        topology(", routes: [\n 10.9.0.0/16 via x,\n 10.8.0.0/16 via 10.7.0.1]")
    assert [one.line for one in caught.value.problems] == [6, 7]


@pytest.mark.parametrize(
    "text",
    [
        "10.9.0.0/16 dev eth0 src 10.1.0.1 mtu lock 1400 proto static scope link table main",
        "10.9.0.7 via 10.1.0.2 onlink dev eth0",
        "10.9.0.0/16 nexthop via 10.1.0.2 weight 2 nexthop via 10.2.0.2 dev eth1",
        "default via inet6 fe80::1 dev eth0",
        "::/0 via fe80::1 dev eth0",
        "to 10.9.0.0/16 via 10.1.0.2 preference 100 table 254",
        "throw 10.9.0.0/16 table 7",
    ],
)
def test_routes_of_the_manual_are_read(text: str) -> None:
    assert route(text).text == text


def test_two_families_in_a_route() -> None:
    assert route("default via fe80::1 dev eth0").family == 6
    assert route("10.0.0.0/8 via inet6 fe80::1 dev eth0").family == 4
    assert route("default dev eth0").family == 4


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        # What `ip -j route show table all` of iproute2 6.1 printed of each.
        ("10.4.0.1 dev e0 mtu 1300 src 10.1.0.1 table 100",
         {"dst": "10.4.0.1", "dev": "e0", "table": "100", "scope": "link", "prefsrc": "10.1.0.1",
          "flags": [], "metrics": [{"mtu": 1300}]}),
        ("default via 10.1.0.9 onlink dev e0",
         {"dst": "default", "gateway": "10.1.0.9", "dev": "e0", "flags": ["onlink"]}),
        ("10.2.0.0/16 via 10.1.0.9 metric 5",
         {"dst": "10.2.0.0/16", "gateway": "10.1.0.9", "dev": "e0", "metric": 5, "flags": []}),
        ("10.3.0.0/24 nexthop via 10.1.0.7 dev e0 weight 2 nexthop via 10.1.0.8 dev e0",
         {"dst": "10.3.0.0/24", "flags": [], "nexthops": [
             {"gateway": "10.1.0.7", "dev": "e0", "weight": 2, "flags": []},
             {"gateway": "10.1.0.8", "dev": "e0", "weight": 1, "flags": []}]}),
        ("local 10.9.5.5 dev lo",
         {"type": "local", "dst": "10.9.5.5", "dev": "lo", "table": "local", "scope": "host"}),
        ("blackhole 10.7.0.0/16", {"type": "blackhole", "dst": "10.7.0.0/16", "flags": []}),
        ("fd01::/64 via fd00::9",
         {"dst": "fd01::/64", "gateway": "fd00::9", "dev": "e0", "metric": 1024, "flags": []}),
        ("unreachable fd07::/64",
         {"type": "unreachable", "dst": "fd07::/64", "dev": "lo", "metric": 1024, "flags": []}),
        ("10.2.0.0/16 via inet6 fe80::7 dev e0",
         {"dst": "10.2.0.0/16", "via": {"family": "inet6", "host": "fe80::7"}, "dev": "e0",
          "flags": []}),
    ],
)  # fmt: skip
def test_a_route_is_known_by_what_the_kernel_prints(text: str, printed: dict[str, object]) -> None:
    assert route(text).matches(printed)
    assert not route(text).matches({**printed, "table": "9"})
    assert not route(text).matches({**printed, "metric": 77})
    if "gateway" in printed:
        assert not route(text).matches({**printed, "gateway": "10.1.0.99"})
        assert not route(text).matches({**printed, "type": "blackhole"})


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("from 10.1.0.0/24 lookup 100",
         {"priority": 32765, "src": "10.1.0.0", "srclen": 24, "table": "100"}),
        ("not fwmark 0x1/0xff to 10.2.0.0/16 pref 77 table 200",
         {"priority": 77, "not": None, "src": "all", "dst": "10.2.0.0", "dstlen": 16,
          "fwmark": "0x1", "fwmask": "0xff", "table": "200"}),
        ("iif e0 prohibit",
         {"priority": 76, "src": "all", "iif": "e0", "iif_detached": None, "action": "prohibit"}),
        ("ipproto tcp dport 80 lookup 7",
         {"priority": 75, "src": "all", "ipproto": "tcp", "dport": 80, "table": "7"}),
        ("to fd00::/64 lookup 9",
         {"priority": 32765, "src": "all", "dst": "fd00::", "dstlen": 64, "table": "9"}),
        ("from all lookup main suppress_prefixlength 0",
         {"priority": 10, "src": "all", "table": "main", "suppress_prefixlen": 0}),
        ("uidrange 0-99 lookup 5",
         {"priority": 11, "src": "all", "uid_start": 0, "uid_end": 99, "table": "5"}),
        ("sport 80-90 lookup 6",
         {"priority": 12, "src": "all", "sport_start": 80, "sport_end": 90, "table": "6"}),
        ("tos 16 lookup 7", {"priority": 13, "src": "all", "tos": "0x10", "table": "7"}),
        ("goto 32766", {"priority": 14, "src": "all", "goto": 32766}),
        ("l3mdev", {"priority": 15, "src": "all", "l3mdev": None}),
        ("realms 1/2 lookup 9",
         {"priority": 17, "src": "all", "table": "9", "flow_from": "1", "flow_to": "2"}),
        ("from 10.0.0.0/8 nop", {"priority": 21, "src": "10.0.0.0", "srclen": 8, "nop": None}),
        ("ipproto 47 lookup 100",
         {"priority": 23, "src": "all", "ipproto": "gre", "table": "100"}),
        ("from all fwmark 7 lookup main",
         {"priority": 5, "src": "all", "fwmark": "0x7", "table": "main"}),
    ],
)  # fmt: skip
def test_a_rule_is_known_by_what_the_kernel_prints(text: str, printed: dict[str, object]) -> None:
    assert rule(text).matches(printed)
    assert not rule(text).matches({"priority": 32766, "src": "all", "table": "main"})
    assert not rule(text).matches({**printed, "src": "10.99.0.0", "srclen": 24})


def test_a_text_that_is_no_route() -> None:
    for text in ("", "   ", "to", "via 10.1.0.1", "blackhole"):
        with pytest.raises(Unreadable):
            route(text)
    with pytest.raises(Unreadable):
        rule("")


def test_routes_count_for_who_reaches_whom() -> None:
    text = """
name: t
networks: {a: {subnet: 10.1.0.0/24}, b: {subnet: 10.2.0.0/24}}
flannel: {}
nodes:
  n1: {networks: {a: 10.1.0.2}, roles: [flannel, etcd]%s}
  n2: {networks: {b: 10.2.0.2}, roles: [flannel], routes: [10.1.0.0/24 via 10.2.0.1]}
  r: {networks: {a: 10.1.0.1, b: 10.2.0.1}, forward: true}
"""
    found = load_text(text % ", routes: [default via 10.1.0.1]", "t.yaml")
    assert found.reaches("n1", "n2")
    with pytest.raises(TopologyError):
        load_text(text % ", routes: [unreachable 10.2.0.0/24]", "t.yaml")


# -- on a node ----------------------------------------------------------------------------


def test_up_sets_them_and_a_second_one_does_nothing(bench: Bench) -> None:
    lab, wanted = Lab("t", bench.settings), topology(KEYS)
    assert words(lab, wanted) == (
        "10.1.0.1, 10.2.0.1, forwards, 3 routes, 1 rule, 2 sysctls", True,
    )  # fmt: skip
    kernel = node(lab).kernel
    assert [one["dst"] for one in kernel.routes[4]] == ["10.9.0.0/16", "default", "10.8.0.0/16"]
    assert kernel.sysctls["net.ipv4.conf.all.rp_filter"] == "2"
    assert kernel.sysctls["net.ipv4.ip_forward"] == "1"
    assert lab.up(wanted).changed == []
    found = status(lab.context())
    assert found.ok
    (mine,) = [one for one in found.nodes if one.name == "r"]
    assert [part.name for part in mine.routes] == [
        "10.9.0.0/16 via 10.2.0.2", "default via 10.1.0.9 metric 5", "blackhole 10.8.0.0/16",
    ]  # fmt: skip
    assert [part.name for part in mine.more["rule"]] == ["from 10.1.0.0/24 lookup 100 pref 7"]


def test_what_is_lost_is_told_and_restored(bench: Bench) -> None:
    lab, wanted = Lab("t", bench.settings), topology(KEYS)
    lab.up(wanted)
    kernel = node(lab).kernel
    kernel.routes[4][0]["gateway"] = "10.1.0.77"
    kernel.rules[4].clear()
    kernel.sysctls["net.ipv4.conf.all.rp_filter"] = "0"
    (mine,) = [one for one in status(lab.context()).nodes if not one.ok]
    wrong = [part for part in (*mine.routes, *mine.settings, *mine.more["rule"]) if not part.ok]
    assert [(part.name, part.state) for part in wrong] == [
        ("10.9.0.0/16 via 10.2.0.2", "missing"),
        ("net.ipv4.conf.all.rp_filter", "0"),
        ("from 10.1.0.0/24 lookup 100 pref 7", "missing"),
    ]
    said, changed = words(lab, wanted)
    assert changed
    assert said.count("restored") == 3
    assert "via 10.1.0.77" in said, "what was there instead"
    assert status(lab.context()).ok


def test_an_edited_file_changes_the_running_node(bench: Bench) -> None:
    lab = Lab("t", bench.settings)
    lab.up(topology(", sysctls: {net.ipv4.conf.all.rp_filter: 2}"))
    before = node(lab)
    said, changed = words(lab, topology(KEYS))
    assert changed
    assert "set route 10.9.0.0/16 via 10.2.0.2" in said
    assert node(lab) is before
    said, _ = words(lab, topology(KEYS.replace("rp_filter: 2", "rp_filter: 1")))
    assert "set sysctl net.ipv4.conf.all.rp_filter=1" in said, "that is no repair"
    assert "restored" not in said
    said, changed = words(lab, topology(", routes: [10.9.0.0/16 via 10.2.0.7]"))
    assert changed
    assert "removed rule from 10.1.0.0/24 lookup 100 pref 7" in said
    kernel = node(lab).kernel
    assert [(r["dst"], r["gateway"]) for r in kernel.routes[4]] == [("10.9.0.0/16", "10.2.0.7")]
    assert kernel.rules == {4: [], 6: []}
    assert kernel.sysctls["net.ipv4.conf.all.rp_filter"] == "0", "as before the first up"
    assert kernel.sysctls["net.ipv4.ip_forward"] == "0"
    words(lab, topology())
    assert kernel.routes == {4: [], 6: []}
    assert lab.up(topology()).changed == []


def test_a_role_may_need_the_forwarding_that_the_file_no_longer_has(bench: Bench) -> None:
    lab = Lab("t", bench.settings)
    lab.up(topology(", forward: true, roles: [namespaces]"))
    lab.up(topology(", roles: [namespaces]"))
    assert node(lab).kernel.sysctls["net.ipv4.ip_forward"] == "1"


def test_a_node_without_them_costs_no_command(bench: Bench) -> None:
    lab = Lab("t", bench.settings)
    lab.up(topology())
    bench.forget()
    lab.up(topology())
    status(lab.context())
    commands = [call.words for call in bench.provider.calls if call.what == "run"]
    assert all(one[:2] == ("sh", "-c") for one in commands), "the look at the links alone"
    assert len(commands) == 4, "two nodes, twice"


def test_a_route_over_a_link_of_a_role_waits_for_the_role(bench: Bench) -> None:
    wanted = topology(", roles: [namespaces], routes: [10.7.0.0/16 dev br0]")
    steps = plan.make(wanted).steps
    assert steps["routes r"].needs[0] == "node r"
    lab = Lab("t", bench.settings)
    lab.up(wanted)
    assert [one["dev"] for one in node(lab).kernel.routes[4]] == ["br0"]
    assert lab.up(wanted).changed == []
    lab.up(topology(", roles: [namespaces]"))
    assert node(lab).kernel.routes[4] == []


def test_a_route_over_a_link_of_a_command_waits_for_the_command() -> None:
    keys = ", run: [make br7], routes: [10.7.0.0/16 dev br7], services: {web: {command: [serve]}}"
    steps = plan.make(topology(keys)).steps
    assert steps["routes r"].needs == ("node r", "run r")
    assert steps["service r/web"].needs == ("node r", "run r", "routes r")


def test_a_default_route_of_its_own_takes_the_place_of_the_gateways(bench: Bench) -> None:
    text = TEXT.replace(
        "n: {networks: {b: 10.2.0.2}}", "n: {networks: {b: 10.2.0.2}, gateway: true}"
    )
    plain, own = (
        load_text(text % one, "t.yaml") for one in ("", ", routes: [default via 10.1.0.9]")
    )
    assert str(plain.gateway_of("r")) == "10.2.0.2"
    assert own.gateway_of("r") is None
    assert plain.node_digest("r") == own.node_digest("r")


def test_the_kernels_refusal_names_the_line(bench: Bench) -> None:
    said = b"RTNETLINK answers: Network is unreachable\nCommand failed -:2\n"
    bench.provider.script(["ip", "-4"], Answer(status=1, err=said))
    with pytest.raises(LabError) as caught:
        Lab("t", bench.settings).up(
            topology(", routes: [10.7.0.0/16 dev eth0, 10.9.0.0/16 via 10.2.0.2]")
        )
    assert "route replace 10.9.0.0/16 via 10.2.0.2" in str(caught.value)
    assert "Network is unreachable" in str(caught.value)


def test_the_record_and_the_plan_have_them() -> None:
    wanted = topology(KEYS)
    assert json.loads(json.dumps(wanted.to_dict()))["nodes"]["r"]["routes"][0].endswith("10.2.0.2")
    about = plan.make(wanted).steps["node r"].about
    for word in ("forwards", "rp_filter=2", "blackhole 10.8.0.0/16", "lookup 100"):
        assert word in about
    assert replace(wanted, source="x") == wanted


# -- files --------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a file, a program and a folder beside the topology."""
    found = tmp_path / "beside"
    (found / "www" / "sub").mkdir(parents=True)
    (found / "app.conf").write_text("port = 80\n")
    (found / "www" / "index.html").write_text("hello")
    (found / "www" / "sub" / "run").write_text("#!/bin/sh\n")
    (found / "www" / "sub" / "run").chmod(0o700)
    return found


def beside(folder: Path, files: str) -> Topology:
    file = folder / "t.yaml"
    file.write_text(TEXT % f", files: {{{files}}}")
    return load(file)


def test_files_come_from_beside_the_topology(bench: Bench, folder: Path) -> None:
    wanted = beside(
        folder,
        "/etc/app.conf: app.conf, /srv/www: www, "
        "/etc/motd: {content: hi, mode: 0640, owner: root:adm}, "
        "/etc/run: {file: www/sub/run, mode: 600}",
    )
    lab = Lab("t", bench.settings)
    said, _ = words(lab, wanted)
    assert said.endswith("4 files")
    there = node(lab)
    for path, data, mode in (
        ("/etc/app.conf", b"port = 80\n", 0o644),
        ("/srv/www/index.html", b"hello", 0o644),
        ("/srv/www/sub/run", b"#!/bin/sh\n", 0o755),
        ("/etc/motd", b"hi", 0o640),
        ("/etc/run", b"#!/bin/sh\n", 0o600),
    ):
        assert (there.files[path], there.modes[path]) == (data, mode)
    assert there.owners["/etc/motd"] == "root:adm"
    assert lab.up(wanted).changed == []
    found = status(lab.context())
    assert found.ok
    assert [part.name for part in found.nodes[0].more["file"]] == [
        "/etc/app.conf", "/srv/www/index.html", "/srv/www/sub/run", "/etc/motd", "/etc/run",
    ]  # fmt: skip


def test_lost_and_changed_files_are_told_apart(bench: Bench, folder: Path) -> None:
    files = "/etc/a: app.conf, /etc/b: {content: b}, /etc/c: {content: c}, /etc/d: {content: d}"
    wanted, lab = beside(folder, files), Lab("t", bench.settings)
    lab.up(wanted)
    there = node(lab)
    there.files["/etc/b"] = b"other"
    there.modes["/etc/c"] = 0o600
    there.owners["/etc/d"] = "nobody"
    (folder / "app.conf").write_text("port = 81\n")
    found = status(lab.context()).nodes[0].more["file"]
    assert [(part.state, part.ok) for part in found] == [
        ("other content", False), ("other content", False), ("mode 0600", False),
        ("owner nobody:nobody", False),
    ]  # fmt: skip
    said, changed = words(lab, wanted)
    assert changed
    for word in ("changed file /etc/a", "restored file /etc/b", "restored file /etc/c"):
        assert word in said
    assert there.files["/etc/a"] == b"port = 81\n", "as it is beside the topology now"
    assert status(lab.context()).ok


def test_what_was_there_comes_back_when_the_file_is_no_longer_named(
    bench: Bench, folder: Path
) -> None:
    lab = Lab("t", bench.settings)
    lab.up(beside(folder, ""))
    there = node(lab)
    there.files["/etc/motd"] = b"of the node"
    wanted = beside(folder, "/etc/motd: {content: hi}, /etc/more: {content: more}, /srv: www")
    lab.up(wanted)
    assert there.files["/etc/motd"] == b"hi"
    said, changed = words(lab, beside(folder, "/srv: www"))
    assert changed
    assert "removed file /etc/motd" in said
    assert there.files["/etc/motd"] == b"of the node"
    assert "/etc/more" not in there.files
    (folder / "www" / "index.html").unlink()
    words(lab, beside(folder, "/srv: www"))
    assert "/srv/index.html" not in there.files
    assert node(lab) is there


def test_a_repair_reads_the_files_again(bench: Bench, folder: Path) -> None:
    wanted, lab = beside(folder, "/etc/app.conf: app.conf"), Lab("t", bench.settings)
    lab.up(wanted)
    node(lab).files.pop("/etc/app.conf")
    (folder / "t.yaml").unlink()
    recorded = lab.topology()
    assert "restored file /etc/app.conf (missing)" in words(lab, recorded)[0]
    (folder / "app.conf").unlink()
    assert not status(lab.context()).ok, "a source that has gone is shown"
    with pytest.raises(LabError) as caught:
        lab.up(recorded)
    assert str(folder / "app.conf") in str(caught.value)


def test_a_node_that_refuses_a_file(bench: Bench, folder: Path) -> None:
    wanted = beside(folder, "/etc/app.conf: app.conf")
    bench.provider.fail("put", "r", OSError(30, "Read-only file system"))
    with pytest.raises(LabError) as caught:
        Lab("t", bench.settings).up(wanted)
    assert "Read-only" in str(caught.value)
    bench.provider.fail("put", "r", None)
    bench.provider.script(["chown"], Answer(1, err=b"chown: invalid user"))
    with pytest.raises(LabError) as caught:
        Lab("t", bench.settings).up(beside(folder, "/etc/x: {content: x, owner: nemo}"))
    assert "invalid user" in str(caught.value)


MARKS = "/run/testbed/done"
OWN = """\
name: t
networks: {lan: {subnet: 10.1.0.0/24}}
nodes:
  plain: {networks: {lan: 10.1.0.3}}
  r:
    networks: {lan: 10.1.0.2}
    sysctls: {net.ipv4.ip_default_ttl: 70}
    files: {/etc/a: {content: a}}
    routes: [10.2.0.0/16 via 10.1.0.3]
    services: {one: {command: [sleep, inf]}}
"""


def test_a_second_up_reads_one_mark_of_a_node(bench: Bench) -> None:
    wanted, lab = load_text(OWN, "t.yaml"), Lab("t", bench.settings)
    lab.up(wanted)
    bench.forget()
    lab.up(wanted)
    for name in ("plain", "r"):
        read = [path for (path,) in bench.provider.asked("get", name) if path.startswith(MARKS)]
        assert read == [f"{MARKS}/connected"]
        assert bench.provider.asked("put", name) == []


def test_marks_of_an_earlier_version_are_read_and_replaced(bench: Bench) -> None:
    wanted, lab = load_text(OWN, "t.yaml"), Lab("t", bench.settings)
    lab.up(wanted)
    files = node(lab).files
    names, _, text = files[f"{MARKS}/connected"].decode().partition("\0")
    files[f"{MARKS}/connected"] = names.encode()
    for kind, values in json.loads(text).items():
        files[f"{MARKS}/{kind}"] = json.dumps(values).encode()
    assert {f"{MARKS}/{kind}" for kind in ("settings", "files", "services")} <= {*files}
    plain = bench.provider.nodes("t")["plain"]
    assert isinstance(plain, FakeNode)
    plain.files[f"{MARKS}/connected"] = plain.files[f"{MARKS}/connected"].partition(b"\0")[0]
    assert lab.up(wanted).changed == [], "of a node without settings, too"
    without = load_text(OWN.partition("    sysctls")[0], "t.yaml")
    (step,) = [one for one in lab.up(without, replace=True).changed if one.step.name == "node r"]
    said = step.words
    for part in (
        "sysctl net.ipv4.ip_default_ttl",
        "file /etc/a",
        "route 10.2.0.0/16",
        "service one",
    ):
        assert f"removed {part}" in said
    assert "/etc/a" not in files
    bench.forget()
    lab.up(without)
    assert bench.provider.asked("get", "r") == [(f"{MARKS}/connected",)], "the new one"


BAD = """\
name: bad
networks: {lan: {subnet: 10.1.0.0/24}}
nodes:
  r:
    networks: {lan: 10.1.0.2}
    sysctls:
      net.ipv4.conf.all.rp_filter: 1
      net.ipv4.conf.all.log_martians: 1
    files:
      /etc/a: {content: a}
      /etc/b: {content: b}
    routes:
      - 10.2.0.0/16 via 10.1.0.3
      - 10.3.0.0/16 via 10.1.0.4
    rules:
      - from 10.1.0.0/24 lookup 100
    run:
      - "true"
      - {command: "false"}
    services:
      one: {command: [sleep, inf]}
      two:
        command: [sleep, inf]
"""


@pytest.mark.parametrize(
    ("argv", "answer", "line"),
    [
        (["sh", "-c", "false"], Answer(1, err=b"no\n"), 19),
        (["sysctl", "-q", "-w", "net.ipv4.conf.all.log_martians=1"], Answer(1, err=b"no"), 8),
        (["ip", "-4", "-batch", "-"],
         lambda call: Answer(1, err=b"Error: no.\nCommand failed -:2")
         if b"route replace" in (call.input or b"") else Answer(), 14),
        (["ip", "-4", "-batch", "-"],
         lambda call: Answer(1, err=b"Error: no.\nCommand failed -:1")
         if b"rule add" in (call.input or b"") else Answer(), 16),
    ],
)  # fmt: skip
def test_a_failure_begins_with_the_place_in_the_file(
    bench: Bench, tmp_path: Path, argv: list[str], answer: Answer, line: int
) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(BAD)
    bench.provider.script(argv, answer)
    with pytest.raises(LabError) as caught:
        Lab("bad", bench.settings).up(load(file))
    assert f"{file}:{line}: " in caught.value.message


def test_files_and_services_that_fail_have_their_place_too(bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(BAD)
    bench.provider.behave("two", Behaviour(dies=3, log="no luck\n"))
    bench.provider.script(["chown"], Answer(1, err=b"chown: invalid user"))
    with pytest.raises(LabError) as caught:
        Lab("bad", bench.settings).up(load(file))
    assert f"{file}:22: " in caught.value.message or f"{file}:23: " in caught.value.message
    file.write_text(BAD.replace("{content: b}", "{content: b, owner: nemo}"))
    with pytest.raises(LabError) as caught:
        Lab("bad", bench.settings).up(load(file))
    assert f"{file}:11: " in caught.value.message
    with pytest.raises(LabError) as caught:  # one without a file has none
        Lab("bad", bench.settings).up(load_text(file.read_text(), "text"))
    assert "text:" not in caught.value.message


@pytest.mark.parametrize(
    ("files", "hint"),
    [
        ("/etc/a: nothing.conf", "create"),
        ("/etc/a: {file: nothing.conf}", "create"),
        ("etc/a: app.conf", "from / on"),
        ("/etc/../a: app.conf", "'..'"),
        ("/etc/a/: app.conf", "slash at the end"),
        ("/proc/sys/x: app.conf", "choose another"),
        ("/run/testbed/x: app.conf", "choose another"),
        ("/etc/a: {}", "like {file"),
        ("/etc/a: {file: app.conf, content: x}", "remove one"),
        ("/etc/a: {content: x, mode: 0888}", "0644"),
        ("/etc/a: {content: x, mode: rw}", "0644"),
        ("/etc/a: {content: x, owner: 'a b'}", "USER"),
        ("/etc/a: {content: x}, /etc/a/b/c: app.conf", "/etc/a is a file"),
        ("/etc/a: [x]", "text"),
        ("/etc/a: {contents: x, file: app.conf}", "content"),
    ],
)
def test_a_mistake_in_files_has_its_place_and_a_hint(folder: Path, files: str, hint: str) -> None:
    with pytest.raises(TopologyError) as caught:
        beside(folder, files)
    (problem,) = caught.value.problems
    assert problem.line == 5
    assert problem.column > 40
    assert hint in problem.hint


def test_a_file_may_bring_the_names_of_tables() -> None:
    files = ", files: {/etc/iproute2/rt_tables: {content: 100 blue}}"
    found = topology(", routes: [10.9.0.0/16 via 10.2.0.2 table blue]" + files)
    assert found.nodes["r"].routes[0].table == "blue"
    assert load_data(found.to_dict(), "record") == found


# -- env, run, services -------------------------------------------------------------------


def commands(bench: Bench) -> list[tuple[str, ...]]:
    """The commands of the file that have run on the node since the last call."""
    found = [call.words for call in bench.provider.calls if call.what == "run"]
    bench.forget()
    return [
        one for one in found if one[0] == "make" or (one[:2] == ("sh", "-c") and "it" in one[-1])
    ]


def test_each_command_runs_once_and_in_order(bench: Bench) -> None:
    lab, wanted = Lab("t", bench.settings), topology(", run: [make it, [make, it], make it]")
    lab.up(wanted)
    assert commands(bench) == [("sh", "-c", "make it"), ("make", "it"), ("sh", "-c", "make it")]
    assert lab.up(wanted).changed == []
    assert commands(bench) == []
    lab.up(topology(", run: [make it first, make it, [make, it], make it]"))
    assert commands(bench) == [("sh", "-c", "make it first")], "the others have run"
    (mine,) = [one for one in status(lab.context()).nodes if one.name == "r"]
    assert [part.state for part in mine.more["run"]] == ["done"] * 4
    bench.provider.destroy("t", ["r"])
    lab.up(topology(", run: [make it]"))
    assert commands(bench) == [("sh", "-c", "make it")], "a new node has run nothing"


def test_what_proves_a_command_done_decides(bench: Bench) -> None:
    keys = ", run: [{command: [make, it], done: test -e it}]"
    there = False
    made = 0

    def make(_: Call) -> Answer:
        nonlocal there, made
        there, made = True, made + 1
        return Answer()

    bench.provider.script(["make"], make)
    bench.provider.script(
        ["sh", "-c", "test -e it"], lambda _: Answer(0 if there else 1, err=b"no it")
    )
    lab, wanted = Lab("t", bench.settings), topology(keys)
    lab.up(wanted)
    assert made == 1
    assert lab.up(wanted).changed == []
    assert made == 1
    there = False
    assert not status(lab.context()).ok
    (done,) = lab.up(wanted).changed
    assert done.words == "1 command done"
    assert made == 2
    there = True
    lab.up(topology(keys.replace("make", "build")))
    assert made == 2, "it was done before"
    bench.provider.script(["make"], Answer())
    there = False
    with pytest.raises(LabError) as caught:
        lab.up(wanted)
    assert "no it" in str(caught.value)


def test_a_failure_shows_the_output_and_the_next_up_continues(bench: Bench) -> None:
    lab, wanted = Lab("t", bench.settings), topology(", run: [make it, [make, it], make it]")
    bench.provider.script(["make"], Answer(7, out=b"half", err=b"of it"))
    with pytest.raises(LabError) as caught:
        lab.up(wanted, keep=True)
    assert "of it" in str(caught.value)
    assert "7" in str(caught.value)
    bench.provider.script(["make"], Answer())
    commands(bench)
    lab.up(wanted)
    assert commands(bench) == [("make", "it"), ("sh", "-c", "make it")]


def test_a_command_has_a_time_limit(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("testbed.labs.program_steps.LOOK_SECONDS", 0.01)
    bench.provider.script(["make"], Answer(seconds=60.0, out=b"still at it"))
    with pytest.raises(LabError) as caught:
        Lab("t", bench.settings).up(topology(", run: [{command: [make, it], timeout: 20ms}]"))
    assert "still at it" in str(caught.value)
    assert "0.02" in str(caught.value)


SERVED = ", services: {web: {command: [serve, /etc/web.conf]%s}}"


def test_a_service_of_its_own(bench: Bench) -> None:
    lab, wanted = Lab("t", bench.settings), topology(SERVED % "")
    lab.up(wanted)
    first = node(lab).services()["web"]
    assert first.state == "ready"
    assert lab.up(wanted).changed == []
    (mine,) = [one for one in status(lab.context()).nodes if one.name == "r"]
    assert [(part.name, part.ok) for part in mine.services] == [("web", True)]
    node(lab).end("web", -9)
    assert not status(lab.context()).ok
    (done,) = lab.up(wanted).changed
    assert done.step.name == "service r/web"
    assert "restarted" in done.words
    (done,) = lab.up(topology(SERVED % ", env: {A: b}")).changed
    assert "changed" in done.words
    assert node(lab).services()["web"].digest != first.digest


def test_a_service_that_the_file_no_longer_has_is_stopped(bench: Bench) -> None:
    lab, wanted = Lab("t", bench.settings), topology(SERVED % "")
    lab.up(wanted)
    said, changed = words(lab, topology())
    assert changed
    assert "removed service web" in said
    assert node(lab).services()["web"].state == "dead"
    found = status(lab.context())
    assert found.ok
    assert found.nodes[0].services == [], "it is no part of the lab"
    assert lab.up(topology()).changed == []
    lab.up(wanted)
    assert node(lab).services()["web"].state == "ready"
    node(lab).end("web", 1)
    assert not status(lab.context()).ok, "it is back, and counts"


def test_a_service_restarts_when_a_file_changes_that_its_command_names(bench: Bench) -> None:
    def wanted(text: str) -> Topology:
        files = f", files: {{/etc/web.conf: {{content: {text}}}, /etc/motd: {{content: {text}}}}}"
        return topology(SERVED % "" + files)

    lab = Lab("t", bench.settings)
    lab.up(wanted("a"))
    names = [done.step.name for done in lab.up(wanted("b")).changed]
    assert names == ["node r", "service r/web"]


def test_a_service_that_ends_at_once_fails_up(bench: Bench) -> None:
    bench.provider.behave("web", Behaviour(log="no such page\n", dies=3))
    with pytest.raises(LabError) as caught:
        Lab("t", bench.settings).up(topology(SERVED % ""))
    assert "no such page" in str(caught.value)


def test_up_waits_until_a_service_is_ready(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    listening: dict[str, int] = {}
    asked: list[tuple[int, str]] = []

    def sockets(_: object, pid: int, protocol: str) -> dict[str, int]:
        asked.append((pid, protocol))
        if len(asked) > 2:
            listening["7"] = 53
        return listening

    monkeypatch.setattr("testbed.labs.program_steps.sockets", sockets)
    ready = ", ready: {port: 53/udp, command: [ask, it], timeout: 30s}, restart: on-failure"
    Lab("t", bench.settings).up(topology(SERVED % ready))
    assert asked == [(1, "udp")] * 3
    assert ("ask", "it") in [call.words for call in bench.provider.calls]


def test_a_service_that_does_not_become_ready(bench: Bench) -> None:
    bench.provider.script(["ask"], Answer(1, err=b"not yet"))
    ready = ", ready: {command: [ask], timeout: 30ms}"
    with pytest.raises(LabError) as caught:
        Lab("t", bench.settings).up(topology(SERVED % ready))
    assert "not yet" in str(caught.value)


def test_the_environment_is_that_of_commands_services_and_tests(bench: Bench) -> None:
    keys = ", env: {WHO: me}, run: [make it], services: {web: {command: [serve], env: {A: b}}}"
    lab, wanted = Lab("t", bench.settings), topology(keys)
    lab.up(wanted)
    envs = {call.words: dict(call.env) for call in bench.provider.calls if call.node == "r"}
    assert envs["sh", "-c", "make it"] == {"WHO": "me"}
    assert envs["web",] == {"WHO": "me", "A": "b"}
    assert all(
        "WHO" not in env for words, env in envs.items() if words[:1] in (("ip",), ("sysctl",))
    )
    with LiveLab(lab.context()) as live:
        live.node("r").run(["test-it"])
        assert on_node(live.node("r"), ["id"], Surroundings({"B": "c"})) == [
            "env", "WHO=me", "B=c", "id",
        ]  # fmt: skip
    assert bench.provider.calls[-1].env == {"WHO": "me"}
    assert wanted.node_digest("r") == topology().node_digest("r")


def test_the_environment_is_not_that_of_containers() -> None:
    machine = FakeNode(FakeMachine(), "t", spec("n"))
    machine.env = {"WHO": "me", "PORT": "1"}
    there = LiveContainer(machine, ContainerProcess("c1", "1" * 64, 77, "", ("PORT=2",)))
    inside = there.argv(["env"], mounts=True)
    assert inside[:5] == ["env", "-u", "PORT", "-u", "WHO"]
    assert there.argv(["ip", "link"], mounts=False)[0] == "nsenter", "a program of the node"
    place = there.host.backend._where()
    assert [*place.prefix][:3] == ["env", "-u", "WHO"], "its own variable stays"


def test_a_fault_may_kill_a_service_of_its_own() -> None:
    text = TEXT % (SERVED % "") + "faults: {down: kill r/web}\n"
    assert load_text(text, "t.yaml").faults["down"].service == "web"
    with pytest.raises(TopologyError):
        load_text(text.replace("kill r/web", "kill r/webb"), "t.yaml")


@pytest.mark.parametrize(
    ("keys", "hint"),
    [
        (", run: make it", "list"),
        (", run: ['']", "write one"),
        (", run: [[]]", "program"),
        (", run: [{done: x}]", "add it"),
        (", run: [{command: x, timeout: 5}]", "5s"),
        (", run: [7]", "quote"),
        (", env: {1A: b}", "rename"),
        (", env: {A: 1}", "quote"),
        (", services: [web]", "below"),
        (", services: {web: {}}", "add it"),
        (", services: {Web: {command: x}}", "web"),
        (", services: {web: {command: x, restart: never}}", "always"),
        (", services: {web: {command: x, ready: {}}}", "port"),
        (", roles: [docker], services: {dockerd: {command: x}}", "rename"),
    ],
)
def test_a_mistake_in_programs_has_its_place_and_a_hint(keys: str, hint: str) -> None:
    is_refused(keys, hint)


# -- binds --------------------------------------------------------------------------------


def bound(folder: Path, binds: str, more: str = "") -> Topology:
    file = folder / "t.yaml"
    file.write_text(TEXT % f", binds: [{binds}]{more}")
    return load(file)


def test_binds_are_part_of_a_new_node(bench: Bench, folder: Path) -> None:
    wanted = bound(folder, "./www:/srv/www:ro, ./app.conf:/etc/app.conf")
    lab = Lab("t", bench.settings)
    said, _ = words(lab, wanted)
    assert said.endswith("2 binds")
    assert node(lab).spec.binds == (
        Bind(folder / "www", "/srv/www", read_only=True),
        Bind(folder / "app.conf", "/etc/app.conf"),
    )
    assert lab.up(wanted).changed == []
    first = node(lab)
    first.bound.pop()
    (gone,) = [p for p in status(lab.context()).nodes[0].more["bind"] if not p.ok]
    assert gone.name == "/etc/app.conf"
    assert "restored bind /etc/app.conf" in words(lab, wanted)[0]
    lab.up(bound(folder, "./www:/srv/www"))
    assert node(lab) is not first, "a new node"
    assert load_data(wanted.to_dict(), "record") == wanted


@pytest.mark.parametrize(
    ("binds", "hint"),
    [
        ("./nothing:/srv/x", "create"),
        ("www:/srv/www", "./www:/srv/www"),
        ("./www", "like"),
        ("./www:srv", "like"),
        ("./www:/srv:rx", "like"),
        ("./www:/srv/", "slash"),
        ("./www:/proc/x", "another"),
        ("./www:/srv/a, ./app.conf:/srv/a", "another"),
        ("7", "like"),
    ],
)
def test_a_mistake_in_binds_has_its_place_and_a_hint(folder: Path, binds: str, hint: str) -> None:
    with pytest.raises(TopologyError) as caught:
        bound(folder, binds)
    (problem,) = caught.value.problems
    assert problem.line == 5
    assert problem.column > 40
    assert hint in problem.hint


@pytest.mark.parametrize("provider", ["qemu", "vagrant", "containerlab"])
def test_a_provider_without_binds_refuses_them_by_name(folder: Path, provider: str) -> None:
    with pytest.raises(TopologyError) as caught:
        bound(folder, "./www:/srv/www", f", provider: {provider}")
    (problem,) = caught.value.problems
    assert provider in problem.seen
    assert "files" in problem.hint
    assert "netns" in problem.hint


def test_other_nodes_refuse_binds(folder: Path) -> None:
    with pytest.raises(MachineError):
        Node.bind(FakeNode(FakeMachine(), "t", spec("n")), [Bind(folder, "/srv/x")])


# -- failures half-way --------------------------------------------------------------------


def test_a_failure_half_way_forgets_nothing_that_was_set(bench: Bench, folder: Path) -> None:
    lab, plain = Lab("t", bench.settings), beside(folder, "")
    lab.up(plain)
    kernel = node(lab).kernel
    kernel.sysctls["net.ipv4.conf.all.rp_filter"] = "1"
    bench.provider.script(["ip", "-4"], Answer(2, err=b"no"))
    keys = "}, sysctls: {net.ipv4.conf.all.rp_filter: 2}, routes: [10.9.0.0/16 via 10.2.0.2"
    file = folder / "t.yaml"
    file.write_text(TEXT % f", files: {{/etc/a: app.conf{keys}]")
    with pytest.raises(LabError):
        lab.up(load(file))
    assert kernel.sysctls["net.ipv4.conf.all.rp_filter"] == "2"
    assert "/etc/a" in node(lab).files
    bench.provider.script(["ip", "-4"], bench.links.ip)
    words(lab, beside(folder, ""))
    assert kernel.sysctls["net.ipv4.conf.all.rp_filter"] == "1"
    assert "/etc/a" not in node(lab).files


def test_a_service_that_never_started_is_forgotten_too(bench: Bench) -> None:
    lab = Lab("t", bench.settings)
    lab.up(topology())
    bench.provider.behave("web", Behaviour(dies=3))
    with pytest.raises(LabError):
        lab.up(topology(SERVED % ""))
    lab.up(topology())
    assert status(lab.context()).ok
