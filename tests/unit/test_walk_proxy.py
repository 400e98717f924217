"""The connection of a proxy, told from others by sockets and frames that are made by hand."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence

import pytest
from walk_frames import IN, NUMBER, OUT, SPORT, A, B, frame, ip, tcp, udp

from testbed.walk.frames import Signature, sightings
from testbed.walk.proxy import Lookout, Proxy, connected, connections, is_same, passed_on

COMMAND = "docker-proxy -container-ip 172.17.0.2 -container-port 80"
PROXY = Proxy(("host", ""), "172.17.0.2", 80, frozenset({COMMAND}))
ONE = (1, "docker0", OUT, 1)


def syn(sport: int, seq: int, *, src: str = "172.17.0.1", dport: int = 80) -> bytes:
    segment = tcp(seq=seq, sport=sport, dport=dport)
    return frame(A, B, ip(src, "172.17.0.2", segment, protocol=6))


def test_connections_are_those_of_the_processes_of_the_proxy() -> None:
    printed = f"ESTAB 172.17.0.1:4000 {COMMAND} \nSYN-SENT [fd00::1]:4001 {COMMAND} \n"
    printed += "ESTAB 172.17.0.1:4002 curl 172.17.0.2 \nTIME-WAIT 172.17.0.1:4003 \n"
    assert connections(printed, PROXY.commands) == {4000: "ESTAB", 4001: "SYN-SENT"}


def test_the_command_for_an_address_of_ipv6_has_it_in_brackets() -> None:
    proxy = Proxy(("host", ""), "fd00::2", 80, frozenset())
    assert proxy.sockets[-1] == "dst [fd00::2] and dport = :80"
    assert (proxy.family, PROXY.family) == (6, 4)


OURS = (*ONE, syn(4000, 7))
OTHERS: dict[str, list[tuple[object, ...]]] = {
    "nothing": [],
    "a packet forwarded for somebody else": [(*ONE, syn(5000, 8, src="10.0.0.9"))],
    "one of the same connection at another device": [(2, "veth1", OUT, 1, syn(4000, 7))],
    "one to another port": [(*ONE, syn(5000, 8, dport=81))],
    "one that came in": [(1, "eth0", IN, 1, syn(5000, 8))],
}


@pytest.mark.parametrize("name", OTHERS)
def test_the_connection_of_the_request_is_the_only_one_opened_meanwhile(name: str) -> None:
    frames = [*OTHERS[name], OURS]
    found = connected(PROXY, frames, {"172.17.0.1"}, {4000})
    assert found == Signature("tcp", 4, 7, 4000)


def test_two_connections_at_the_same_time_are_not_told_apart() -> None:
    frames = [OURS, (*ONE, syn(4001, 9))]
    assert connected(PROXY, frames, {"172.17.0.1"}, {4000}) is None


def test_a_connection_of_another_process_is_not_that_of_the_proxy() -> None:
    assert connected(PROXY, [OURS], {"172.17.0.1"}, {}) is None
    assert connected(PROXY, [], {"172.17.0.1"}, {4000}) is None


def test_a_datagram_that_is_passed_on_has_the_token_of_the_request() -> None:
    token = NUMBER.to_bytes(4, "big")
    first = ip("127.0.0.1", "127.0.0.1", udp(token), protocol=17)
    second = ip("172.17.0.1", "172.17.0.2", udp(token, 4000, 80), protocol=17, ident=9)
    other = ip("172.17.0.1", "172.17.0.2", udp(b"none", 4001, 80), protocol=17, ident=10)
    frames = [(1, "lo", OUT, 1, frame(A, B, first)), (2, "lo", IN, 1, frame(A, B, first)),
              (3, "docker0", OUT, 1, frame(A, B, other)),
              (4, "docker0", OUT, 1, frame(A, B, second))]  # fmt: skip
    seen = [*sightings(("host", ""), frames, Signature("udp", 4, NUMBER, SPORT))]
    found = passed_on(PROXY, seen)
    assert found is not None
    assert found.packet.sport == 4000
    assert [is_same(one, found) for one in seen] == [False, False, True]
    assert passed_on(PROXY, seen[:2]) is None


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        yield one, other


class Sockets:
    """Output of ss, one text after another."""

    def __init__(self, *texts: str) -> None:
        self._texts = [*texts]
        self.asked = 0

    def __call__(self, argv: Sequence[str]) -> str:
        assert argv == PROXY.sockets
        self.asked += 1
        return self._texts.pop(0) if len(self._texts) > 1 else self._texts[0]


BEFORE = f"ESTAB 172.17.0.1:3999 {COMMAND}\n"


def test_a_look_ends_when_the_proxy_has_connected(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    opening = f"{BEFORE}SYN-SENT 172.17.0.1:4000 {COMMAND}\n"
    run = Sockets(BEFORE, BEFORE, opening, opening.replace("SYN-SENT", "ESTAB"))
    lookout = Lookout(PROXY, run, 300)
    pair[1].send(b"220 a server that speaks first\r\n")
    lookout(pair[0])
    lookout.close()
    assert lookout.found == {4000: "ESTAB"}
    assert pair[0].recv(3) == b"220"


def test_a_look_ends_when_the_proxy_hangs_up(pair: tuple[socket.socket, socket.socket]) -> None:
    lookout = Lookout(PROXY, Sockets(BEFORE), 300)
    pair[1].close()
    lookout(pair[0])
    lookout.close()
    assert lookout.found == {}


def test_a_connection_that_nobody_answers_is_still_found(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    run = Sockets("", f"SYN-SENT 172.17.0.1:4000 {COMMAND}\n")
    lookout = Lookout(PROXY, run, 0)
    lookout(pair[0])
    lookout.close()
    assert (lookout.found, run.asked) == ({4000: "SYN-SENT"}, 2)
