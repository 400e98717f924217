"""Rights of a user of the API (kubernetes.io, "Using RBAC Authorization")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RBAC = "rbac.authorization.k8s.io"
FOLDER = f"/apis/{RBAC}/v1"


def rights(user: str, *rules: Mapping[str, Any]) -> tuple[tuple[str, dict[str, Any]], ...]:
    """Return a user's cluster role and its binding, each with its API path.

    Both have the name of the user.
    """
    kind = {"apiVersion": f"{RBAC}/v1", "metadata": {"name": user}}
    return (
        (f"{FOLDER}/clusterroles", {**kind, "kind": "ClusterRole", "rules": list(rules)}),
        (
            f"{FOLDER}/clusterrolebindings",
            {
                **kind,
                "kind": "ClusterRoleBinding",
                "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": user},
                "subjects": [{"kind": "User", "name": user}],
            },
        ),
    )
