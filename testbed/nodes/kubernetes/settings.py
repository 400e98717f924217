"""The user's settings for labs in clusters, from environment variables and options of ``up``."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from testbed.artifacts.node_image import NAME
from testbed.errors import UsageError
from testbed.nodes.kubernetes import CONTEXT, IMAGE, KEEP_ALIVE
from testbed.nodes.kubernetes.manifests import Terms
from testbed.topology import keys

if TYPE_CHECKING:
    from testbed.nodes.base import ProviderOption

NAMESPACE = "TESTBED_KUBE_NAMESPACE"
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


def of(
    chosen: Mapping[str, str] | None = None, environment: Mapping[str, str] = os.environ
) -> Settings:
    """Return the settings of this user.

    ``chosen`` has options of ``up`` by their names; they precede the environment.  Raises
    UsageError for a wrong time, image or namespace.
    """
    paths = environment.get("KUBECONFIG", "").split(os.pathsep)
    idle = seconds(*_said(KEEP_ALIVE, IDLE, chosen or {}, environment))
    image = _image(*_said(IMAGE, NAME, chosen or {}, environment))
    name = environment.get(NAMESPACE, "")
    if name and (len(name) > keys.LABEL_MAX or not re.fullmatch(keys.LABEL, name)):
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
        image,
        Terms(idle, max(LONGEST, idle)),
    )


def _said(
    option: ProviderOption, default: str, chosen: Mapping[str, str], environment: Mapping[str, str]
) -> tuple[str, str]:
    """Return the value of an option, and the place where it was set."""
    if option.name in chosen:
        return chosen[option.name], f"--{option.name}"
    return environment.get(option.variable) or default, option.variable


def _image(name: str, where: str) -> str:
    if len(name) > keys.IMAGE_MAX or not re.fullmatch(keys.IMAGE, name):
        raise UsageError(
            f"{name!r} is not the name of an image",
            where=where,
            hint="for example registry.example:5000/node:1, in lower case but for the tag",
        )
    return name


def seconds(text: str, where: str = "") -> int:
    """Return a time such as 8h, 90m or 45s in seconds.  ``where`` is the place of a wrong one.

    >>> seconds("8h"), seconds("90")
    (28800, 90)
    """
    found = re.fullmatch(r"([0-9]{1,6})([smhd]?)", text.strip())
    if found is None or int(found[1]) * UNITS[found[2]] < SHORTEST:
        raise UsageError(
            f"{text!r} is not a time of {SHORTEST} s or more",
            where=where,
            hint="for example 8h, 90m or 600s",
        )
    return int(found[1]) * UNITS[found[2]]
