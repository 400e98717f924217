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

from testbed import memory, owner
from testbed.artifacts.cc import CProgram
from testbed.artifacts.gomod import GoModule, go_on_path, has_library
from testbed.errors import CommandError, MachineError
from testbed.kernel import features
from testbed.process import run, which
from testbed.progress import Tell, silent
from testbed.registry import PROVIDERS, ROLES
from testbed.requirement import INSTALL, LABS, merge, program, requirement

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from testbed.artifacts import Store
    from testbed.artifacts.source import Runner, Source
    from testbed.artifacts.store import Entry
    from testbed.nodes.base import Provider
    from testbed.requirement import Requirement
    from testbed.roles.base import Role

KERNEL = (5, 12)  # for mount_setattr(2), which makes the machine's files read-only on a node
INIT = "testbed-init"  # pid 1 of namespaces, which every lab has
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


#: Those of testbed itself; roles declare theirs (:attr:`testbed.roles.base.Role.programs`).
TOOLS = (
    Tool("ip", "iproute2"),
    Tool("nsenter", "util-linux"),
    Tool("unshare", "util-linux"),
    Tool("mount", "mount"),  # not part of a minimal Debian 13
    Tool("nft", "nftables", ("faults of links",), required=False),
    Tool("tcpdump", "tcpdump", ("captures",)),
    Tool("conntrack", "conntrack", ("checks of connection tracking",), required=False),
    Tool("ping", "iputils-ping", ("checks",)),
    Tool("curl", "curl", ("checks",)),
    Tool("iperf3", "iperf3", ("measurements",), required=False),
    Tool("strace", "strace", ("checks of system calls",), required=False),
    Tool("apt-get", "apt", ("programs and images of Debian packages",)),
    Tool("dpkg-deb", "dpkg", ("programs and images of Debian packages",)),
    Tool("skopeo", "skopeo", ("images of registries",), required=False),
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
    asked = set(_needed(role, provider))
    found = [_root(), _kernel(), *_features(runner), *(_found(tool) for tool in tools())]
    entries = store.list()
    found += [_compiler(entries, runner), *_headers(runner), _go(entries)]
    found = [*merge([*found, *_roles_own(store, asked)]), *_artifacts(store, entries)]
    found += [_forwarding(), _memory(), _files(), _disk("disk for the cache", store.folder)]
    found += [_disk("disk for labs", state)] if state else []
    found = [
        replace(item, required=item.required or not asked.isdisjoint(item.needed_by))
        for item in found
    ]
    if provider is not None:
        wanted = provider.kernel
        found = [replace(item, required=item.required or item.name in wanted) for item in found]
        known = {item.name for item in found}
        return [*found, *(item for item in provider.probe() if item.name not in known)]
    summaries = (
        item
        for one in PROVIDERS.usable().values()
        for item in one.summary(store.folder, full=full, runner=runner)
    )
    return [*found, *(replace(item, required=False) for item in merge(summaries))]


def tools() -> list[Tool]:
    """Return the programs that labs and checks run on this machine: ours, and those of roles."""
    roles = (
        Tool(name, package, (role.name,), required=not role.on_request)
        for role in _roles()
        for name, package in role.programs.items()
    )
    return [*TOOLS, *roles]


def _needed(role: str, provider: Provider | None) -> tuple[str, ...]:
    """Return the roles and the provider whose requirements count as required."""
    maker = () if provider is None else (provider.name,)
    return (*(needed_with(role) if role else ()), *maker)


def needed_with(software: str) -> tuple[str, ...]:
    """Return a role, or an optional part of one, with the roles that it requires.

    >>> needed_with("ingress"), needed_with("docker")
    (('ingress', 'kubernetes'), ('docker',))
    """
    if software in ROLES:  # also where an optional part of another role has its name
        return (software,)
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


def _found(tool: Tool) -> Requirement:
    return program(tool.name, tool.package, tool.needed_by, required=tool.required)


def _features(runner: Runner) -> list[Requirement]:
    """Try the kernel features, and add their users: roles, parts of roles, and providers."""
    users: dict[str, list[str]] = {}
    required = set()
    for role in _roles():
        for name in role.kernel:
            users.setdefault(name, []).append(role.name)
        required |= set() if role.on_request else set(role.kernel)
        for name, words in role.optional_kernel.items():
            users.setdefault(name, []).append(words)
        for part in role.includes:
            for name in sorted(set(role.kernel_with(part)) - set(role.kernel)):
                words = f"{part} of {role.name}" if part in ROLES else part
                users.setdefault(name, []).append(words)
    for provider in PROVIDERS.usable().values():
        for name in provider.kernel:
            users.setdefault(name, []).append(f"provider {provider.name}")
    return [
        replace(
            item,
            needed_by=(*item.needed_by, *dict.fromkeys(users.get(item.name, ()))),
            required=item.required or item.name in required,
        )
        for item in features(runner)
    ]


def _roles_own(store: Store, asked: Collection[str]) -> Iterator[Requirement]:
    """Yield the requirements that roles check themselves."""
    for role in _roles():
        for item in role.requirements(store):
            optional = role.on_request and role.name not in asked
            yield replace(item, required=False) if optional else item


def _compiler(entries: Sequence[Entry], runner: Runner) -> Requirement:
    from testbed.artifacts.inventory import INVENTORY

    compiler = which("cc") or which("gcc")
    missing = {entry.name for entry in entries if entry.state == "missing"}
    detail = "not found"
    ok = False
    if compiler:
        with tempfile.TemporaryDirectory(prefix="testbed-cc-") as folder:
            source = Path(folder) / "try.c"
            source.write_text("#include <stdio.h>\n#include <linux/if_tun.h>\nint main(void){}\n")
            answer = runner([compiler, "-fsyntax-only", source], check=False, timeout=30)
        ok = answer.status == 0
        detail = compiler if ok else f"{compiler} finds no headers of the C library or the kernel"
    in_c = _usual(lambda one: isinstance(one, CProgram) or bool(getattr(one, "cgo", "")))
    basic = {INVENTORY.programs.get(name) for name in (INIT, *_artifacts_of_roles())} & {*in_c}
    return requirement(
        "C compiler",
        detail,
        tuple(in_c),
        ok=ok,
        required=bool(missing & basic),
        packages=("gcc", "libc6-dev"),
    )


def _artifacts_of_roles() -> list[str]:
    """Return the programs that labs with the usual roles always need."""
    return [name for role in _roles() if not role.on_request for name in role.artifacts]


def _usual(wanted: Callable[[Source], bool]) -> list[str]:
    """Return the artifacts with such a source, without those that few labs need."""
    from testbed.artifacts.inventory import INVENTORY

    few = {*INVENTORY.roles, *INVENTORY.tools}
    return [name for name, one in INVENTORY.parts.items() if name not in few and wanted(one)]


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
                    (f"building {name}",),
                    ok=ok,
                    required=False,
                    packages=("pkg-config", package),
                )
            )
    return found


def _go(entries: Sequence[Entry]) -> Requirement:
    present = go_on_path()
    version = ".".join(map(str, present[1])) if present else ""
    detail = f"{version} ({present[0]})" if present else "none on PATH"
    modules = _usual(lambda one: isinstance(one, GoModule))
    if {entry.name for entry in entries if entry.state == "missing"} & {*modules}:
        detail += "; a later one is fetched from PyPI if a program needs it"
    return requirement("Go", detail, tuple(modules), ok=True, required=False)


def _artifacts(store: Store, entries: Sequence[Entry]) -> list[Requirement]:
    """Return a line for each artifact; entries of one name, and all old ones, share a line."""
    found = []
    alike: dict[str, list[Entry]] = {}
    for entry in entries:
        of = store.role_of(entry.name)
        if entry.state == "old" or (entry.name in store.unasked({of})):
            continue
        alike.setdefault(entry.name, []).append(entry)
    for name, some in alike.items():
        entry, of = some[0], store.role_of(name)
        if len(some) > 1:
            found.append(_several(f"artifact {name}", some, (of,) if of else ()))
            continue
        here = entry.state == "cached"
        option = f"--{'provider' if of in PROVIDERS else 'role'} {of} " if of else ""
        users = entry.origin == "path"
        detail = f"{entry.described}, {entry.size / 1e6:.0f} MB" if here else "missing"
        if not here:
            made = "downloaded or built" if entry.published else "built"
            detail += f": {entry.version}" if users else f", {made} on first use"
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
    if old := [entry for entry in entries if entry.state == "old"]:
        found.append(_several("old artifacts", old, (), "; `testbed artifacts prune` lists them"))
    return found


def _several(
    name: str, entries: Sequence[Entry], needed_by: tuple[str, ...], more: str = ""
) -> Requirement:
    """Return one line for several entries of the cache."""
    size = sum(entry.size for entry in entries) / 1e6
    detail = f"{len(entries)} in the cache, {size:.0f} MB{more}"
    return requirement(name, detail, needed_by, ok=True, required=False)


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
        ("daemons",),
        ok=unlimited or hard >= FILES,
        fix=f"ulimit -n {FILES}",
        required=False,
    )


def _disk(name: str, folder: Path) -> Requirement:
    place = owner.existing(folder)
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
