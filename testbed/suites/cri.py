"""What a container runtime answers a kubelet by CRI (k8s.io/cri-api, runtime/v1/api.proto).

That is gRPC on a unix socket, without TLS.  The one call that is made here has an empty request,
and of its answer a few texts are read: curl and a few lines do for that.
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
FRAME = struct.Struct(">BI")  # whether it is compressed, and how long it is (gRPC over HTTP/2)
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5  # wire types (protobuf.dev, "Encoding")


def containers(observe: Observation, node: Node, socket: str) -> list[str]:
    """The ids of all containers that ListContainers tells of.  Raises LabError, CommandError."""
    url = f"http://runtime/{SERVICE}/ListContainers"
    headers = ["--header", "content-type: application/grpc", "--header", "te: trailers"]
    argv = ["curl", "-sS", "--http2-prior-knowledge", "--unix-socket", socket, *headers]
    argv += ["--data-binary", "@-", url]
    answer = node.run(argv, input=FRAME.pack(0, 0)).out
    found = ids(answer)
    observe.note(f"{node.name}: ListContainers of CRI at {socket}", "\n".join(found))
    return found


def ids(answer: bytes) -> list[str]:
    """The ids in a framed ListContainersResponse: a list of Container, whose first field it is.

    >>> ids(bytes.fromhex("00 0000000a 0a03 0a0161 0a03 0a0162"))
    ['a', 'b']
    """
    if len(answer) < FRAME.size:
        raise LabError("the runtime has not answered ListContainers of CRI v1")
    packed, length = FRAME.unpack_from(answer)
    message = answer[FRAME.size : FRAME.size + length]
    if packed or len(message) != length:
        raise LabError("the runtime's answer to ListContainers is compressed, or cut short")
    entries = [value for number, value in fields(message) if number == 1]
    return [value.decode() for entry in entries for number, value in fields(entry) if number == 1]


def fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """The fields of a message that have a length, each with its number; others are passed over.

    Raises LabError for what is no message.
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
                    raise LabError("a message of the runtime is cut short")
                yield number, message[at : at + length]
                at += length
            elif kind == VARINT:
                varint()
            elif kind in {FIXED64, FIXED32}:
                at += 8 if kind == FIXED64 else 4
            else:
                raise LabError(f"a message of the runtime has a field of the kind {kind}")
    except IndexError as error:
        raise LabError("a message of the runtime is cut short") from error
