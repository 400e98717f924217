"""`logs`: of services and containers, several at once, since a time, and followed."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from hands import Hands

from testbed.errors import UsageError
from testbed.labs.logs import newer, since, time_of
from testbed.nodes.fake import Answer, Behaviour, Call
from testbed.roles.container import LogLine
from testbed.roles.docker import processes

if TYPE_CHECKING:
    from testbed.testing.fakes import Bench

LOG = "/var/lib/docker/containers/1/1-json.log"
ENDED = "/var/lib/docker/containers/2/2-json.log"


def entry(text: str, at: str) -> bytes:
    return json.dumps({"log": text, "stream": "stdout", "time": at}).encode() + b"\n"


class Files:
    """Records and log files of containers, as the daemon of a node writes them."""

    def __init__(self, hands: Hands) -> None:
        self.text: dict[str, bytes] = {}
        records: list[dict[str, Any]] = [
            {"Name": "/web", "ID": "1", "LogPath": LOG},
            {"Name": "/gone", "ID": "2", "LogPath": ENDED},
            {"Name": "/other", "ID": "3", "LogPath": ""},
        ]
        out = b"\0".join(json.dumps(one).encode() for one in records)
        hands.bench.provider.script(processes.LIST, Answer(out=b"broken\0" + out + b"\0"), "a")
        hands.bench.provider.script(["tail"], self.tail, "a")

    def tail(self, call: Call) -> Answer:
        begin = int(call.words[2].removeprefix("+")) - 1
        return Answer(out=self.text.get(call.words[3], b"")[begin:])


@pytest.fixture
def hands(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Hands:
    made = Hands(bench, monkeypatch, capsys)
    bench.provider.behave("dockerd", Behaviour(log="ready\nsecond\n"))
    bench.provider.behave("containerd", Behaviour(log="begun\n"))
    made.up()
    return made


@pytest.fixture
def files(hands: Hands) -> Files:
    return Files(hands)


@pytest.mark.parametrize(
    ("argv", "lines"),
    [
        (["a/dockerd"], ["ready", "second"]),
        (["a", "dockerd"], ["ready", "second"]),
        (["a"], ["containerd: begun", "dockerd: ready", "dockerd: second"]),
        (["-n", "1", "a"], ["containerd: begun", "dockerd: second"]),
        (["-n", "0", "a"], []),
        (["a/dockerd", "a/containerd"], ["dockerd: ready", "dockerd: second", "containerd: begun"]),
        (["a/dockerd", "a/dockerd"], ["ready", "second"]),
        (["b"], []),
        (["a", "b"], ["containerd: begun", "dockerd: ready", "dockerd: second"]),
    ],
)
def test_logs_of_services(argv: list[str], lines: list[str], hands: Hands) -> None:
    said = hands("logs", *argv)
    assert (said.status, said.out.splitlines()) == (0, lines)
    assert bool(said.err) == (argv == ["b"])


def test_a_container_is_read_from_its_file(hands: Hands, files: Files) -> None:
    files.text[LOG] = (
        entry("one\n", "2026-11-30T04:00:00.123456789Z")
        + entry("a long ", "2026-11-30T04:00:01Z")
        + entry("line\n", "2026-11-30T04:00:02Z")
        + b"no json\n"
        + b'{"log": "half'
    )
    files.text[ENDED] = entry("last words", "2026-11-30T04:00:00Z")
    assert hands("logs", "a/web").out == "one\na long line\n"
    assert hands("logs", "a/gone").out == "last words\n", "it has ended"
    rows = json.loads(hands("logs", "a/web", "--json").out)
    assert rows[0] == {"log": "a/web", "time": pytest.approx(1796011200.123456), "line": "one"}
    no_file = hands("logs", "a/other")
    assert no_file.status == 4
    assert "docker logs other" in no_file.err


def test_all_of_a_lab(hands: Hands, files: Files) -> None:
    files.text[LOG] = entry("one\n", "2026-11-30T04:00:00Z")
    files.text[ENDED] = b""
    hands.bench.provider.script(
        processes.LIST, Answer(out=json.dumps({"Name": "/web", "LogPath": LOG}).encode()), "a"
    )
    said = hands("logs", "--all", "-l", "plain")
    assert said.out.splitlines() == [
        "containerd: begun", "dockerd: ready", "dockerd: second", "web: one",
    ]  # fmt: skip


def test_lines_of_several_nodes_have_their_names(hands: Hands) -> None:
    text = (
        "name: two\nnetworks: {lan: {subnet: 10.168.0.0/24}}\nnodes:\n"
        "  c: {networks: {lan: 10.168.0.2}, roles: [docker]}\n"
        "  d: {networks: {lan: 10.168.0.3}, roles: [docker]}\n"
    )
    hands.up(text)
    said = hands("logs", "-l", "two", "-n", "1", "c/dockerd", "d/dockerd")
    assert said.out.splitlines() == ["c/dockerd: second", "d/dockerd: second"]


def test_a_log_is_followed(hands: Hands, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    files.text[LOG] = entry("one\n", "2026-11-30T04:00:00Z") + b'{"log": "tw'

    def later(_: float) -> None:
        if files.text[LOG].count(b"\n") > 1:
            raise KeyboardInterrupt
        files.text[LOG] = entry("one\n", "2026-11-30T04:00:00Z") + entry("two\n", "x")

    monkeypatch.setattr("testbed.cli.logs.time.sleep", later)
    said = hands("logs", "-f", "a/web")
    assert (said.status, said.out) == (130, "one\ntwo\n")


@pytest.mark.parametrize(
    ("argv", "status"),
    [
        ([], 2), (["--all", "a"], 2), (["-f", "--json", "a"], 2), (["--since", "soon", "a"], 2),
        (["nosuch"], 4), (["a/nosuch"], 4), (["b/nosuch"], 4), (["a", "nosuch"], 4),
    ],
)  # fmt: skip
def test_wrong_use(argv: list[str], status: int, hands: Hands) -> None:
    said = hands("logs", *argv)
    assert (said.status, said.out) == (status, "")
    assert "-> " in said.err


# -- times --------------------------------------------------------------------------------


def test_lines_since_a_time(hands: Hands, files: Files) -> None:
    files.text[LOG] = b"".join(
        entry(f"{second}\n", f"2026-11-30T04:00:0{second}Z") for second in (1, 2, 3)
    )
    assert hands("logs", "--since", "2026-11-30T04:00:02Z", "a/web").out == "2\n3\n"
    assert hands("logs", "--since", "2026-11-30T05:00:02+01:00", "-n", "1", "a/web").out == "3\n"
    untimed = hands("logs", "--since", "10m", "a/dockerd")
    assert untimed.out == "ready\nsecond\n"
    assert "no times" in untimed.err


def test_a_line_without_a_time_belongs_to_the_one_before() -> None:
    lines = [LogLine("a"), LogLine("b", 1.0), LogLine("c"), LogLine("d", 3.0), LogLine("e")]
    assert [line.text for line in newer(lines, 2.0)] == ["d", "e"]
    assert [line.text for line in newer(lines, 1.0)] == ["b", "c", "d", "e"]
    assert newer([], 1.0) == []


NOW = datetime(2026, 11, 30, 4, 0, 10, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("text", "ago"),
    [
        ("10s", 10), ("1h30m", 5400), ("500ms", 0.5), ("1.5m", 90), ("2d", 172800),
        ("2026-11-30T04:00:00Z", 10), ("2026-11-30 04:00:00.5+00:00", 9.5),
    ],
)  # fmt: skip
def test_since(text: str, ago: float) -> None:
    assert since(text, NOW) == pytest.approx(NOW - ago)


@pytest.mark.parametrize("text", ["", "10", "x", "10y", "2026-13-30T04:00:00Z", "2026-11-30"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(UsageError):
        since(text, NOW)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ('time="2026-11-30T04:00:00.25Z" level=warning msg="x"', True),
        ("2026-11-30T04:00:00.250000000Z x", True),
        ("x" * 90 + " 2026-11-30T04:00:00.25Z", False),
        ("2026-13-30T04:00:00Z", False),
        ("I1399 04:00:00.250000       1 main.go:1] x", False),
        ("no time", False),
    ],
)
def test_the_time_of_a_line(line: str, found: bool) -> None:
    at = time_of(line, NOW)
    assert at == (pytest.approx(NOW - 9.75) if found else None)


def test_lines_without_a_zone_are_local() -> None:
    local = datetime.fromtimestamp(NOW, UTC).astimezone()
    assert time_of(local.strftime("%Y-%m-%d %H:%M:%S") + ".0 etcd", NOW) == NOW
    assert time_of(local.strftime("I%m%d %H:%M:%S.000000 1 main.go:1] x"), NOW) == NOW
