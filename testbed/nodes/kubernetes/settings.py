"""The user's settings for labs in clusters, from environment variables."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from testbed.artifacts.node_image import NAME
from testbed.errors import UsageError
from testbed.nodes.kubernetes import CONTEXT
from testbed.nodes.kubernetes.manifests import Terms
from testbed.topology.keys import LABEL, LABEL_MAX

NAMESPACE, IMAGE = "TESTBED_KUBE_NAMESPACE", "TESTBED_KUBE_IMAGE"
KEEP_ALIVE = "TESTBED_KUBE_KEEP_ALIVE"
IDLE = "1h"
LONGEST = 24 * 3600  # seconds that a lab stays, however it is used, unless KEEP_ALIVE is longer
SHORTEST = 20  # seconds; between two signs of use of a command that runs lie a third of it
UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 24 * 3600}


@dataclass(frozen=True, slots=True)
class Settings:
    """The cluster, namespace and image for new labs.

    ``kubeconfig`` and ``context`` are empty for kubectl's own choice, ``namespace`` is empty for a
    new one for each lab.
    """

    kubeconfig: str
    context: str
    namespace: str
    image: str
    terms: Terms


def of(environment: Mapping[str, str] = os.environ) -> Settings:
    """Return the settings of this user.  Raises UsageError for a wrong time or namespace."""
    paths = environment.get("KUBECONFIG", "").split(os.pathsep)
    idle = seconds(environment.get(KEEP_ALIVE) or IDLE)
    name = environment.get(NAMESPACE, "")
    if name and (len(name) > LABEL_MAX or not re.fullmatch(LABEL, name)):
        raise UsageError(
            f"{name!r} is not the name of a namespace",
            where=NAMESPACE,
            hint="`kubectl get namespaces` lists them",
        )
    return Settings(
        # A command in another folder is to find the same file.
        os.pathsep.join(os.path.abspath(path) for path in paths if path),  # noqa: PTH100  (a list)
        environment.get(CONTEXT, ""),
        name,
        environment.get(IMAGE) or NAME,
        Terms(idle, max(LONGEST, idle)),
    )


def seconds(text: str) -> int:
    """Return a time such as 8h, 90m or 45s in seconds.

    >>> seconds("8h"), seconds("90")
    (28800, 90)
    """
    found = re.fullmatch(r"([0-9]{1,6})([smhd]?)", text.strip())
    if found is None or int(found[1]) * UNITS[found[2]] < SHORTEST:
        raise UsageError(
            f"{text!r} is not a time of {SHORTEST} s or more",
            where=KEEP_ALIVE,
            hint="for example 8h, 90m or 600s",
        )
    return int(found[1]) * UNITS[found[2]]
