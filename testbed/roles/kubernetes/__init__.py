"""Kubernetes: a cluster with upstream's programs."""

from testbed.roles.kubernetes.role import Kubernetes

__all__ = ["Kubernetes"]
