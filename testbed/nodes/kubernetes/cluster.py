"""Requests to a cluster's API, and commands in Pods.

Kubeconfig files are read, and requests are signed, by the Kubernetes client
(``pip install 'container-testbed[kubernetes]'``).  Objects are the JSON of the API.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode, urlsplit

from testbed.errors import LabError, MachineError, NoAnswer

if TYPE_CHECKING:
    from testbed.nodes.kubernetes.channel import ExecChannel

OLDEST = 37  #: of the client; earlier ones cut output, hang, or lose the exit status of a command
CONNECT, ANSWER = 5.0, 30.0  # timeouts in seconds
LATE = 10.0  # seconds after the end of a stream in which the server must have ended it
READ = 64 * 1024
PATIENCE = 30.0  # seconds for an API server that restarts
PAUSE = 0.5  # seconds between two attempts
BUSY = {
    HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
}  # fmt: skip
INSTALL = "pip install 'container-testbed[kubernetes]'"
MERGE = "application/merge-patch+json"  # RFC 7396
#: What to do about a refusal, by the status of HTTP.
HINTS: dict[int, str] = {
    HTTPStatus.UNAUTHORIZED: "log in to the cluster again, or renew the kubeconfig; "
    "`kubectl auth whoami` tries it",
    HTTPStatus.FORBIDDEN: "`kubectl auth can-i --list` shows your rights",
}


class Refused(LabError):
    """The API server refuses a request: ``status`` is that of HTTP, ``reason`` the API's word."""

    def __init__(self, what: str, status: int, answer: Mapping[str, Any]) -> None:
        self.status = status
        self.reason = str(answer.get("reason") or "")
        self.words = str(answer.get("message") or f"HTTP status {status}")
        super().__init__(f"the cluster refuses to {what}: {self.words}", hint=HINTS.get(status))


class Cluster:
    """One cluster, by a context of a kubeconfig.

    ``kubeconfig`` is the path of a file, or several as in ``$KUBECONFIG``; empty for the default
    file.  ``context`` is the name of a context in it; empty for the current one.  The file is read
    at the first request.  ``patience`` is the time in seconds for which a server that does not
    answer is asked again.
    """

    def __init__(self, kubeconfig: str, context: str, *, patience: float = PATIENCE) -> None:
        self.kubeconfig = kubeconfig
        self.context = context
        self._patience = patience
        self._client: Any = None
        self._pid = 0  # of the process that made the client
        self._silent = False  # it has not answered, and is not waited for a second time
        self._user = ""
        self._date = (0.0, 0.0)  # Unix seconds by its clock, and when that was by ours

    @property
    def words(self) -> str:
        """The cluster in words, for messages."""
        named = self.context or "the current context"
        return f"{named} of {self.kubeconfig or '~/.kube/config'}"

    def client(self) -> Any:
        """Return the API client.  Raises MachineError without one, or without the context."""
        # A forked child would send its requests on the connections of the parent.
        if self._client is None or self._pid != os.getpid():
            try:
                import kubernetes
                from kubernetes import client, config
            except ImportError as error:
                raise MachineError(
                    "the provider kubernetes needs the Kubernetes client for Python",
                    missing=["kubernetes"],
                    hint=INSTALL,
                ) from error
            if int(kubernetes.__version__.partition(".")[0]) < OLDEST:
                raise MachineError(
                    f"the Kubernetes client for Python is version {kubernetes.__version__}, older "
                    f"than {OLDEST}",
                    missing=["kubernetes"],
                    hint=f"{INSTALL} --upgrade",
                )
            settings = client.Configuration()
            settings.retries = False  # as is done here: urllib3 would wait four times as long
            with self._readable():
                self._client = config.new_client_from_config(
                    config_file=self.kubeconfig or None,
                    context=self.context or None,
                    persist_config=False,
                    client_configuration=settings,
                )
            self._pid = os.getpid()
        return self._client

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        """Raise MachineError for what the client raises for a kubeconfig that it cannot use."""
        from kubernetes.config import ConfigException
        from yaml import YAMLError

        wrong = (YAMLError, OSError, ValueError, TypeError, LookupError, AttributeError)
        try:
            yield
        except (ConfigException, *wrong) as error:
            raise MachineError(
                f"{self.words} names no cluster that can be used: {error}",
                missing=["kubeconfig"],
                hint="set KUBECONFIG to a kubeconfig file; `kubectl config get-contexts` lists its "
                "contexts",
            ) from error

    def current(self) -> str:
        """Return the name of the context, also if the kubeconfig chooses it."""
        self.client()
        from kubernetes import config

        if self.context:
            return self.context
        with self._readable():
            _, active = config.list_kube_config_contexts(config_file=self.kubeconfig or None)
            return str(active["name"])

    @property
    def server(self) -> str:
        """The URL of the API server."""
        return str(self.client().configuration.host)

    # -- requests -------------------------------------------------------------

    def ask(
        self,
        what: str,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        query: Mapping[str, str] | None = None,
        kind: str = "application/json",
        missing: bool = False,
    ) -> dict[str, Any]:
        """Send a request and return the object of the answer.

        ``what`` says in words what is asked for: "create a Pod".  An object that is not there is
        an empty one with ``missing``.  A server that does not answer, or is busy, is asked again
        until the patience with it is at an end.  Raises Refused, NoAnswer, MachineError.
        """
        deadline = self._deadline()
        attempt = 0
        while True:
            attempt += 1
            status, answer, words = self._try(method, path, body, query, kind)
            if status and status not in BUSY:
                break
            if time.monotonic() > deadline:
                raise self.no_answer(words)
            time.sleep(PAUSE)
        self._silent = False
        if status < HTTPStatus.BAD_REQUEST:
            return answer
        if missing and status == HTTPStatus.NOT_FOUND:
            return {}
        if method == "POST" and status == HTTPStatus.CONFLICT and attempt > 1 and body:
            # An attempt whose answer was lost has created it: names are used once.
            name = body["metadata"]["name"]
            return self.ask(what, "GET", f"{path}/{name}")
        raise Refused(what, status, answer)

    def _deadline(self) -> float:
        return time.monotonic() + (0 if self._silent else self._patience)

    def no_answer(self, words: str) -> NoAnswer:
        """Return the error for an API server that does not answer."""
        self._silent = True
        return NoAnswer(
            f"the cluster of {self.words} does not answer: {words}",
            daemon="kube-apiserver",
            node=urlsplit(self.server).netloc,
            reason=words,
            hint="`kubectl get --raw /readyz` asks it, with the same KUBECONFIG and context",
        )

    def _try(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        query: Mapping[str, str] | None,
        kind: str,
    ) -> tuple[int, dict[str, Any], str]:
        """Send a request once; return its status (0 without an answer), the answer, and why."""
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        try:
            sent = self._send(method, path, query, body, kind=kind)
            text = sent.read()
        except MachineError:  # of credentials; it is an OSError, too
            raise
        except ApiException as error:
            return int(error.status or 0), _object(error.body), str(error.reason)
        except (HTTPError, OSError) as error:
            return 0, {}, str(error)
        with contextlib.suppress(TypeError, ValueError):
            date = parsedate_to_datetime(sent.headers.get("Date"))  # RFC 9110, section 6.6.1
            self._date = (date.timestamp(), time.monotonic())
        answer = _object(text)
        return int(sent.status), answer, str(answer.get("message") or f"status {sent.status}")

    def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Mapping[str, Any] | None = None,
        *,
        kind: str = "application/json",
        silence: float = ANSWER,
    ) -> Any:
        """Send a request, and return the answer when it begins.

        ``silence`` is the time in seconds without data after which the connection is lost.
        """
        url = self.server + path + (f"?{urlencode(query)}" if query else "")
        headers = {**self._headers(), "Accept": "application/json", "Content-Type": kind}
        return self.client().call_api(
            method, url, headers, body, _request_timeout=(CONNECT, silence)
        )

    def stream(
        self, what: str, path: str, query: Mapping[str, str], seconds: float
    ) -> Iterator[dict[str, Any]]:
        """Yield the objects of an answer that comes one by one, each in a line, until its end.

        ``seconds`` is the time after which the server ends it.  Raises Refused, ConnectionError if
        the server does not answer, is busy, or the answer is cut, and MachineError.
        """
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        try:
            sent = self._send("GET", path, query, silence=seconds + LATE)
        except MachineError:
            raise
        except (ApiException, HTTPError, OSError) as error:
            raise ConnectionError(str(error)) from error
        with contextlib.closing(sent.response) as answer:
            try:
                if sent.status in BUSY:
                    raise ConnectionError(f"status {sent.status}")
                if sent.status >= HTTPStatus.BAD_REQUEST:
                    raise Refused(what, sent.status, _object(sent.read()))
                yield from map(_object, _lines(answer.stream(READ)))
            except (HTTPError, OSError) as error:
                raise ConnectionError(str(error)) from error

    def _headers(self) -> dict[str, str]:
        headers: dict[str, str] = {}
        client = self.client()
        with self._readable():  # it gets a new token for one that has expired
            client.update_params_for_auth(headers, [], ["BearerToken"], "", "", None)
        return headers

    def items(self, what: str, path: str, labels: Mapping[str, str]) -> list[dict[str, Any]]:
        """Return the objects of a list that have these labels."""
        found = self.ask(what, "GET", path, query={"labelSelector": chosen(labels)})
        return list(found.get("items") or ())

    def now(self) -> float:
        """Return the Unix time by the clock of the API server, which has answered before."""
        then, heard = self._date
        return then + time.monotonic() - heard

    def user(self) -> str:
        """Return the name by which the cluster knows this user (SelfSubjectReview)."""
        if not self._user:
            body = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
            path = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
            found = self.ask("tell who you are", "POST", path, body)
            self._user = str(found["status"]["userInfo"].get("username") or "")
        return self._user

    # -- commands -------------------------------------------------------------

    def exec(self, namespace: str, pod: str, container: str, argv: Sequence[str]) -> ExecChannel:
        """Start a program in a container and return its stream.

        A server that does not answer, or is busy, is asked again as in :meth:`ask`.  Raises
        Refused, NoAnswer, MachineError.
        """
        import websocket
        from kubernetes.stream import ws_client

        from testbed.nodes.kubernetes.channel import ExecChannel

        query = [("command", word) for word in argv]
        query += [("container", container), ("stdin", "true"), ("stdout", "true")]
        query += [("stderr", "true"), ("tty", "false")]
        place = f"/api/v1/namespaces/{quote(namespace)}/pods/{quote(pod)}/exec"
        url = ws_client.get_websocket_url(self.server + place, query)
        websocket.setdefaulttimeout(ANSWER)  # the client sets none, and could wait for ever
        deadline = self._deadline()
        while True:
            headers = {name.lower(): value for name, value in self._headers().items()}
            try:
                opened = ws_client.create_websocket(self.client().configuration, url, headers)
            except websocket.WebSocketBadStatusException as error:
                if error.status_code not in BUSY:
                    answer = _object(error.resp_body)
                    status = int(error.status_code)
                    raise Refused(f"run a program in {pod}", status, answer) from error
                failed: Exception = error
            except (websocket.WebSocketException, OSError) as error:
                failed = error
            else:
                self._silent = False
                return ExecChannel(opened)
            if time.monotonic() > deadline:
                raise self.no_answer(str(failed)) from failed
            time.sleep(PAUSE)


def chosen(labels: Mapping[str, str]) -> str:
    """Return the label selector for objects that have these labels."""
    return ",".join(f"{name}={value}" for name, value in labels.items())


def _lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines of a text that comes in pieces; not a last one that is cut."""
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines


def _object(text: object) -> dict[str, Any]:
    """Return the JSON object of an answer; its words as ``message`` if it is none."""
    words = text.decode(errors="replace") if isinstance(text, bytes) else str(text or "")
    try:
        found = json.loads(words)
    except ValueError:
        return {"message": words.strip()[:500]} if words.strip() else {}
    return found if isinstance(found, dict) else {"message": words[:500]}
