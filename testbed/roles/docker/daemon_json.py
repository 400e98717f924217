"""Docker's daemon.json in a topology file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from testbed.topology.shapes import Data
from testbed.topology.tree import quote

if TYPE_CHECKING:
    from testbed.topology.read import Reader
    from testbed.topology.tree import Tree

#: Keys of daemon.json that testbed sets itself, each with what to do instead.
OWNED: Mapping[str, str] = {
    "bip": "write docker: {bip: ADDRESS/PREFIX}, or {bip: {NODE: ADDRESS/PREFIX}}",
    "containerd": "containerd is a service of the node; remove it",
    "containerd-namespace": "testbed finds containers under the default; remove it",
    "data-root": "each node has a /var/lib/docker of its own; remove it",
    "exec-root": "each node has a /run/docker of its own; remove it",
    "firewall-backend": "write docker: {firewall: nftables}",
    "graph": "each node has a /var/lib/docker of its own; remove it",
    "hosts": "the daemon listens on /run/docker.sock, where testbed and the clients of the node "
    "connect; remove it",
    "pidfile": "the node's pid 1 runs the daemon; remove it",
    "storage-driver": "images are prepared for overlay2; remove it",
}
#: Keys that the daemon reads again on SIGHUP (dockerd(8); moby, daemon/reload.go). A key that is
#: no longer in the file keeps its value until a restart.
RELOADABLE = frozenset({
    "debug", "insecure-registries", "labels", "live-restore", "max-concurrent-downloads",
    "max-concurrent-uploads", "max-download-attempts", "registry-mirrors", "shutdown-timeout",
})  # fmt: skip
#: Keys of daemon.json that people look for in the section itself, each with its place.
ELSEWHERE: Mapping[str, str] = {
    name: f"write it as in daemon.json: daemon: {{{name}: ...}}"
    for name in (
        "bridge", "debug", "default-address-pools", "dns", "experimental", "fixed-cidr",
        "fixed-cidr-v6", "icc", "insecure-registries", "ip", "ip-forward", "ip-masq", "ip6tables",
        "iptables", "ipv6", "labels", "live-restore", "log-driver", "log-level", "mtu",
        "registry-mirrors", "userland-proxy", "userns-remap",
    )
}  # fmt: skip
REMAP = "userns-remap"
DEFAULT_REMAPPED = "dockremap"  # the user for the value "default" (dockerd(8), --userns-remap)


class DaemonJson(Data):
    """The contents of daemon.json, without the keys that testbed sets."""

    def schema(self) -> dict[str, Any]:
        return super().schema() | {"propertyNames": {"not": {"enum": list(OWNED)}}}

    def read(self, read: Reader, at: Tree | None) -> dict[str, Any] | None:
        found = super().read(read, at)
        table = read.table(at)
        for name, entry in table.entries.items() if table else ():
            if name in OWNED:
                wanted = "a key of daemon.json that testbed does not set itself"
                read.problems.add(entry.key, wanted, quote(name), OWNED[name])
        store = (found or {}).get("features")
        if table and isinstance(store, Mapping) and store.get("containerd-snapshotter"):
            wanted = "images in Docker's own store: containerd-snapshotter false"
            hint = "images are prepared for overlay2; remove it"
            read.problems.add(table.entries["features"].value, wanted, "true", hint)
        return found


def remapped(config: Mapping[str, Any]) -> str:
    """Return the user whose subordinate IDs containers run with; empty without user namespaces.

    The value of ``userns-remap`` is ``default``, or USER or USER:GROUP (dockerd(8)).
    """
    user = str(config.get(REMAP) or "").partition(":")[0]
    return DEFAULT_REMAPPED if user == "default" else user
