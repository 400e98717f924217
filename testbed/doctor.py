"""Checks of this machine's requirements, each with its fix.

Kernel features are tried in temporary namespaces, never in the host's own; nothing
is left behind.  Only :func:`fix` changes the machine, and only by installing
packages.
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
from testbed.errors import CommandError, MachineError
from testbed.kernel import features
from testbed.process import run, which
from testbed.progress import Tell, silent
from testbed.registry import PROVIDERS, ROLES
from testbed.requirement import INSTALL, LABS, requirement
from testbed.vm import accel, box

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from testbed.artifacts import Store
    from testbed.artifacts.source import Runner
    from testbed.nodes.base import Provider
    from testbed.requirement import Requirement
    from testbed.roles.base import Role

KERNEL = (5, 12)  # for mount_setattr(2), which makes the machine's files read-only on a node
CAP_SYS_RESOURCE = 24  # number of the capability, see capabilities(7)
PACKAGES = "packages"  #: name of their installation in progress messages
DISK = 2 << 30  # bytes: all artifacts, or the data of a small lab
FILES = 512  # maximum open files of a daemon
MEMORY_PER_NODE = 45 << 20  # bytes, measured
GIB = 1 << 30


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
    Tool("mount", "mount"),  # not part of a minimal Debian 13
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
) -> list[Requirement]:
    """Check all requirements of this machine; return them with the most basic ones first.

    ``full`` includes the slow test: a guest under KVM, for up to 3 s.  ``state`` is the folder
    of labs' data.  With a ``provider`` or a ``role``, its requirements count as required.
    Nothing on the machine is changed.
    """
    found = [_root(), _kernel(), *features(runner), *_cgroups(), _resource()]
    found += [*_tools(), _compiler(store, runner), *_headers(runner), _go(store), *_libraries()]
    found += [*_artifacts(store), *(item for one in _roles() for item in one.requirements(store))]
    found += [_forwarding(), _memory(), _files()]
    found += [_disk("disk for the cache", store.folder)]
    found += [_disk("disk for labs", state)] if state else []
    users, kernel = set(_needed(role, provider)), _kernel_for(role) if role else set()
    found = [
        replace(
            item,
            required=item.required or item.name in kernel or not users.isdisjoint(item.needed_by),
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


def _needed(role: str, provider: Provider | None) -> tuple[str, ...]:
    """Return the roles and the provider whose requirements count as required."""
    maker = () if provider is None else (provider.name,)
    return (*(needed_with(role) if role else ()), *maker)


def needed_with(software: str) -> tuple[str, ...]:
    """Return a role, or an optional part of one, with the roles that it requires.

    >>> needed_with("ingress"), needed_with("docker")
    (('ingress', 'kubernetes'), ('docker',))
    """
    return (software, *(role.name for role in _roles() if software in role.includes))


def parts() -> set[str]:
    """Return the names of optional parts of all roles."""
    return {part for role in _roles() for part in role.includes}


def _roles() -> list[Role]:
    return list(ROLES.usable().values())


def fix(
    given: Iterable[Requirement],
    store: Store,
    *,
    role: str = "",
    provider: Provider | None = None,
    tell: Tell = silent,
    runner: Runner = run,
) -> None:
    """Install the packages of failed requirements with one command, and build all artifacts.

    Artifacts that take long to build and are used by one role or provider only are built only
    for the given ``role``, with those of the roles that it requires, and ``provider``.

    Docker and etcd are never installed as packages: they are artifacts, unpacked
    in the cache.  Raises MachineError, ArtifactError, CommandError.
    """
    packages = sorted({package for item in given if not item.ok for package in item.packages})
    if packages:
        if os.geteuid() != 0:
            raise MachineError(
                f"only root can install packages: {', '.join(packages)}",
                hint=f"sudo {INSTALL} {' '.join(packages)}",
            )
        tell(PACKAGES, f"install {' '.join(packages)}")
        _install(packages, lambda line: tell(PACKAGES, line), runner)
        tell(PACKAGES, "installed", ended=True)
    wanted = _needed(role, provider)
    for entry in store.list():
        if entry.state == "missing" and entry.name not in store.unasked(wanted):
            tell(entry.name, f"build {entry.name}")
            store.fetch(entry.name)


def kvm(cache: Path, runner: Runner = run) -> Requirement:
    """Test again whether virtual machines run under KVM.  Only their providers need it."""
    detail, fix = "", ""
    try:
        answer = accel.probe(cache, fresh=True, runner=runner)
    except MachineError as error:
        ok, detail, fix = False, f"not tested: {error.message}", error.hint or ""
    else:
        ok, detail = answer.kind == "kvm", f"{answer.detail}; {answer.cost}"
        fix = "enable (nested) virtualization in the firmware or hypervisor"
    return requirement("KVM", detail, ("provider qemu",), ok=ok, fix=fix, required=False)


def virtual_machines() -> Requirement:
    """Check the programs that build and run virtual machines.

    Few labs need them, so they are optional.
    """
    missing = box.lacking() | accel.lacking()
    return requirement(
        "virtual machines",
        f"no {', '.join(missing)}"
        if missing
        else "QEMU and the programs that build boxes are installed",
        ("provider qemu",),
        ok=not missing,
        fix="testbed doctor --provider qemu --fix",
        required=False,
    )


def _root() -> Requirement:
    user = os.geteuid()
    detail = "yes" if user == 0 else f"no, user {user}"
    return requirement(
        "root", detail, ok=user == 0, fix="run testbed as root, for example with sudo"
    )


def _kernel() -> Requirement:
    release = os.uname().release
    version = tuple(int(part) for part in re.findall(r"\d+", release)[:2])
    wanted = ".".join(map(str, KERNEL))
    return requirement(
        "kernel", release, ok=version >= KERNEL, fix=f"boot a kernel of {wanted} or later"
    )


def _cgroups() -> list[Requirement]:
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
    # In v1 devices is a separate controller; v2 uses BPF.
    wanted = {"cpu", "memory", "pids"} | ({"devices"} if one else set())
    missing = sorted(wanted - controllers)
    detail = f"{version}: {', '.join(sorted(controllers)) or 'no controllers'}"
    found = [
        requirement(
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
            requirement(
                "cgroups writable",
                f"read-only: {', '.join(locked[:3])}",
                ("docker",),
                ok=False,
                fix=(
                    "mount -o remount,rw FOLDER; inside a container, run that container "
                    "as privileged"
                ),
            )
        )
    return found


def _resource() -> Requirement:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    effective = re.search(r"^CapEff:\s+([0-9a-f]+)", status, re.MULTILINE)
    has = bool(effective and int(effective[1], 16) >> CAP_SYS_RESOURCE & 1)
    return requirement(
        "CAP_SYS_RESOURCE",
        "yes" if has else "no: docker run --privileged fails, limits cannot be raised",
        ("privileged containers",),
        ok=has,
        fix="give this capability to the container or service that runs testbed",
        required=False,
    )


def _tools() -> list[Requirement]:
    found = []
    for tool in TOOLS:
        path = which(tool.name)
        found.append(
            requirement(
                tool.name,
                path or "not found",
                tool.needed_by,
                ok=path is not None,
                required=tool.required,
                packages=(tool.package,),
            )
        )
    return found


def _compiler(store: Store, runner: Runner) -> Requirement:
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
    return requirement(
        "C compiler",
        detail,
        ("testbed-init", "flanneld", "docker 29"),
        ok=ok,
        required=bool(missing & {"testbed-init", "flanneld"}),
        packages=("gcc", "libc6-dev"),
    )


def _headers(runner: Runner) -> list[Requirement]:
    """Check the libraries of Go programs with parts in C, other than the C library."""
    from testbed.artifacts.inventory import INVENTORY

    found = []
    for name, source in INVENTORY.parts.items():
        libraries = source.libraries if isinstance(source, GoModule) else {}
        for library, package in libraries.items():
            ok = has_library(runner, library)
            detail = "pkg-config knows them" if ok else "pkg-config finds none"
            found.append(
                requirement(
                    f"{library} headers",
                    detail,
                    (f"building {name}, for docker 29",),
                    ok=ok,
                    required=False,
                    packages=("pkg-config", package),
                )
            )
    return found


def _go(store: Store) -> Requirement:
    present = go_on_path()
    version = ".".join(map(str, present[1])) if present else ""
    detail = f"{version} ({present[0]})" if present else "none on PATH"
    if "flanneld" in {entry.name for entry in store.list() if entry.state == "missing"}:
        detail += "; a later one is fetched from PyPI if flanneld needs it"
    return requirement("Go", detail, ("flanneld", "docker 29"), ok=True, required=False)


def _libraries() -> list[Requirement]:
    import ctypes

    found = []
    for library, package in LIBRARIES.items():
        detail = "loads"
        try:
            ctypes.CDLL(library)
        except OSError as error:
            detail = str(error)
        ok = detail == "loads"
        found.append(requirement(library, detail, ("docker",), ok=ok, packages=(package,)))
    return found


def _artifacts(store: Store) -> list[Requirement]:
    found = []
    for entry in store.list():
        of = store.role_of(entry.name)
        if entry.state == "old" or (entry.name in store.unasked({of})):
            continue
        here = entry.state == "cached"
        option = f"--{'provider' if of in PROVIDERS else 'role'} {of} " if of else ""
        users = entry.origin == "path"
        detail = f"{entry.version}, {entry.size / 1e6:.0f} MB" if here else "missing"
        if not here:
            detail += f": {entry.version}" if users else ", built on first use"
        found.append(
            requirement(
                f"artifact {entry.name}",
                detail,
                (of,) if of else (),
                ok=here,
                fix="correct the path" if users else f"testbed doctor {option}--fix",
                required=users,
            )
        )
    return found


def _kernel_for(part: str) -> set[str]:
    """Return the kernel features of a lab with an optional part of a role, such as a plugin."""
    if part in ROLES:
        return set()
    return {name for role in _roles() if part in role.includes for name in role.kernel_with(part)}


def _forwarding() -> Requirement:
    path = Path("/proc/sys/net/ipv4/ip_forward")
    on = path.exists() and path.read_text(encoding="utf-8").strip() == "1"
    detail = f"{'on' if on else 'off'}; labs have settings of their own"
    return requirement("ip_forward of the host", detail, (), ok=True, required=False)


def _memory() -> Requirement:
    free = memory.available()
    nodes = free // MEMORY_PER_NODE
    detail = f"{free / GIB:.1f} GiB free, enough for about {nodes} nodes"
    return requirement("memory", detail, ok=nodes >= 4, fix="end other programs", required=False)


def _files() -> Requirement:
    import resource

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    unlimited = hard == resource.RLIM_INFINITY
    return requirement(
        "file descriptors",
        f"{'unlimited' if unlimited else hard} for each process",
        ("docker", "kubernetes"),
        ok=unlimited or hard >= FILES,
        fix=f"ulimit -n {FILES}",
        required=False,
    )


def _disk(name: str, folder: Path) -> Requirement:
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    writable = os.access(place, os.W_OK)
    detail = f"{free / GIB:.1f} GiB free in {folder}" + ("" if writable else ", not writable")
    fix = "free space there, or choose another folder"
    return requirement(name, detail, ok=free >= DISK and writable, fix=fix)


def _install(packages: Sequence[str], say: Callable[[str], None], runner: Runner) -> None:
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    command = ["apt-get", "--yes", "--no-install-recommends", "--quiet", "install", *packages]
    try:
        runner(command, env=env, on_line=say)
    except CommandError:  # most often because the lists are empty or old
        runner(["apt-get", "--quiet", "update"], env=env, on_line=say)
        runner(command, env=env, on_line=say)
