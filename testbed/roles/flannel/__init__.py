"""flannel: an overlay with one subnet per node, stored in etcd."""

from testbed.roles.flannel.role import Flannel

__all__ = ["Flannel"]
