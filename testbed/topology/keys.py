"""Patterns, limits and defaults of the values in topology files.

The keys are declared with the parts of a topology (:mod:`testbed.topology.model`) and with the
sections of roles.
"""

from __future__ import annotations

from testbed.faults.model import KINDS

#: Most ports of a Linux bridge (net/bridge/br_private.h, BR_MAX_PORTS minus the unused 0).
PORTS_MAX = 1023

DEFAULT_PROVIDER = "netns"
DEFAULT_IMAGE = "nginx"
#: In bytes; with less, dockerd and etcd do not start.
MIN_MEMORY = 32 << 20
MIN_CONTAINER_MEMORY = 6 << 20  # Docker's least (moby, daemon/daemon_unix.go)
#: The kernel's smallest CPU quota is 1 ms, of a period of 100 ms (sched-bwc.rst).
MIN_CPUS = 0.01

LAB_MAX = 30
#: IFNAMSIZ is 16 with the final NUL, and bridges of the fabric are named br-NETWORK.
INTERFACE_MAX = 15
NODE_MAX = 12
NETWORK_MAX = 12
#: A DNS label is at most 63 octets long (RFC 1035, section 2.3.4).
LABEL_MAX = 63

#: A host name's label: letters, digits, hyphens inside (RFC 952, RFC 1123 section 2.1),
#: in lower case, because names are compared literally.
LABEL = r"[a-z0-9]([a-z0-9-]*[a-z0-9])?"
#: As above, with at least two characters: Docker's own names are [a-zA-Z0-9][a-zA-Z0-9_.-]+.
CONTAINER = r"[a-z0-9][a-z0-9-]*[a-z0-9]"
#: Stricter than the kernel's dev_valid_name(): no name that ip(8) would interpret differently.
INTERFACE = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
NAMESPACE = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
#: Debian Policy, 5.6.1.
PACKAGE = r"[a-z0-9][a-z0-9+.-]+"
VARIABLE = r"[A-Za-z_][A-Za-z0-9_]*"
ADDRESS = r"[0-9]{1,3}(\.[0-9]{1,3}){3}"
MAC = r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}"
#: Loose: IPv6Address() decides.
ADDRESS6 = r"[0-9A-Fa-f]{0,4}:[0-9A-Fa-f]{0,4}:[0-9A-Fa-f:]*(" + ADDRESS + r")?"
PREFIXED6 = ADDRESS6 + r"/[0-9]{1,3}"
#: Amounts of faults (testbed.faults.model), by kind.
AMOUNTS = {
    "rate": r"[0-9]{1,9}(\.[0-9]{1,3})?(bit|kbit|mbit|gbit)",
    "delay": r"[0-9]{1,9}(\.[0-9]{1,3})?(ms|s)( [0-9]{1,9}(\.[0-9]{1,3})?(ms|s))?",  # and jitter
    "loss": r"[0-9]{1,9}(\.[0-9]{1,3})?%",
}
#: A node and an interface, as containerlab writes an end of a link.
END = LABEL + r":[A-Za-z0-9_][A-Za-z0-9_.-]*"
PREFIXED = ADDRESS + r"/[0-9]{1,2}"
MTU_MIN6 = 1280  #: below it, a link has no IPv6 (RFC 8200, section 5)
PORTS = r"[0-9]{1,5}(-[0-9]{1,5})?"
PUBLISH = (
    r"(" + ADDRESS + r":|\[" + ADDRESS6 + r"\]:)?" + PORTS + r":" + PORTS + r"(/(tcp|udp|sctp))?"
)
#: Docker and Compose write small letters, and a B after them.
MEMORY = r"[0-9]{1,15}([KMGT]|[kmgt]b?)?"
NETWORK_MODE = r"bridge|host|none|container:" + CONTAINER
#: Docker's names; those of volumes have two characters (moby, daemon/names: RestrictedNameChars).
DOCKER_NAME = r"[a-zA-Z0-9][a-zA-Z0-9_.-]*"
VOLUME_NAME = r"[a-zA-Z0-9][a-zA-Z0-9_.-]+"
#: A volume by name, or a path of the node; its place in the container; options.
VOLUME = (
    r"(" + VOLUME_NAME + r"|/[^:\x00\n]*):/[^:\x00\n]+"
    r"(:(ro|rw|nocopy|r?shared|r?slave|r?private)(,(ro|rw|nocopy|r?shared|r?slave|r?private))*)?"
)
TMPFS = r"/[^:\x00\n]+(:[a-z]+(=[a-z0-9]+)?(,[a-z]+(=[a-z0-9]+)?)*)?"
DEVICE = r"/dev/[^:\x00\n]+(:/[^:\x00\n]+(:[rwm]{1,3})?)?"
#: user(:group), by name or number.
USER = r"[A-Za-z0-9_][A-Za-z0-9_.-]*(:[A-Za-z0-9_][A-Za-z0-9_.-]*)?"
RESTART = r"no|always|unless-stopped|on-failure(:[1-9][0-9]{0,4})?"
HOST_NAME = r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*"
EXTRA_HOST = HOST_NAME + r":(host-gateway|" + ADDRESS + r"|" + ADDRESS6 + r")"
STOP_SIGNAL = r"(SIG)?[A-Z][A-Z0-9]+([+-][0-9]{1,2})?|[0-9]{1,2}"
#: [registry[:port]/]path[:tag][@digest], by the grammar of the distribution project.
IMAGE = (
    r"([A-Za-z0-9][A-Za-z0-9.-]*(:[0-9]+)?/)?"
    r"[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*"
    r"(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?"
    r"(@sha256:[0-9a-f]{64})?"
)
IMAGE_MAX = 255
#: A duration as Compose writes one: 500ms, 2.5s, 1m30s (compose-spec, 11-extension.md).
DURATION = r"([0-9]{1,6}(\.[0-9]{1,3})?(ms|s|m|h))+"
DURATION_MAX = 24 * 3600.0  # seconds; longer than the start of any lab
#: Settings of namespaces that a container has for itself (runc, libcontainer/configs/validate).
SYSCTL = (
    r"net\.[A-Za-z0-9_./-]+|fs\.mqueue\.[a-z_]+|"
    r"kernel\.(msgmax|msgmnb|msgmni|sem|shmall|shmmax|shmmni|shm_rmid_forced|domainname)"
)
OPTION = r"[A-Za-z0-9][A-Za-z0-9_./-]*"
EXPECT = r"running|exit [0-9]{1,3}"
PORT = r"[0-9]{1,5}(/(tcp|udp))?"
#: First words of a health check's test; without one of them the test is a shell command.
TESTS = ("CMD", "CMD-SHELL", "NONE")
READY_SECONDS = 60.0
#: A fault's kind, target and amount: testbed.faults.model defines the arguments of each kind.
FAULT = r"(" + "|".join(KINDS) + r")( [^ ]+){1,3}"
#: Beginning of keys that are ignored, as in Compose (compose-spec, 11-extension.md).
EXTENSION = "x-"
