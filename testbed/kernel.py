"""Features of this machine's kernel, each tried in temporary namespaces.

:data:`FEATURES` has those that several roles and providers use.  A role or a provider that needs
another one brings it with its trial (``trials``); each also declares what it needs (``kernel``).
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.errors import CommandError, TimeoutExpired
from testbed.process import run
from testbed.registry import PROVIDERS, ROLES
from testbed.requirement import LABS, Feature, requirement

if TYPE_CHECKING:
    from testbed.artifacts.source import Runner
    from testbed.requirement import Requirement

CAP_SYS_RESOURCE = 24  # number of the capability, see capabilities(7)
NOT_FOUND = 127  # a shell's exit status for a missing command
TOOL_FIRST = "install the tool first"  # the tool's own requirement has the command


FEATURES = (
    Feature("mount namespace", "unshare --mount true", "CONFIG_NAMESPACES", LABS),
    Feature("net namespace", "unshare --net true", "CONFIG_NET_NS", LABS),
    Feature("pid namespace", "unshare --pid --fork true", "CONFIG_PID_NS", LABS),
    Feature("uts namespace", "unshare --uts true", "CONFIG_UTS_NS", LABS),
    Feature("ipc namespace", "unshare --ipc true", "CONFIG_IPC_NS", LABS),
    Feature("cgroup namespace", "unshare --cgroup true", "CONFIG_CGROUPS", LABS),
    Feature("veth", "ip link add t0 type veth peer name t1", "CONFIG_VETH", LABS),
    Feature("bridge", "ip link add t2 type bridge", "CONFIG_BRIDGE", LABS),
    Feature(
        "forwarding",
        "echo 1 > /proc/sys/net/ipv4/ip_forward",
        "/proc/sys must be writable",
        LABS,
    ),
    Feature("overlay", "overlay", "CONFIG_OVERLAY_FS"),
    Feature("iptables variant", "iptables --version", "the package iptables"),
    Feature(
        "iptables nat",
        "iptables -w -t nat -A POSTROUTING -j MASQUERADE",
        "CONFIG_NF_NAT and CONFIG_NETFILTER_XT_TARGET_MASQUERADE",
    ),
    Feature(
        "iptables conntrack",
        "iptables -w -A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT",
        "CONFIG_NETFILTER_XT_MATCH_CONNTRACK",
    ),
    Feature(
        "iptables addrtype",
        "iptables -w -t nat -A PREROUTING -m addrtype --dst-type LOCAL",
        "CONFIG_NETFILTER_XT_MATCH_ADDRTYPE",
    ),
    Feature("nf_tables", "nft add table ip t", "CONFIG_NF_TABLES"),
    Feature(
        "iptables-legacy",
        "iptables-legacy -w -t nat -S",
        "CONFIG_IP_NF_IPTABLES_LEGACY and CONFIG_IP_NF_NAT",
    ),
    Feature(
        "br_netfilter",
        "test -e /proc/sys/net/bridge/bridge-nf-call-iptables || modprobe -n -q br_netfilter",
        "CONFIG_BRIDGE_NETFILTER",
    ),
    Feature(
        "vxlan",
        "ip link add t3 type vxlan id 1 dstport 8472 local 127.0.0.1",
        "CONFIG_VXLAN",
    ),
    Feature("tun", "ip tuntap add dev t4 mode tun", "CONFIG_TUN"),
    Feature(
        "tbf",
        "tc qdisc add dev t0 root tbf rate 1mbit burst 32kb latency 50ms",
        "CONFIG_NET_SCH_TBF",
        ("rate of networks and nodes",),
    ),
    Feature(
        "netem",
        "tc qdisc add dev t0 root netem delay 1ms",
        "CONFIG_NET_SCH_NETEM",
        ("delay and loss on links",),
    ),
    Feature(
        "bridge vlan",
        "ip link add t5 type bridge vlan_filtering 1 && bridge vlan add dev t5 vid 10 self",
        "CONFIG_BRIDGE_VLAN_FILTERING (and CONFIG_VLAN_8021Q)",
        ("VLANs of ports",),
    ),
    Feature(
        "nft nat",
        "nft add table ip t && nft add chain ip t c { type nat hook postrouting priority 100 \\; } "
        "&& nft add rule ip t c masquerade",
        "CONFIG_NFT_NAT and CONFIG_NFT_MASQ",
        ("uplinks of networks",),
    ),
    Feature(
        "TRACE",
        "iptables -w -t raw -A PREROUTING -j TRACE",
        "CONFIG_NETFILTER_XT_TARGET_TRACE",
        ("packet walks",),
    ),
)
EVERY_LAB = tuple(item.name for item in FEATURES if item.needed_by == LABS)

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


def known() -> list[Feature]:
    """Return all features with a trial: ours, and those of installed roles and providers."""
    brought = [
        *(item for role in ROLES.usable().values() for item in role.trials),
        *(item for provider in PROVIDERS.usable().values() for item in provider.trials),
    ]
    found: dict[str, Feature] = {}
    for item in (*FEATURES, *brought):
        found.setdefault(item.name, item)
    return list(found.values())


def features(runner: Runner = run) -> list[Requirement]:
    """Try every kernel feature that labs use, each in temporary namespaces."""
    tried = known()
    tries = [word for item in tried for word in (item.name, item.try_it)]
    import tempfile  # a lab that is not the first one since the boot does without

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
    return [_feature(item, *seen.get(item.name, ("1", "not tried"))) for item in tried]


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
    return requirement(
        item.name, detail, item.needed_by, ok=ok, fix=fix, required=item.needed_by == LABS
    )


def cgroups(needed_by: tuple[str, ...]) -> list[Requirement]:
    """Check the cgroup controllers that container engines use."""
    one, two = set(), set()
    where = []
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    for line in mounts.splitlines():
        fields, _, rest = line.partition(" - ")
        kind, _, options = rest.split(" ", 2)
        place = Path(fields.split()[4])
        if kind == "cgroup":
            one |= set(options.split(",")) - {"rw", "ro"}
            where.append(place)
        elif kind == "cgroup2":
            where.append(place)
            try:
                two |= set((place / "cgroup.controllers").read_text(encoding="utf-8").split())
            except OSError:  # hidden below another mount
                continue
    controllers = {name for name in one | two if not name.startswith("name=")}
    version = "v1 and v2" if one and two else "v1" if one else "v2" if where else "none"
    # In v1 devices is a separate controller; v2 uses BPF.
    wanted = {"cpu", "memory", "pids"} | ({"devices"} if one else set())
    missing = sorted(wanted - controllers)
    detail = f"{version}: {', '.join(sorted(controllers)) or 'no controllers'}"
    found = [
        requirement(
            "cgroups",
            detail,
            needed_by,
            ok=not missing,
            fix=f"mount the cgroup controllers {', '.join(missing)}",
        )
    ]
    locked = [str(place) for place in where if not os.access(place, os.W_OK)]
    if locked and os.geteuid() == 0:
        found.append(
            requirement(
                "cgroups writable",
                f"read-only: {', '.join(locked[:3])}",
                needed_by,
                ok=False,
                fix=(
                    "mount -o remount,rw FOLDER; inside a container, run that container "
                    "as privileged"
                ),
            )
        )
    return found


def may_raise_limits(needed_by: tuple[str, ...]) -> Requirement:
    """Check the capability that privileged containers use."""
    status = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace")
    effective = re.search(r"^CapEff:\s+([0-9a-f]+)", status, re.MULTILINE)
    has = bool(effective and int(effective[1], 16) >> CAP_SYS_RESOURCE & 1)
    return requirement(
        "CAP_SYS_RESOURCE",
        "yes" if has else "no: privileged containers fail, limits cannot be raised",
        needed_by,
        ok=has,
        fix="give this capability to the container or service that runs testbed",
        required=False,
    )
