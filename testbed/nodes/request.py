"""A request to the program that acts for us on a node: NUL-terminated fields.

Pid 1 of a namespace node (``init.c``) and the agent at the end of a stream (``agent.c``) read
the same encoding.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping

from testbed.errors import LabError

#: The environment of commands on a node. The caller's environment is not passed on:
#: DOCKER_HOST, ETCDCTL_*, proxy settings and locale of the user stay outside.
ENVIRONMENT: Mapping[str, str] = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "TERM": "dumb",
}
LIMIT = 192 * 1024  #: maximum bytes of a request; MAX_MESSAGE of init.c, below MAX_FRAME of agent.c


def environment(extra: Mapping[str, str] | None) -> list[str]:
    """Return the environment fields of a request: their count, then ``NAME=value`` each."""
    merged = {**ENVIRONMENT, **(extra or {})}
    return [str(len(merged)), *(f"{key}={value}" for key, value in merged.items())]


def part_of(path: str) -> str:
    """Return a name beside a path for what is renamed to it when it is complete.

    No other process and no other call has the same name.
    """
    return f"{path}.testbed-{os.getpid()}-{time.monotonic_ns()}"


def request(node: str, fields: Iterable[str]) -> bytes:
    """Encode a request as NUL-terminated fields.

    Raises ValueError if a field contains a NUL, LabError if the request is too long.
    """
    parts = [field.encode("utf-8", "surrogateescape") for field in fields]
    if any(b"\0" in part for part in parts):
        raise ValueError("an argument contains a NUL character")
    data = b"".join(part + b"\0" for part in parts)
    if len(data) > LIMIT:
        raise LabError(
            f"a command for {node} is {len(data)} bytes long, more than {LIMIT}",
            hint="put the data into a file, or send it as standard input",
        )
    return data
