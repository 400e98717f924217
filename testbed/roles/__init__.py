"""Roles put software on nodes through the nodes' own interface."""

from __future__ import annotations

from collections.abc import Mapping

from testbed.roles.base import Role
from testbed.roles.docker import Docker
from testbed.roles.etcd import Etcd
from testbed.roles.flannel import Flannel
from testbed.roles.kubernetes import Kubernetes
from testbed.roles.namespaces import Namespaces

ROLES: Mapping[str, Role] = {
    role.name: role for role in (Docker(), Etcd(), Flannel(), Kubernetes(), Namespaces())
}

__all__ = ["ROLES", "Role"]
