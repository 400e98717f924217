"""Nodes that are Pods of an existing Kubernetes cluster."""

#: Labels of all that belongs to a lab, and of the Pods that are its nodes.
LAB, NODE, OWNER, VERSION = "testbed.lab", "testbed.node", "testbed.owner", "testbed.version"
#: Annotations.
DIGEST = "testbed.digest"  #: of a node's settings
BEAT = "testbed.beat"  #: a number that changes while the lab is in use
IDLE = "testbed.keep-alive"  #: the seconds without a change after which the lab is removed
#: Environment variable with the name of a context; empty for the current one.
CONTEXT = "TESTBED_KUBE_CONTEXT"
CONTAINER = "node"  #: name of the container in each Pod
FOLDER = "/var/lib/testbed"  #: on a node
POD_NETWORK = f"{FOLDER}/pod-network"  #: on a privileged node: the Pod's network namespace
