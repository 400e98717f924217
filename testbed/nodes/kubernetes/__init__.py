"""Nodes that are Pods of an existing Kubernetes cluster."""

from testbed.nodes.base import ProviderOption

#: Labels of all that belongs to a lab, and of the Pods that are its nodes.
LAB, NODE, OWNER, VERSION = "testbed.lab", "testbed.node", "testbed.owner", "testbed.version"
#: Annotations.
DIGEST = "testbed.digest"  #: of a node's settings
BEAT = "testbed.beat"  #: a number that changes while the lab is in use
IDLE = "testbed.keep-alive"  #: the seconds without a change after which the lab is removed
#: Environment variable with the name of a context; empty for the current one.
CONTEXT = "TESTBED_KUBE_CONTEXT"
#: Options of ``up``.
IMAGE = ProviderOption(
    "image",
    "TESTBED_KUBE_IMAGE",
    "NAME",
    "Image of the Pods of a new lab on a Kubernetes cluster: see `testbed image push`. Default: "
    "testbed/node:1.",
)
KEEP_ALIVE = ProviderOption(
    "keep-alive",
    "TESTBED_KUBE_KEEP_ALIVE",
    "TIME",
    "Time without use after which a Kubernetes cluster removes a new lab: 8h, 90m. Default: 1h.",
)
CONTAINER = "node"  #: name of the container in each Pod
FOLDER = "/var/lib/testbed"  #: on a node
POD_NETWORK = f"{FOLDER}/pod-network"  #: on a privileged node: the Pod's network namespace
