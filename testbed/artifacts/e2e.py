"""Kubernetes' own end-to-end tests: the test binary, its runner, and the images that it uses.

The images have upstream's names and contain upstream's programs that the network tests need:
agnhost of the same module, and the tools of its Dockerfile from Debian's packages (test/images
in k8s.io/kubernetes).  Upstream's images that are built on Alpine use musl; these use glibc.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from testbed.artifacts.gomod import GoModule
from testbed.artifacts.image import APPLETS, KERNEL, NSSWITCH, PATH, Content
from testbed.artifacts.package_image import PackageImage
from testbed.artifacts.plain_image import PlainImage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from testbed.artifacts.cc import CProgram
    from testbed.artifacts.source import Source

#: Images that tests/e2e uses, for the version in go.mod (test/utils/image/manifest.go).  Before
#: each run the suite is asked for its list, so that a change in a new version is noticed.
AGNHOST = "registry.k8s.io/e2e-test-images/agnhost:2.63.0"
GLIBC_DNS = "registry.k8s.io/e2e-test-images/glibc-dns-testing:2.0.0"
PAUSE = "registry.k8s.io/pause:3.10.2"
#: Part in the inventory of each image.
IMAGES: Mapping[str, str] = {
    AGNHOST: "agnhost-image",
    GLIBC_DNS: "glibc-dns-image",
    PAUSE: "e2e-pause-image",
}

SUITE = GoModule(
    module="kubernetes",
    packages={
        "agnhost": "k8s.io/kubernetes/test/images/agnhost",
        "ginkgo": "github.com/onsi/ginkgo/v2/ginkgo",
    },
    tests={"e2e.test": "k8s.io/kubernetes/test/e2e"},
    files={
        f"localhost.{kind}": f"test/images/agnhost/porter/localhost.{kind}"
        for kind in ("crt", "key")
    },
    main="k8s.io/kubernetes",
    stamp=("k8s.io/component-base/version.gitVersion", "k8s.io/client-go/pkg/version.gitVersion"),
)
#: Tools from separate packages; all others are busybox's, as in Alpine.
REAL = frozenset({"hostname", "nc", "nslookup"})
AGNHOST_CONTENT = Content(
    {
        "busybox": ("bin/busybox",),
        "bash": ("bin/bash",),
        "bind9-dnsutils": ("usr/bin/dig", "usr/bin/nslookup"),
        "bind9-host": ("usr/bin/host",),
        "curl": ("usr/bin/curl",),
        "hostname": ("bin/hostname",),
        "iperf": ("usr/bin/iperf",),
        "iproute2": ("bin/ip", "bin/ss"),
        "libc-bin": ("usr/bin/getent",),
        "netcat-openbsd": ("bin/nc.openbsd",),
        "util-linux": ("usr/bin/ipcs",),
    },
    applets=sorted({*APPLETS, "wget"} - REAL),
    links={
        "usr/bin/nc": "nc.openbsd",
        "usr/local/bin/iperf": "/usr/bin/iperf",
        "agnhost-2": "agnhost",
    },
    files={
        # A test asks for the user's groups.
        "etc/passwd": (
            0o644,
            "root:x:0:0:root:/root:/bin/sh\n"
            "user-defined-in-image:x:1000:1000::/home:/bin/sh\n"
            "nobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
        ),
        "etc/group": (
            0o644,
            "root:x:0:\nuser-defined-in-image:x:1000:\n"
            "group-defined-in-image:x:50000:user-defined-in-image\nnogroup:x:65534:\n",
        ),
        "etc/nsswitch.conf": NSSWITCH,
    },
    folders=(*KERNEL, "uploads", "usr/local/bin"),
)
GLIBC_DNS_CONTENT = Content(
    {
        "dash": ("bin/dash",),
        "bash": ("bin/bash",),
        "bind9-dnsutils": ("usr/bin/dig", "usr/bin/nslookup"),
        "bind9-host": ("usr/bin/host",),
        "coreutils": tuple(
            f"{'usr/bin' if name in {'env', 'head', 'id', 'seq', 'tail', 'test', 'wc'} else 'bin'}"
            f"/{name}"
            for name in (
                "cat", "cp", "date", "echo", "env", "false", "head", "id", "ls", "mkdir", "mv",
                "rm", "seq", "sleep", "tail", "test", "touch", "true", "uname", "wc",
            )
        ),
        "grep": ("bin/grep",),
        "hostname": ("bin/hostname",),
        "libc-bin": ("usr/bin/getent",),
        "mawk": ("usr/bin/mawk",),
        "sed": ("bin/sed",),
    },
    links={"usr/bin/sh": "dash", "usr/bin/awk": "mawk"},
    files={
        "etc/passwd": (0o644, "root:x:0:0:root:/root:/bin/bash\n"),
        "etc/group": (0o644, "root:x:0:\n"),
        "etc/nsswitch.conf": NSSWITCH,
    },
    folders=KERNEL,
)  # fmt: skip


def parts(pause: CProgram) -> Mapping[str, Source]:
    """Return the parts of the group; ``pause`` is the program of the cluster's own Pods."""
    return {
        "e2e": SUITE,
        IMAGES[AGNHOST]: PackageImage(
            AGNHOST,
            AGNHOST_CONTENT,
            {
                "Entrypoint": ["/agnhost"],
                "Cmd": ["pause"],
                "Env": [PATH],
                "ExposedPorts": {f"{port}/tcp": {} for port in (80, 5000, 8080, 8081, 9376)},
                "WorkingDir": "/",
            },
            part="e2e",
            source=SUITE,
            copied={
                "agnhost": "bin/agnhost",
                "localhost.crt": "localhost.crt",
                "localhost.key": "localhost.key",
            },
        ),
        IMAGES[GLIBC_DNS]: PackageImage(
            GLIBC_DNS,
            GLIBC_DNS_CONTENT,
            {"Cmd": ["bash"], "Env": [PATH], "WorkingDir": "/"},
        ),
        IMAGES[PAUSE]: PlainImage(PAUSE, "pause", pause, {"pause": "pause"}, ["/pause"]),
    }
