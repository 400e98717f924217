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
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.artifacts.debian import LIBRARIES
from testbed.artifacts.gomod import go_on_path
from testbed.errors import CommandError, MachineError, TimeoutExpired
from testbed.nodes.base import Finding
from testbed.process import run, which

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from testbed.artifacts import Store
    from testbed.artifacts.source import Runner

KERNEL = (5, 6)  # pidfds and time-outs on them; older ones were never tried
CAP_SYS_RESOURCE = 24  # its bit, see capabilities(7)
DISK = 2 << 30  # bytes: every artifact, or the data of a small lab
FILES = 4096  # file descriptors: a lab of 30 nodes uses about a thousand
MEMORY_PER_NODE = 45 << 20  # bytes, as measured
GIB = 1 << 30
INSTALL = "apt-get install -y --no-install-recommends"


@dataclass(frozen=True, slots=True)
class Feature:
    """Something of the kernel, the command that tries it, and what it is for."""

    name: str
    try_it: str  #: run by a shell in namespaces of its own; status 0 says yes
    option: str  #: the kernel's build option, or what else may be missing
    needed_by: tuple[str, ...] = ()
    required: bool = False


LABS = ("every lab",)
FEATURES = (
    *(
        Feature(f"{kind} namespace", f"unshare --{kind} --fork true", f"CONFIG_{option}", LABS, True)
        for kind, option in (
            ("mount", "NAMESPACES"), ("net", "NET_NS"), ("pid", "PID_NS"), ("uts", "UTS_NS"),
            ("ipc", "IPC_NS"), ("cgroup", "CGROUPS"),
        )
    ),
    Feature("veth", "ip link add t0 type veth peer name t1", "CONFIG_VETH", LABS, True),
    Feature("bridge", "ip link add t2 type bridge", "CONFIG_BRIDGE", LABS, True),
    Feature(
        "forwarding", "echo 1 > /proc/sys/net/ipv4/ip_forward", "a /proc/sys that can be written",
        LABS, True,
    ),
    Feature("overlay", "overlay", "CONFIG_OVERLAY_FS", ("docker",), True),
    Feature(
        "iptables nat", "iptables -w -t nat -A POSTROUTING -j MASQUERADE",
        "CONFIG_NF_NAT and CONFIG_NETFILTER_XT_TARGET_MASQUERADE", ("docker", "flannel"), True,
    ),
    Feature(
        "iptables conntrack",
        "iptables -w -A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT",
        "CONFIG_NETFILTER_XT_MATCH_CONNTRACK", ("docker",), True,
    ),
    Feature(
        "iptables addrtype", "iptables -w -t nat -A PREROUTING -m addrtype --dst-type LOCAL",
        "CONFIG_NETFILTER_XT_MATCH_ADDRTYPE", ("docker",), True,
    ),
    Feature("nf_tables", "nft add table ip t", "CONFIG_NF_TABLES", ("nftables rules",)),
    Feature(
        "br_netfilter",
        "test -e /proc/sys/net/bridge/bridge-nf-call-iptables || modprobe -n -q br_netfilter",
        "CONFIG_BRIDGE_NETFILTER", ("docker with --icc=false", "kubernetes"),
    ),
    Feature(
        "vxlan", "ip link add t3 type vxlan id 1 dstport 8472 local 127.0.0.1", "CONFIG_VXLAN",
        ("flannel vxlan",),
    ),
    Feature("tun", "ip tuntap add dev t4 mode tun", "CONFIG_TUN and /dev/net/tun", ("flannel udp",)),
    Feature(
        "macvlan", "ip link add t5 link t0 type macvlan mode bridge", "CONFIG_MACVLAN",
        ("macvlan networks",),
    ),
    Feature(
        "ipvlan", "ip link add t6 link t1 type ipvlan mode l2", "CONFIG_IPVLAN", ("ipvlan networks",)
    ),
    Feature(
        "netem", "tc qdisc add dev t0 root netem delay 1ms", "CONFIG_NET_SCH_NETEM",
        ("delay and loss on links",),
    ),
    Feature(
        "TRACE", "iptables -w -t raw -A PREROUTING -j TRACE", "CONFIG_NETFILTER_XT_TARGET_TRACE",
        ("packet walks",),
    ),
)  # fmt: skip

# A tmpfs on /run: iptables' lock there is the host's. Another for overlay: not all file systems do.
SCRIPT = """
mount -t tmpfs testbed /run && mount -t tmpfs testbed "$1" || exit 99
cd "$1" || exit 99
overlay() {
    mkdir l u w m && mount -t overlay testbed -o lowerdir=l,upperdir=u,workdir=w m
}
try() { said=$(eval "$2" 2>&1); printf '%s\\t%s\\t%s\\n' "$1" "$?" "$(echo "$said" | tail -n 1)"; }
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
    Tool("iptables", "iptables"),
    Tool("nft", "nftables", ("nftables rules",), required=False),
    Tool("tcpdump", "tcpdump", ("captures",)),
    Tool("conntrack", "conntrack", ("checks of connection tracking",), required=False),
    Tool("ping", "iputils-ping", ("checks",)),
    Tool("curl", "curl", ("checks",)),
    Tool("iperf3", "iperf3", ("measurements",), required=False),
    Tool("ps", "procps", ("docker top",), required=False),
    Tool("apt-get", "apt", ("docker", "etcd", "images")),
    Tool("dpkg-deb", "dpkg", ("docker", "etcd", "images")),
    Tool("update-ca-certificates", "ca-certificates", ("downloads",), required=False),
)


def findings(
    store: Store,
    full: bool = True,
    *,
    state: Path | None = None,
    runner: Runner = run,  # noqa: FBT001, FBT002  as the command line has it
) -> list[Finding]:
    """All there is to say about this machine, in the order in which a person would ask.

    ``full`` adds what takes long: a guest under KVM, for up to 3 s.  ``state``
    is the folder that labs keep their data in.  Changes nothing.
    """
    found = [_root(), _kernel(), *_features(runner), *_cgroups(), _resource()]
    found += [*_tools(), _compiler(store, runner), _go(store), *_libraries()]
    found += [*_artifacts(store), _forwarding(), _memory(), _files()]
    found += [_disk("disk for the cache", store.folder)]
    found += [_disk("disk for labs", state)] if state else []
    found += [kvm(runner)] if full else []
    return found


def fix(
    given: Iterable[Finding],
    store: Store,
    *,
    say: Callable[[str], None] = lambda _line: None,
    runner: Runner = run,
) -> None:
    """Install the packages that findings ask for, in one go, and make every artifact.

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
        say(f"install {' '.join(packages)}")
        _install(packages, say, runner)
    for entry in store.list():
        if entry.state == "missing" and entry.name not in store.tools:
            say(f"make {entry.name}")
            store.fetch(entry.name)


def kvm(runner: Runner = run, *, timeout: float = 3.0, accelerator: str = "kvm") -> Finding:
    """Whether a guest runs under KVM: a BIOS of a few instructions, given ``timeout`` seconds.

    The device file alone says little: under some hypervisors it is there, and
    no guest gets anywhere.  Only the providers with real machines need it.
    """
    needed = ("vagrant",)
    name = "KVM"

    def no(detail: str, fix: str, packages: tuple[str, ...] = ()) -> Finding:
        return Finding(name, False, detail, fix, needed, required=False, packages=packages)

    if accelerator == "kvm" and not Path("/dev/kvm").exists():
        return no("there is no /dev/kvm", "turn on virtualization in the firmware or hypervisor")
    qemu = which(f"qemu-system-{os.uname().machine}")
    if not qemu or os.uname().machine != "x86_64":
        return no(
            "not tried: there is no qemu-system-x86_64; only virtual machines need it",
            f"{INSTALL} qemu-system-x86",
        )
    with tempfile.TemporaryDirectory(prefix="testbed-kvm-") as folder:
        bios = Path(folder) / "bios"
        bios.write_bytes(bios_image())
        command = [
            qemu, "-accel", accelerator, "-machine", "q35", "-m", "16", "-nodefaults",
            "-no-user-config", "-display", "none", "-no-reboot", "-bios", str(bios),
            "-device", "isa-debug-exit,iobase=0xf4,iosize=1",
        ]  # fmt: skip
        begin = time.monotonic()
        try:
            answer = runner(command, timeout=timeout, check=False)
        except TimeoutExpired:
            return no(
                f"/dev/kvm is there, yet a guest got nowhere in {timeout:g} s",
                "none on this machine: virtual machines are emulated, and slow",
            )
    if answer.status != GUEST_SAYS:
        said = (answer.stderr.strip().splitlines() or [f"status {answer.status}"])[-1]
        return no(f"a guest did not run: {said}", "see that /dev/kvm may be opened by this user")
    return Finding(
        name, True, f"a guest ran in {time.monotonic() - begin:.2f} s", "", needed, False
    )


GUEST_CODE = 0x31
GUEST_SAYS = GUEST_CODE << 1 | 1  # how isa-debug-exit makes an exit status of what a guest writes


def bios_image() -> bytes:
    """A 64 KiB BIOS that counts to a million and then writes GUEST_CODE to port 0xf4."""
    # mov ecx, 1000000; loop $ (by ecx); mov al, GUEST_CODE; out 0xf4, al; hlt
    code = bytes.fromhex("66b940420f00 67e2fd b031 e6f4 f4")
    image = bytearray(b"\xf4" * 0x10000)  # hlt, wherever it should stray to
    image[0xFF00 : 0xFF00 + len(code)] = code
    image[0xFFF0:0xFFF3] = b"\xe9" + (0xFF00 - 0xFFF3 & 0xFFFF).to_bytes(2, "little")  # jmp there
    return bytes(image)


def _root() -> Finding:
    root = os.geteuid() == 0
    return Finding(
        "root", root, "yes" if root else f"no, user {os.geteuid()}",
        "" if root else "run it as root, for example with sudo", LABS,
    )  # fmt: skip


def _kernel() -> Finding:
    release = os.uname().release
    version = tuple(int(part) for part in re.findall(r"\d+", release)[:2])
    wanted = ".".join(map(str, KERNEL))
    fix = "" if version >= KERNEL else f"boot a kernel of {wanted} or later"
    return Finding("kernel", version >= KERNEL, release, fix, LABS)


def _features(runner: Runner) -> list[Finding]:
    lines = [f"try '{item.name}' '{item.try_it}'" for item in FEATURES]
    unshare = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if os.geteuid() != 0:
        unshare += ["--user", "--map-root-user"]
    env = {**os.environ, "LC_ALL": "C"}
    env["PATH"] = f"{env.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"
    with tempfile.TemporaryDirectory(prefix="testbed-doctor-") as folder:
        try:
            answer = runner(
                [*unshare, "sh", "-c", SCRIPT + "\n".join(lines), "sh", folder],
                env=env, timeout=30, check=False,
            )  # fmt: skip
        except (CommandError, TimeoutExpired) as error:
            return [_no_namespaces(str(error).splitlines()[-1].strip())]
    seen = {}
    for line in answer.stdout.splitlines():
        name, status, said = [*line.split("\t"), "", ""][:3]
        seen[name] = (status, said)
    if not seen:
        return [_no_namespaces((answer.stderr.strip().splitlines() or ["no answer"])[-1])]
    return [_feature(item, *seen.get(item.name, ("1", "not tried"))) for item in FEATURES]


def _no_namespaces(said: str) -> Finding:
    return Finding(
        "namespaces", False, f"none can be made here: {said}",
        "run it as root; inside a container, give the container all capabilities", LABS,
    )  # fmt: skip


def _feature(item: Feature, status: str, said: str) -> Finding:
    if status == "127":  # the tool is missing: which finding of the tools already says
        return Finding(
            item.name, False, f"not tried: {said}", "install the tool first", item.needed_by,
            item.required,
        )  # fmt: skip
    if status == "0":
        return Finding(item.name, True, "works", "", item.needed_by, item.required)
    fix = f"a kernel with {item.option} (built in, or as a module)"
    if not item.option.startswith("CONFIG_"):
        fix = f"wanted: {item.option}"
    return Finding(item.name, False, f"failed: {said}", fix, item.needed_by, item.required)


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
    fix = f"mount the cgroup controllers {', '.join(missing)}" if missing else ""
    found = [Finding("cgroups", not missing, detail, fix, ("docker",))]
    locked = [str(place) for place in where if not os.access(place, os.W_OK)]
    if locked and os.geteuid() == 0:
        found.append(
            Finding(
                "cgroups writable", False, f"read-only: {', '.join(locked[:3])}",
                "mount -o remount,rw FOLDER; inside a container, run that one as privileged",
                ("docker",),
            )
        )  # fmt: skip
    return found


def _resource() -> Finding:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    effective = re.search(r"^CapEff:\s+([0-9a-f]+)", status, re.MULTILINE)
    has = bool(effective and int(effective[1], 16) >> CAP_SYS_RESOURCE & 1)
    return Finding(
        "CAP_SYS_RESOURCE", has,
        "yes" if has else "no: docker run --privileged fails, limits cannot be raised",
        "" if has else "give the capability to the container or service that this runs in",
        ("privileged containers",), required=False,
    )  # fmt: skip


def _tools() -> list[Finding]:
    found = []
    for tool in TOOLS:
        path = which(tool.name)
        found.append(
            Finding(
                tool.name, path is not None, path or "not found",
                "" if path else f"{INSTALL} {tool.package}", tool.needed_by, tool.required,
                () if path else (tool.package,),
            )
        )  # fmt: skip
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
    return Finding(
        "C compiler", ok, detail, "" if ok else f"{INSTALL} gcc libc6-dev",
        ("testbed-init", "flanneld"), bool(missing & {"testbed-init", "flanneld"}),
        () if ok else ("gcc", "libc6-dev"),
    )  # fmt: skip


def _go(store: Store) -> Finding:
    present = go_on_path()
    version = ".".join(map(str, present[1])) if present else ""
    detail = f"{version} ({present[0]})" if present else "none on PATH"
    if "flanneld" in {entry.name for entry in store.list() if entry.state == "missing"}:
        detail += "; a later one is fetched from PyPI if flanneld needs it"
    return Finding("Go", True, detail, "", ("flanneld",), required=False)


def _libraries() -> list[Finding]:
    import ctypes  # noqa: PLC0415  wanted here alone

    found = []
    for library, package in LIBRARIES.items():
        try:
            ctypes.CDLL(library)
        except OSError as error:
            found.append(
                Finding(
                    library,
                    False,
                    str(error),
                    f"{INSTALL} {package}",
                    ("docker",),
                    True,
                    (package,),
                )
            )
        else:
            found.append(Finding(library, True, "loads", "", ("docker",)))
    return found


def _artifacts(store: Store) -> list[Finding]:
    found = []
    for entry in store.list():
        if entry.state == "old" or entry.name in store.tools:
            continue
        here = entry.state == "cached"
        users = entry.origin == "path"
        detail = f"{entry.version}, {entry.size / 1e6:.0f} MB" if here else "missing"
        if not here:
            detail += f": {entry.version}" if users else ", made on first use"
        fix = "" if here else "give the right path" if users else "testbed doctor --fix"
        name = f"artifact {entry.name}"
        found.append(Finding(name, here, detail, fix, (), required=users))
    return found


def _forwarding() -> Finding:
    path = Path("/proc/sys/net/ipv4/ip_forward")
    on = path.exists() and path.read_text(encoding="utf-8").strip() == "1"
    return Finding(
        "ip_forward of the host", True,
        f"{'on' if on else 'off'}; labs have their own and leave it alone", required=False,
    )  # fmt: skip


def _memory() -> Finding:
    text = Path("/proc/meminfo").read_text(encoding="utf-8")
    free = re.search(r"^MemAvailable:\s+(\d+)", text, re.MULTILINE)
    available = int(free[1]) * 1024 if free else 0
    nodes = available // MEMORY_PER_NODE
    return Finding(
        "memory", nodes >= 4, f"{available / GIB:.1f} GiB free, enough for about {nodes} nodes",
        "" if nodes >= 4 else "end other programs", LABS, required=False,
    )  # fmt: skip


def _files() -> Finding:
    import resource  # noqa: PLC0415  wanted here alone

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    ok = hard in {resource.RLIM_INFINITY} or hard >= FILES
    return Finding(
        "file descriptors", ok, f"{soft}, at most {hard}",
        "" if ok else f"ulimit -n {FILES}", ("large labs",), required=False,
    )  # fmt: skip


def _disk(name: str, folder: Path) -> Finding:
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    writable = os.access(place, os.W_OK)
    detail = f"{free / GIB:.1f} GiB free in {folder}" + ("" if writable else ", which is read-only")
    fix = "" if free >= DISK and writable else "make room, or choose another folder"
    return Finding(name, free >= DISK and writable, detail, fix, LABS)


def _install(packages: Sequence[str], say: Callable[[str], None], runner: Runner) -> None:
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    command = ["apt-get", "--yes", "--no-install-recommends", "--quiet", "install", *packages]
    try:
        runner(command, env=env, on_line=say)
    except CommandError:  # most often because the lists are empty or old
        runner(["apt-get", "--quiet", "update"], env=env, on_line=say)
        runner(command, env=env, on_line=say)
