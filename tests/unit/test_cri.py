"""Answers of a runtime by CRI: ids in framed messages, and invalid answers."""

from __future__ import annotations

import pytest

from testbed.claims.observation import Observation
from testbed.errors import LabError
from testbed.nodes.fake import Answer, FakeProvider
from testbed.suites.cri import containers, fields, ids
from testbed.testing.provider import spec

ID = b"c" * 64
#: Container: id, pod_sandbox_id, metadata {name}, state, created_at as a fixed number of 8 octets.
CONTAINER = (
    b"\x0a\x40" + ID + b"\x12\x03pod" + b"\x1a\x05\x0a\x03web" + b"\x30\x01" + b"\x39" + bytes(8)
)


def framed(*entries: bytes) -> bytes:
    message = b"".join(b"\x0a" + varint(len(one)) + one for one in entries)
    return b"\x00" + len(message).to_bytes(4, "big") + message


def varint(number: int) -> bytes:
    octets = []
    while number > 0x7F:
        octets.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*octets, number])


def test_only_the_id_of_each_container_is_read() -> None:
    other = CONTAINER.replace(ID, b"d" * 64) + b"\x42" + varint(300) + bytes(300)
    assert ids(framed(CONTAINER, other)) == ["c" * 64, "d" * 64]
    assert ids(framed()) == []


def test_fields_of_all_kinds_are_passed_over() -> None:
    message = b"\x08\xac\x02" + b"\x11" + bytes(8) + b"\x1d" + bytes(4) + b"\x22\x01x"
    assert list(fields(message)) == [(4, b"x")]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "not answered"),
        (b"\x01\x00\x00\x00\x00", "compressed"),
        (framed(CONTAINER)[:-1], "compressed"),
        (b"\x00\x00\x00\x00\x02\x0a\x7f", "incomplete"),
        (b"\x00\x00\x00\x00\x01\x0a", "incomplete"),
        (b"\x00\x00\x00\x00\x01\x0b", "kind 3"),
    ],
)
def test_what_is_no_answer_is_told(answer: bytes, words: str) -> None:
    with pytest.raises(LabError, match=words):
        ids(answer)


def test_it_is_asked_by_curl_on_the_node() -> None:
    provider = FakeProvider()
    provider.script(["curl"], Answer(out=framed(CONTAINER)))
    node = provider.create_one("lab", spec("node1"))
    observe = Observation()
    assert containers(observe, node, "/run/runtime.sock") == ["c" * 64]
    assert [one.what for one in observe.evidence] == [
        "node1: ListContainers of CRI at /run/runtime.sock"
    ]
