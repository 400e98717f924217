"""Whether virtual machines run on the processor itself (KVM) or are emulated (TCG).

``/dev/kvm`` alone says little: some hypervisors offer one that interprets each
instruction.  So a guest of a few instructions is really run, for 3 s at most.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from testbed import boot
from testbed.errors import MachineError, TimeoutExpired
from testbed.process import run, which

if TYPE_CHECKING:
    from testbed.artifacts.source import Runner

Kind = Literal["kvm", "tcg"]

DEVICE = Path("/dev/kvm")
MACHINE = "x86_64"  # what boxes are made for
QEMU = f"qemu-system-{MACHINE}"
PACKAGE = "qemu-system-x86"
TIMEOUT = 3.0  # seconds; one that emulates KVM was never seen to end
KEPT = "accel"

GUEST_CODE = 0x31
GUEST_SAYS = GUEST_CODE << 1 | 1  # how isa-debug-exit makes an exit status of what a guest writes
GUEST_LOOPS = 50_000_000  # a tenth of a second at a processor's own speed, minutes if interpreted
SHORT_LOOPS = 1_000_000  # enough to see that emulation works

CPU: dict[Kind, str] = {
    "kvm": "host",
    # Go's start-up chooses AVX where it can, and a kernel copies and clears memory octet by octet
    # with `rep movsb`: TCG is slow at both. Without, a boot takes two thirds of the time.
    "tcg": "max,-avx,-avx2,-erms,-fsrm",
}
ACCEL: dict[Kind, str] = {
    "kvm": "kvm",
    "tcg": "tcg,thread=multi,tb-size=256",  # MiB of translated code, or it is thrown away too soon
}
COST: dict[Kind, str] = {
    "kvm": "virtual machines run at about the machine's own speed",
    "tcg": "virtual machines are emulated: ten times slower and more, where there is much to do",
}

_trying = threading.Lock()


@dataclass(frozen=True, slots=True)
class Acceleration:
    """What virtual machines run on here, and how it was found out."""

    kind: Kind
    detail: str  #: what the guest did, or why there is no KVM
    seconds: float  #: that the trial took

    @property
    def cost(self) -> str:
        """What it means for whoever waits."""
        return COST[self.kind]

    @property
    def cpu(self) -> tuple[str, ...]:
        """QEMU's options for the processor; part of what a memory snapshot belongs to."""
        return ("-cpu", CPU[self.kind])

    @property
    def machine(self) -> tuple[str, ...]:
        """QEMU's options for the machine and the accelerator; as :attr:`cpu`."""
        return ("-machine", "q35", "-accel", ACCEL[self.kind])


def probe(cache: Path, *, fresh: bool = False, runner: Runner = run) -> Acceleration:
    """What virtual machines run on here; tried once a boot, and again when ``fresh``.

    Raises MachineError where no virtual machine can run at all.
    """
    qemu = find_qemu()
    about = _about(qemu)
    with _trying:  # who comes second has the answer of the first
        kept = None if fresh else boot.recall(cache, KEPT)
        if isinstance(kept, dict) and kept.get("about") == about:
            return Acceleration(**kept["answer"])
        answer = _try(qemu, runner)
        boot.keep(cache, KEPT, {"about": about, "answer": asdict(answer)})
        return answer


def lacking() -> dict[str, str]:
    """What this machine lacks for the running of virtual machines, each with its package."""
    return {} if which(QEMU) else {QEMU: PACKAGE}


def find_qemu() -> str:
    """The path of QEMU.  Raises MachineError where there is none for this machine."""
    if os.uname().machine != MACHINE:
        raise MachineError(
            f"virtual machines are made for {MACHINE} only, and this is {os.uname().machine}",
            hint="use the provider netns",
        )
    qemu = which(QEMU)
    if qemu is None:
        raise MachineError(
            f"there is no {QEMU}; only virtual machines need it",
            hint=f"apt-get install -y --no-install-recommends {PACKAGE}",
        )
    return qemu


def guest(seconds: float, kind: Kind, *, qemu: str, runner: Runner = run) -> tuple[bool, str]:
    """Run the guest; whether it did what it is to do, and in words what it did."""
    loops = GUEST_LOOPS if kind == "kvm" else SHORT_LOOPS
    with tempfile.TemporaryDirectory(prefix="testbed-accel-") as folder:
        bios = Path(folder) / "bios"
        bios.write_bytes(bios_image(loops))
        command = [
            qemu, "-accel", kind, "-machine", "q35", "-cpu", CPU[kind].partition(",")[0],
            "-m", "16", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-bios", str(bios), "-device", "isa-debug-exit,iobase=0xf4,iosize=1",
        ]  # fmt: skip
        begin = time.monotonic()
        try:
            answer = runner(command, timeout=seconds, check=False)
        except TimeoutExpired:
            return False, f"a guest did not count to {loops} in {seconds:g} s"
    if answer.status != GUEST_SAYS:
        said = (answer.stderr.strip().splitlines() or [f"status {answer.status}"])[-1]
        return False, f"a guest did not run: {said}"
    return True, f"a guest ran in {time.monotonic() - begin:.2f} s"


def bios_image(loops: int = GUEST_LOOPS) -> bytes:
    """A 64 KiB BIOS that counts to ``loops`` and then writes GUEST_CODE to port 0xf4."""
    code = b"\x66\xb9" + loops.to_bytes(4, "little")  # mov ecx, loops
    code += b"\x67\xe2\xfd"  # loop to itself, counting in ecx
    code += bytes((0xB0, GUEST_CODE, 0xE6, 0xF4, 0xF4))  # mov al, GUEST_CODE; out 0xf4, al; hlt
    image = bytearray(b"\xf4" * 0x10000)  # hlt, wherever it should stray to
    image[0xFF00 : 0xFF00 + len(code)] = code
    image[0xFFF0:0xFFF3] = b"\xe9" + (0xFF00 - 0xFFF3 & 0xFFFF).to_bytes(2, "little")  # jmp there
    return bytes(image)


def _try(qemu: str, runner: Runner) -> Acceleration:
    begin = time.monotonic()
    if not DEVICE.exists():
        why = f"there is no {DEVICE}"
    elif not os.access(DEVICE, os.R_OK | os.W_OK):
        why = f"{DEVICE} is there, yet this user may not open it"
    else:
        ran, said = guest(TIMEOUT, "kvm", qemu=qemu, runner=runner)
        if ran:
            return Acceleration("kvm", said, time.monotonic() - begin)
        why = f"{DEVICE} is there, yet {said}"
    # Emulated, a second is a lot; a busy machine may need many.
    ran, said = guest(10 * TIMEOUT, "tcg", qemu=qemu, runner=runner)
    if not ran:
        raise MachineError(f"QEMU runs no guest at all: emulated, {said}", hint=f"try: {qemu}")
    return Acceleration("tcg", f"{why}; emulated, {said}", time.monotonic() - begin)


def _about(qemu: str) -> list[object]:
    """What the answer depends on, beside the boot."""
    status = Path(qemu).stat()
    may = os.access(DEVICE, os.R_OK | os.W_OK)
    return [qemu, status.st_size, status.st_mtime_ns, DEVICE.exists(), may]
