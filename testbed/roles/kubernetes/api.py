"""A client of the cluster's API, through a unix socket of the node.

A lab opens no port on this machine. A forwarder on the control plane's node connects the socket
to the API server, with mutual TLS from end to end.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
from typing import TYPE_CHECKING, Any

import urllib3
from urllib3.connection import HTTPSConnection
from urllib3.connectionpool import HTTPSConnectionPool

from testbed.errors import LabError, NoAnswer

if TYPE_CHECKING:
    from testbed.roles.kubernetes.pki import Pair

HOST = "kubernetes"  # a name in the server's certificate
Object = dict[str, Any]


class Refused(LabError):
    """The API server refused a request; ``code`` is the HTTP status."""

    def __init__(self, code: int, words: str) -> None:
        super().__init__(words, hint="the object is unchanged")
        self.code = code


class Unanswered(NoAnswer):
    """The API server did not answer, or its answer was invalid."""

    def __init__(self, asked: str, why: object) -> None:
        super().__init__(
            f"the API server does not answer {asked}: {why}",
            hint="`testbed status LAB` shows the lab, `testbed up -l LAB` restarts it",
        )


class _Connection(HTTPSConnection):
    path = ""

    def _new_conn(self) -> socket.socket:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            made.settimeout(self.timeout)
            made.connect(self.path)
        except OSError as error:
            made.close()
            raise urllib3.exceptions.NewConnectionError(self, str(error)) from error
        return made


class _Pool(HTTPSConnectionPool):
    ConnectionCls = _Connection


class Api:
    """A client with all rights.

    ``path`` is the path of the socket on this machine.
    """

    def __init__(self, path: str, authority: bytes, client: Pair) -> None:
        class Connection(_Connection):
            pass

        Connection.path = path
        self._pool = _Pool(
            HOST, 6443, maxsize=8, block=False, ssl_context=_trust(authority, client)
        )
        self._pool.ConnectionCls = Connection

    def ask(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        *,
        kind: str = "application/json",
        timeout: float = 10.0,
    ) -> Object:
        """Send a request and return the server's answer.

        Raises Refused if the server refuses, Unanswered if it does not answer.
        """
        asked = f"{method} {path}"
        try:
            answer = self._pool.request(
                method,
                path,
                body=None if body is None else json.dumps(body).encode(),
                headers={"Content-Type": kind, "Accept": "application/json"},
                timeout=timeout,
                retries=False,
            )
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Unanswered(asked, error) from error
        if answer.status >= 400:
            raise Refused(answer.status, _words(answer.data, asked))
        try:
            said = json.loads(answer.data)
        except (ValueError, RecursionError) as error:
            raise Unanswered(asked, error) from error
        if not isinstance(said, dict):
            raise Unanswered(asked, f"not an object but {type(said).__name__}")
        return said

    def ready(self) -> bool:
        """Tell whether the server reports to be ready.

        See kubernetes.io, "API health endpoints".
        """
        try:
            answer = self._pool.request("GET", "/readyz", timeout=2.0, retries=False)
        except (urllib3.exceptions.HTTPError, OSError):
            return False
        return answer.status == 200

    def create(self, path: str, body: Object) -> bool:
        """Create an object; return False if one of that name exists."""
        try:
            self.ask("POST", path, body)
        except Refused as error:
            if error.code != 409:  # Conflict: AlreadyExists
                raise
            return False
        return True

    def find(self, path: str) -> Object | None:
        """Return an object, or None if it does not exist."""
        try:
            return self.ask("GET", path)
        except Refused as error:
            if error.code != 404:
                raise
            return None


def _trust(authority: bytes, client: Pair) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=authority.decode())
    # The library reads key pairs only from files. This file is in memory, not on a disk.
    descriptor = os.memfd_create("client", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, client.certificate + client.key)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
    return context


def _words(data: bytes, asked: str) -> str:
    """Return the message of a Status object.

    Return the text itself if it is not one.
    """
    try:
        said = json.loads(data)["message"]
    except (ValueError, KeyError, TypeError):
        said = data.decode(errors="replace").strip()
    return f"the API server rejected {asked}: {said}"
