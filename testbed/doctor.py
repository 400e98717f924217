"""What this machine can and cannot do, each thing tried, each with its fix.

Kernel features are tried in namespaces made for the purpose, never in the
host's own; nothing is left behind.  :func:`fix` is the only part that changes
the machine, and only by installing packages.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from testbed import memory
from testbed.artifacts.debian import LIBRARIES
from testbed.artifacts.gomod import GoModule, go_on_path, has_library
from testbed.errors import CommandError, MachineError, TimeoutExpired
from testbed.lab import preflight
from testbed.nodes.base import INSTALL, Finding
from testbed.process import run, which
from testbed.progress import Tell, silent
from testbed.registry import ROLES
from testbed.topology.model import PLUGINS, needed_with
from testbed.vm import accel, box

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from testbed.artifacts import Store
    from testbed.artifacts.source import Runner
    from testbed.nodes.base import Provider

KERNEL = (5, 12)  # mount_setattr(2), with which a node sees the machine read-only
CAP_SYS_RESOURCE = 24  # its bit, see capabilities(7)
NOT_FOUND = 127  # exit status of a shell whose command is not there
PACKAGES = "packages"  #: what the progress of their installation is told of
TOOL_FIRST = "install the tool first"  # the finding of that tool says how
DISK = 2 << 30  # bytes: every artifact, or the data of a small lab
FILES = 512  # open files of a daemon, at the most
MEMORY_PER_NODE = 45 << 20  # bytes, as measured
GIB = 1 << 30


LABS = ("every lab",)


@dataclass(frozen=True, slots=True)
class Feature:
    """Something of the kernel, the command that tries it, and what it is for."""

    name: str
    try_it: str  #: run by a shell in namespaces of its own; status 0 says yes
    option: str  #: the kernel's build option, or what else may be missing
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

# A tmpfs on /run: iptables' lock there is the host's. Another for overlay: not all file systems do.
# Arguments: a folder, then names of features, each followed by what tries it.
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


@dataclass(frozen=True, slots=True)
class Tool:
    """A program that labs or checks run on this machine."""

    name: str
    package: str
    needed_by: tuple[str, ...] = LABS
    required: bool = True


TOOLS = (
    Tool("ip", "iproute2"),
    Tool("nsenter", "util-linux"),
    Tool("unshare", "util-linux"),
    Tool("mount", "mount"),  # in no Debian 13 by itself
    Tool("iptables", "iptables"),
    Tool("nft", "nftables", ("nftables rules",), required=False),
    Tool("tcpdump", "tcpdump", ("captures",)),
    Tool("conntrack", "conntrack", ("checks of connection tracking",), required=False),
    Tool("ping", "iputils-ping", ("checks",)),
    Tool("curl", "curl", ("checks",)),
    Tool("iperf3", "iperf3", ("measurements",), required=False),
    Tool("strace", "strace", ("checks of system calls",), required=False),
    Tool("ps", "procps", ("docker top",), required=False),
    Tool("socat", "socat", ("kubernetes",), required=False),
    Tool("apt-get", "apt", ("docker", "etcd", "images")),
    Tool("dpkg-deb", "dpkg", ("docker", "etcd", "images")),
    Tool("update-ca-certificates", "ca-certificates", ("downloads",), required=False),
)


def findings(
    store: Store,
    *,
    full: bool = True,
    state: Path | None = None,
    provider: Provider | None = None,
    role: str = "",
    runner: Runner = run,
) -> list[Finding]:
    """All there is to say about this machine, in the order in which a person would ask.

    ``full`` adds what takes long: a guest under KVM, for up to 3 s.  ``state``
    is the folder that labs keep their data in.  With a ``provider`` or a ``role``, what that
    one needs counts as needed.  Changes nothing.
    """
    found = [_root(), _kernel(), *features(runner), *_cgroups(), _resource()]
    found += [*_tools(), _compiler(store, runner), *_headers(runner), _go(store), *_libraries()]
    found += [*_artifacts(store), *_brought(store), _forwarding(), _memory(), _files()]
    found += [_disk("disk for the cache", store.folder)]
    found += [_disk("disk for labs", state)] if state else []
    if role:
        roles, kernel = set(needed_with(role)), _kernel_for(role)
        found = [
            replace(
                item,
                required=item.required
                or item.name in kernel
                or not roles.isdisjoint(item.needed_by),
            )
            for item in found
        ]
    if provider is not None:
        wanted = provider.kernel
        found = [replace(item, required=item.required or item.name in wanted) for item in found]
        known = {item.name for item in found}
        return [*found, *(item for item in provider.probe() if item.name not in known)]
    found += [virtual_machines()]
    found += [kvm(store.folder, runner)] if full else []
    return found


def fix(
    given: Iterable[Finding],
    store: Store,
    *,
    role: str = "",
    tell: Tell = silent,
    runner: Runner = run,
) -> None:
    """Install the packages that findings ask for, in one go, and make every artifact.

    Those that take long and are for labs with one role alone are made for that ``role`` only,
    and with it what it cannot be without.

    Docker and etcd are never among the packages: they are artifacts, unpacked
    in the cache.  Raises MachineError, ArtifactError, CommandError.
    """
    packages = sorted({package for item in given if not item.ok for package in item.packages})
    if packages:
        if os.geteuid() != 0:
            raise MachineError(
                f"packages can only be installed by root: {', '.join(packages)}",
                hint=f"sudo {INSTALL} {' '.join(packages)}",
            )
        tell(PACKAGES, f"install {' '.join(packages)}")
        _install(packages, lambda line: tell(PACKAGES, line), runner)
        tell(PACKAGES, "installed", ended=True)
    wanted = needed_with(role) if role else ()
    for entry in store.list():
        if entry.state == "missing" and entry.name not in store.unasked(wanted):
            tell(entry.name, f"make {entry.name}")
            store.fetch(entry.name)


def kvm(cache: Path, runner: Runner = run) -> Finding:
    """Whether virtual machines run under KVM, tried anew.  Only providers of such need it."""
    detail, fix = "", ""
    try:
        answer = accel.probe(cache, fresh=True, runner=runner)
    except MachineError as error:
        ok, detail, fix = False, f"not tried: {error.message}", error.hint or ""
    else:
        ok, detail = answer.kind == "kvm", f"{answer.detail}; {answer.cost}"
        fix = "turn on (nested) virtualization in the firmware or hypervisor, or wait longer"
    return _finding("KVM", detail, ("provider qemu",), ok=ok, fix=fix, required=False)


def virtual_machines() -> Finding:
    """The programs that make and run them: few labs need them, so none is installed unasked."""
    missing = box.lacking() | accel.lacking()
    return _finding(
        "virtual machines",
        f"no {', '.join(missing)}" if missing else "QEMU, and all that makes boxes, are there",
        ("provider qemu",),
        ok=not missing,
        fix="testbed doctor --provider qemu --fix",
        required=False,
    )


def _finding(
    name: str,
    detail: str,
    needed_by: tuple[str, ...] = LABS,
    *,
    ok: bool,
    fix: str = "",
    required: bool = True,
    packages: tuple[str, ...] = (),
) -> Finding:
    """A finding whose fix goes when there is nothing to mend, and is the packages' by default."""
    if ok:
        fix, packages = "", ()
    elif packages and not fix:
        fix = f"{INSTALL} {' '.join(packages)}"
    return Finding(name, ok, detail, fix, needed_by, required, packages)


def _root() -> Finding:
    user = os.geteuid()
    detail = "yes" if user == 0 else f"no, user {user}"
    return _finding("root", detail, ok=user == 0, fix="run it as root, for example with sudo")


def _kernel() -> Finding:
    release = os.uname().release
    version = tuple(int(part) for part in re.findall(r"\d+", release)[:2])
    wanted = ".".join(map(str, KERNEL))
    return _finding(
        "kernel", release, ok=version >= KERNEL, fix=f"boot a kernel of {wanted} or later"
    )


def features(runner: Runner = run) -> list[Finding]:
    """Every feature of the kernel that labs use, each tried in namespaces of its own."""
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


def _no_namespaces(said: str, status: int) -> Finding:
    if status == NOT_FOUND:
        return _finding("namespaces", f"not tried: {said}", ok=False, fix=TOOL_FIRST)
    return _finding(
        "namespaces",
        f"none can be made here: {said}",
        ok=False,
        fix="run it as root; inside a container, give the container all capabilities",
    )


def _feature(item: Feature, status: str, said: str) -> Finding:
    ok = status == "0"
    detail, fix = said or "works", item.option
    if status == str(NOT_FOUND):
        detail, fix = f"not tried: {said}", TOOL_FIRST
    elif not ok:
        detail = f"failed: {said}"
        if item.option.startswith("CONFIG_"):
            fix = f"a kernel with {item.option}, built in or as a module"
    return _finding(item.name, detail, item.needed_by, ok=ok, fix=fix, required=item in NEEDED)


def _cgroups() -> list[Finding]:
    one, two = set(), set()
    where = []
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
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
    # With v1 the devices controller is one of its own; v2 does it with BPF.
    wanted = {"cpu", "memory", "pids"} | ({"devices"} if one else set())
    missing = sorted(wanted - controllers)
    detail = f"{version}: {', '.join(sorted(controllers)) or 'no controllers'}"
    found = [
        _finding(
            "cgroups",
            detail,
            ("docker",),
            ok=not missing,
            fix=f"mount the cgroup controllers {', '.join(missing)}",
        )
    ]
    locked = [str(place) for place in where if not os.access(place, os.W_OK)]
    if locked and os.geteuid() == 0:
        found.append(
            _finding(
                "cgroups writable",
                f"read-only: {', '.join(locked[:3])}",
                ("docker",),
                ok=False,
                fix="mount -o remount,rw FOLDER; inside a container, run that one as privileged",
            )
        )
    return found


def _resource() -> Finding:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    effective = re.search(r"^CapEff:\s+([0-9a-f]+)", status, re.MULTILINE)
    has = bool(effective and int(effective[1], 16) >> CAP_SYS_RESOURCE & 1)
    return _finding(
        "CAP_SYS_RESOURCE",
        "yes" if has else "no: docker run --privileged fails, limits cannot be raised",
        ("privileged containers",),
        ok=has,
        fix="give the capability to the container or service that this runs in",
        required=False,
    )


def _tools() -> list[Finding]:
    found = []
    for tool in TOOLS:
        path = which(tool.name)
        found.append(
            _finding(
                tool.name,
                path or "not found",
                tool.needed_by,
                ok=path is not None,
                required=tool.required,
                packages=(tool.package,),
            )
        )
    return found


def _compiler(store: Store, runner: Runner) -> Finding:
    compiler = which("cc") or which("gcc")
    missing = {entry.name for entry in store.list() if entry.state == "missing"}
    detail = "not found"
    ok = False
    if compiler:
        with tempfile.TemporaryDirectory(prefix="testbed-cc-") as folder:
            source = Path(folder) / "try.c"
            source.write_text("#include <stdio.h>\n#include <linux/if_tun.h>\nint main(void){}\n")
            answer = runner([compiler, "-fsyntax-only", source], check=False, timeout=30)
        ok = answer.status == 0
        detail = compiler if ok else f"{compiler} finds no headers of the C library or the kernel"
    return _finding(
        "C compiler",
        detail,
        ("testbed-init", "flanneld", "docker 29"),
        ok=ok,
        required=bool(missing & {"testbed-init", "flanneld"}),
        packages=("gcc", "libc6-dev"),
    )


def _headers(runner: Runner) -> list[Finding]:
    """What Go programs with parts in C are linked with, beyond the C library."""
    from testbed.artifacts.catalog import CATALOG

    found = []
    for name, source in CATALOG.parts.items():
        libraries = source.libraries if isinstance(source, GoModule) else {}
        for library, package in libraries.items():
            ok = has_library(runner, library)
            detail = "pkg-config knows them" if ok else "pkg-config finds none"
            found.append(
                _finding(
                    f"{library} headers",
                    detail,
                    (f"building {name}, for docker 29",),
                    ok=ok,
                    required=False,
                    packages=("pkg-config", package),
                )
            )
    return found


def _go(store: Store) -> Finding:
    present = go_on_path()
    version = ".".join(map(str, present[1])) if present else ""
    detail = f"{version} ({present[0]})" if present else "none on PATH"
    if "flanneld" in {entry.name for entry in store.list() if entry.state == "missing"}:
        detail += "; a later one is fetched from PyPI if flanneld needs it"
    return _finding("Go", detail, ("flanneld", "docker 29"), ok=True, required=False)


def _libraries() -> list[Finding]:
    import ctypes

    found = []
    for library, package in LIBRARIES.items():
        detail = "loads"
        try:
            ctypes.CDLL(library)
        except OSError as error:
            detail = str(error)
        ok = detail == "loads"
        found.append(_finding(library, detail, ("docker",), ok=ok, packages=(package,)))
    return found


def _artifacts(store: Store) -> list[Finding]:
    found = []
    for entry in store.list():
        of = store.role_of(entry.name)
        if entry.state == "old" or (entry.name in store.unasked({of})):
            continue
        here = entry.state == "cached"
        option = f"--role {of} " if of else ""
        users = entry.origin == "path"
        detail = f"{entry.version}, {entry.size / 1e6:.0f} MB" if here else "missing"
        if not here:
            detail += f": {entry.version}" if users else ", made on first use"
        found.append(
            _finding(
                f"artifact {entry.name}",
                detail,
                (of,) if of else (),
                ok=here,
                fix="give the right path" if users else f"testbed doctor {option}--fix",
                required=users,
            )
        )
    return found


def _brought(store: Store) -> list[Finding]:
    """Network plugins that the user has to bring, since they can't be built here."""
    from testbed.roles.kubernetes import plugins
    from testbed.roles.kubernetes.plugins.manifest import Brought

    return [
        _finding(
            plugin.title,
            why or f"brought: {plugin.manifest}, {', '.join(plugin.images_of(store))}",
            (plugin.name,),
            ok=not why,
            fix=plugin.how(store) if why else "",
            required=False,
        )
        for plugin in plugins.PLUGINS.values()
        if isinstance(plugin, Brought)
        for why in [plugin.lacking(store)]
    ]


def _kernel_for(role: str) -> set[str]:
    """The features of the kernel that a cluster with that network plugin needs, if it is one."""
    from testbed.topology.load import Overrides, load

    if role not in PLUGINS or role in ROLES:
        return set()
    return preflight.kernel_features(load("k8s-two-node", Overrides(cni=role)))


def _forwarding() -> Finding:
    path = Path("/proc/sys/net/ipv4/ip_forward")
    on = path.exists() and path.read_text(encoding="utf-8").strip() == "1"
    detail = f"{'on' if on else 'off'}; labs have their own and leave it alone"
    return _finding("ip_forward of the host", detail, (), ok=True, required=False)


def _memory() -> Finding:
    free = memory.available()
    nodes = free // MEMORY_PER_NODE
    detail = f"{free / GIB:.1f} GiB free, enough for about {nodes} nodes"
    return _finding("memory", detail, ok=nodes >= 4, fix="end other programs", required=False)


def _files() -> Finding:
    import resource

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    unlimited = hard == resource.RLIM_INFINITY
    return _finding(
        "file descriptors",
        f"{'unlimited' if unlimited else hard} for each process",
        ("docker", "kubernetes"),
        ok=unlimited or hard >= FILES,
        fix=f"ulimit -n {FILES}",
        required=False,
    )


def _disk(name: str, folder: Path) -> Finding:
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    writable = os.access(place, os.W_OK)
    detail = f"{free / GIB:.1f} GiB free in {folder}" + ("" if writable else ", which is read-only")
    fix = "make room, or choose another folder"
    return _finding(name, detail, ok=free >= DISK and writable, fix=fix)


def _install(packages: Sequence[str], say: Callable[[str], None], runner: Runner) -> None:
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    command = ["apt-get", "--yes", "--no-install-recommends", "--quiet", "install", *packages]
    try:
        runner(command, env=env, on_line=say)
    except CommandError:  # most often because the lists are empty or old
        runner(["apt-get", "--quiet", "update"], env=env, on_line=say)
        runner(command, env=env, on_line=say)
