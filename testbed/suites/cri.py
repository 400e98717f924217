"""A client of CRI, the kubelet's interface to its container runtime.

CRI (k8s.io/cri-api, runtime/v1/api.proto) is gRPC on a unix socket, without TLS.  The only call
made here has an empty request, and only a few texts of its answer are read: curl and a few lines
are enough for that.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING

from testbed.errors import LabError

if TYPE_CHECKING:
    from testbed.claims.observation import Observation
    from testbed.nodes.base import Node

SERVICE = "runtime.v1.RuntimeService"
FRAME = struct.Struct(">BI")  # compression flag and length (gRPC over HTTP/2)
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5  # wire types (protobuf.dev, "Encoding")


def containers(observe: Observation, node: Node, socket: str) -> list[str]:
    """Return the ids that ListContainers answers.  Raises LabError, CommandError."""
    url = f"http://runtime/{SERVICE}/ListContainers"
    headers = ["--header", "content-type: application/grpc", "--header", "te: trailers"]
    argv = ["curl", "-sS", "--http2-prior-knowledge", "--unix-socket", socket, *headers]
    argv += ["--data-binary", "@-", url]
    answer = node.run(argv, input=FRAME.pack(0, 0)).out
    found = ids(answer)
    observe.note(f"{node.name}: ListContainers of CRI at {socket}", "\n".join(found))
    return found


def ids(answer: bytes) -> list[str]:
    """Return the ids in a framed ListContainersResponse.

    It is a list of Container, whose first field is the id.

    >>> ids(bytes.fromhex("00 0000000a 0a03 0a0161 0a03 0a0162"))
    ['a', 'b']
    """
    if len(answer) < FRAME.size:
        raise LabError("the runtime has not answered ListContainers of CRI v1")
    packed, length = FRAME.unpack_from(answer)
    message = answer[FRAME.size : FRAME.size + length]
    if packed or len(message) != length:
        raise LabError("the runtime's answer to ListContainers is compressed or incomplete")
    entries = [value for number, value in fields(message) if number == 1]
    return [value.decode() for entry in entries for number, value in fields(entry) if number == 1]


def fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Return the length-delimited fields of a message with their numbers.

    Other fields are skipped.  Raises LabError for an invalid message.
    """
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            octet = message[at]
            at += 1
            value |= (octet & 0x7F) << shift
            shift += 7
            if not octet & 0x80:
                return value

    try:
        while at < len(message):
            number, kind = divmod(varint(), 8)
            if kind == LENGTH:
                length = varint()
                if at + length > len(message):
                    raise LabError("a message of the runtime is incomplete")
                yield number, message[at : at + length]
                at += length
            elif kind == VARINT:
                varint()
            elif kind in {FIXED64, FIXED32}:
                at += 8 if kind == FIXED64 else 4
            else:
                raise LabError(f"a message of the runtime has a field of unknown kind {kind}")
    except IndexError as error:
        raise LabError("a message of the runtime is incomplete") from error
