"""Kubernetes: a cluster of upstream's own programs."""

from testbed.roles.kubernetes.role import Kubernetes

__all__ = ["Kubernetes"]
