"""Features of this machine's kernel, each tried in temporary namespaces."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

from testbed.errors import CommandError, TimeoutExpired
from testbed.process import run
from testbed.requirement import LABS, requirement

if TYPE_CHECKING:
    from testbed.artifacts.source import Runner
    from testbed.requirement import Requirement

NOT_FOUND = 127  # a shell's exit status for a missing command
TOOL_FIRST = "install the tool first"  # the tool's own requirement has the command


@dataclass(frozen=True, slots=True)
class Feature:
    """A kernel feature, with the command that tries it, and its users."""

    name: str
    try_it: str  #: shell command, run in temporary namespaces; exit status 0 means available
    option: str  #: the kernel's build option, or another possible cause
    needed_by: tuple[str, ...] = LABS


NEEDED = (
    Feature("mount namespace", "unshare --mount true", "CONFIG_NAMESPACES"),
    Feature("net namespace", "unshare --net true", "CONFIG_NET_NS"),
    Feature("pid namespace", "unshare --pid --fork true", "CONFIG_PID_NS"),
    Feature("uts namespace", "unshare --uts true", "CONFIG_UTS_NS"),
    Feature("ipc namespace", "unshare --ipc true", "CONFIG_IPC_NS"),
    Feature("cgroup namespace", "unshare --cgroup true", "CONFIG_CGROUPS"),
    Feature("veth", "ip link add t0 type veth peer name t1", "CONFIG_VETH"),
    Feature("bridge", "ip link add t2 type bridge", "CONFIG_BRIDGE"),
    Feature(
        "forwarding",
        "echo 1 > /proc/sys/net/ipv4/ip_forward",
        "/proc/sys must be writable",
    ),
    Feature("overlay", "overlay", "CONFIG_OVERLAY_FS", ("docker",)),
    Feature("iptables variant", "iptables --version", "the package iptables", ("docker",)),
    Feature(
        "iptables nat",
        "iptables -w -t nat -A POSTROUTING -j MASQUERADE",
        "CONFIG_NF_NAT and CONFIG_NETFILTER_XT_TARGET_MASQUERADE",
        ("docker", "flannel"),
    ),
    Feature(
        "iptables conntrack",
        "iptables -w -A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT",
        "CONFIG_NETFILTER_XT_MATCH_CONNTRACK",
        ("docker",),
    ),
    Feature(
        "iptables addrtype",
        "iptables -w -t nat -A PREROUTING -m addrtype --dst-type LOCAL",
        "CONFIG_NETFILTER_XT_MATCH_ADDRTYPE",
        ("docker",),
    ),
)
WANTED = (
    Feature("nf_tables", "nft add table ip t", "CONFIG_NF_TABLES", ("nftables rules",)),
    Feature(
        "iptables-legacy",
        "iptables-legacy -w -t nat -S",
        "CONFIG_IP_NF_IPTABLES_LEGACY and CONFIG_IP_NF_NAT",
        ("docker with firewall iptables-legacy",),
    ),
    Feature(
        "br_netfilter",
        "test -e /proc/sys/net/bridge/bridge-nf-call-iptables || modprobe -n -q br_netfilter",
        "CONFIG_BRIDGE_NETFILTER",
        ("docker with --icc=false", "kubernetes"),
    ),
    Feature(
        "vxlan",
        "ip link add t3 type vxlan id 1 dstport 8472 local 127.0.0.1",
        "CONFIG_VXLAN",
        ("flannel vxlan", "cilium"),
    ),
    Feature(
        "ipset",
        'iptables -w -A FORWARD -m set --match-set t7 src 2>&1 | grep -q "t7 doesn.t exist"',
        "CONFIG_IP_SET_HASH_IP, CONFIG_IP_SET_HASH_NET and CONFIG_NETFILTER_XT_SET",
        ("calico", "kube-router", "weave"),
    ),
    Feature("dummy", "ip link add t8 type dummy", "CONFIG_DUMMY", ("weave",)),
    Feature("tun", "ip tuntap add dev t4 mode tun", "CONFIG_TUN", ("flannel udp",)),
    Feature(
        "macvlan",
        "ip link add t5 link t0 type macvlan mode bridge",
        "CONFIG_MACVLAN",
        ("macvlan networks",),
    ),
    Feature(
        "ipvlan",
        "ip link add t6 link t1 type ipvlan mode l2",
        "CONFIG_IPVLAN",
        ("ipvlan networks",),
    ),
    Feature(
        "netem",
        "tc qdisc add dev t0 root netem delay 1ms",
        "CONFIG_NET_SCH_NETEM",
        ("delay and loss on links",),
    ),
    Feature(
        "TRACE",
        "iptables -w -t raw -A PREROUTING -j TRACE",
        "CONFIG_NETFILTER_XT_TARGET_TRACE",
        ("packet walks",),
    ),
)

# A tmpfs on /run, since iptables' lock there is the host's. Another for overlay, which not all file
# systems support.
# Arguments: a folder, then pairs of a feature's name and its command.
SCRIPT = """
mount -n -t tmpfs testbed /run && mount -n -t tmpfs testbed "$1" || exit
cd "$1" || exit 99
overlay() {
    mkdir l u w m && mount -n -t overlay testbed -o lowerdir=l,upperdir=u,workdir=w m
}
shift
while test $# -gt 0; do
    said=$(eval "$2" 2>&1)
    printf '%s\\t%s\\t%s\\n' "$1" "$?" "$(echo "$said" | tail -n 1)"
    shift 2
done
"""


def features(runner: Runner = run) -> list[Requirement]:
    """Try every kernel feature that labs use, each in temporary namespaces."""
    tries = [word for item in NEEDED + WANTED for word in (item.name, item.try_it)]
    unshare = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if os.geteuid() != 0:
        unshare += ["--user", "--map-root-user"]
    env = {**os.environ, "LC_ALL": "C"}
    env["PATH"] = f"{env.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"
    with tempfile.TemporaryDirectory(prefix="testbed-doctor-") as folder:
        try:
            answer = runner(
                [*unshare, "sh", "-c", SCRIPT, "sh", folder, *tries],
                env=env, timeout=30, check=False,
            )  # fmt: skip
        except (CommandError, TimeoutExpired) as error:
            code = error.status if isinstance(error, CommandError) else 1
            return [_no_namespaces(str(error).splitlines()[-1].strip(), code)]
    seen = {}
    for line in answer.stdout.splitlines():
        name, status, said = [*line.split("\t"), "", ""][:3]
        seen[name] = (status, said)
    if not seen:
        said = (answer.stderr.strip().splitlines() or ["no answer"])[-1]
        return [_no_namespaces(said, answer.status)]
    return [_feature(item, *seen.get(item.name, ("1", "not tried"))) for item in NEEDED + WANTED]


def _no_namespaces(said: str, status: int) -> Requirement:
    if status == NOT_FOUND:
        return requirement("namespaces", f"not tried: {said}", ok=False, fix=TOOL_FIRST)
    return requirement(
        "namespaces",
        f"cannot create namespaces: {said}",
        ok=False,
        fix="run it as root; inside a container, give the container all capabilities",
    )


def _feature(item: Feature, status: str, said: str) -> Requirement:
    ok = status == "0"
    detail, fix = said or "works", item.option
    if status == str(NOT_FOUND):
        detail, fix = f"not tried: {said}", TOOL_FIRST
    elif not ok:
        detail = f"failed: {said}"
        if item.option.startswith("CONFIG_"):
            fix = f"a kernel with {item.option}, built in or as a module"
    return requirement(item.name, detail, item.needed_by, ok=ok, fix=fix, required=item in NEEDED)
