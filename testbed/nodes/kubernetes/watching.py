"""Changes of the objects of a list, by a watch of the API.

A list tells its version, and a watch the changes since a version (Kubernetes documentation,
"Kubernetes API Concepts", "Efficient detection of changes").  A server ends each watch after a
while, may have forgotten a version (410 Gone), or may be gone without a word: then there is a next
watch, or a list.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from testbed.nodes.kubernetes.cluster import Refused, chosen

if TYPE_CHECKING:
    from testbed.nodes.kubernetes.cluster import Cluster

TICK = 5  # seconds that one watch lasts, so that whoever waits can look at the time
PAUSE = 0.1  # seconds from the begin of one request to that of the next
EACH = 0.002  # seconds more for each object, if objects can only be listed
#: An object's UID, and the object, or None if it is gone.
Change = tuple[str, dict[str, Any] | None]
#: Who may list may still not watch.
NO_WATCH = (HTTPStatus.FORBIDDEN, HTTPStatus.METHOD_NOT_ALLOWED)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Objects to look at: those of a list that have these labels.

    ``what`` says in words what is asked for: "list Pods".
    """

    cluster: Cluster
    what: str
    path: str
    labels: Mapping[str, str]

    def listed(self) -> tuple[dict[str, dict[str, Any]], str]:
        """Return the objects by UID, and the version of the list.

        Raises as :meth:`Cluster.ask`.
        """
        query = {"labelSelector": chosen(self.labels)}
        found = self.cluster.ask(self.what, "GET", self.path, query=query)
        there = {item["metadata"]["uid"]: item for item in found.get("items") or ()}
        return there, str((found.get("metadata") or {}).get("resourceVersion", ""))

    def events(self, version: str, seconds: int) -> Iterator[dict[str, Any]]:
        """Yield the events since a version for a time.  Raises as :meth:`Cluster.stream`."""
        query = {
            "labelSelector": chosen(self.labels),
            "watch": "1",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(seconds),
        }
        return self.cluster.stream(self.what, self.path, query, seconds)


def changes(wanted: Wanted, seconds: float) -> Iterator[Change | None]:
    """Yield the objects, and then their changes, for a time.

    None is yielded when all objects that are there have been told, and from then on at least every
    few seconds.  Raises Refused, NoAnswer, MachineError.
    """
    end = time.monotonic() + seconds
    known: set[str] = set()
    version = ""
    while True:
        began = time.monotonic()
        if not version:
            there, version = wanted.listed()
            yield from ((uid, None) for uid in known - there.keys())
            yield from there.items()
            known = {*there}
            yield None
        left = end - time.monotonic()
        if left <= 0:
            return
        version = yield from _watched(wanted, version, known, left)
        yield None
        time.sleep(max(0.0, began + PAUSE - time.monotonic()))


def _watched(
    wanted: Wanted, version: str, known: set[str], seconds: float
) -> Generator[Change, None, str]:
    """Yield the changes that one watch tells; return the version at its end.

    The version is empty if there must be a list.  ``known`` has the UIDs of objects that are there.
    """
    try:
        for event in wanted.events(version, max(1, min(TICK, math.ceil(seconds)))):
            if event.get("type") == "ERROR":  # such as 410, a version that is too old
                return ""
            item = event["object"]
            version = item["metadata"]["resourceVersion"]
            if event["type"] == "BOOKMARK":  # it tells a version alone
                continue
            uid = item["metadata"]["uid"]
            if event["type"] == "DELETED":
                known.discard(uid)
                yield uid, None
            else:
                known.add(uid)
                yield uid, item
    except Refused as error:
        if error.status in NO_WATCH:
            time.sleep(min(seconds, PAUSE + EACH * len(known)))
        elif error.status != HTTPStatus.GONE:
            raise
        return ""
    except ConnectionError:
        return ""
    return version
