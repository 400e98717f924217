"""Nodes that containerlab creates, in a cell with an engine of its own."""

FOLDER = "/var/lib/testbed/containerlab"  #: a folder of each topology, in the cell
READY = f"{FOLDER}/ready"  #: the cell's engine has been started
DIGEST, NAME = "testbed.digest", "testbed.node"  #: labels of a container that is a node
IMAGE = "testbed.image"  #: label of one whose image the topology names
