"""Acceleration of virtual machines: run by the processor (KVM) or emulated (TCG).

The existence of ``/dev/kvm`` is not enough: some hypervisors offer one that interprets
each instruction.  So a guest of a few instructions is run, for 3 s at most.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from testbed import boot_cache
from testbed.errors import MachineError, TimeoutExpired
from testbed.process import run, which

if TYPE_CHECKING:
    from testbed.artifacts.source import Runner

Kind = Literal["kvm", "tcg"]

DEVICE = Path("/dev/kvm")
MACHINE = "x86_64"  # the processor architecture of boxes
QEMU = f"qemu-system-{MACHINE}"
PACKAGE = "qemu-system-x86"
TIMEOUT = 3.0  # seconds; with an interpreting KVM the guest was never seen to finish
KEPT = "accel"

GUEST_CODE = 0x31
GUEST_SAYS = GUEST_CODE << 1 | 1  # isa-debug-exit's exit status for the value that the guest writes
GUEST_LOOPS = 50_000_000  # a tenth of a second at a processor's own speed, minutes if interpreted
SHORT_LOOPS = 1_000_000  # enough to see that emulation works

CPU: dict[Kind, str] = {
    "kvm": "host",
    # Go programs use AVX at start-up if available, and a kernel copies and clears memory byte by
    # byte with `rep movsb`: TCG is slow at both. Without them, a boot takes two thirds of the time.
    "tcg": "max,-avx,-avx2,-erms,-fsrm",
}
ACCEL: dict[Kind, str] = {
    "kvm": "kvm",
    "tcg": "tcg,thread=multi,tb-size=256",  # MiB of translated code; less is discarded too soon
}
COST: dict[Kind, str] = {
    "kvm": "virtual machines run at nearly native speed",
    "tcg": "virtual machines are emulated: at least ten times slower under load",
}

_trying = threading.Lock()


@dataclass(frozen=True, slots=True)
class Acceleration:
    """The acceleration available on this machine, and how it was determined."""

    kind: Kind
    detail: str  #: result of the test guest, or the reason for not using KVM
    seconds: float  #: duration of the test

    @property
    def cost(self) -> str:
        """The effect on the user's waiting time, in words."""
        return COST[self.kind]

    @property
    def cpu(self) -> tuple[str, ...]:
        """QEMU's options for the processor; a memory snapshot fits only the same ones."""
        return ("-cpu", CPU[self.kind])

    @property
    def machine(self) -> tuple[str, ...]:
        """QEMU's options for the machine and the accelerator; see :attr:`cpu`."""
        return ("-machine", "q35", "-accel", ACCEL[self.kind])


def probe(cache: Path, *, fresh: bool = False, runner: Runner = run) -> Acceleration:
    """Return the acceleration available on this machine.

    It is tested once per boot and kept below the folder ``cache``; ``fresh`` tests it again.
    Raises MachineError if virtual machines cannot run at all.
    """
    qemu = find_qemu()
    about = _about(qemu)
    with _trying:  # a second thread uses the result of the first
        kept = None if fresh else boot_cache.recall(cache, KEPT)
        if isinstance(kept, dict) and kept.get("about") == about:
            return Acceleration(**kept["answer"])
        answer = _try(qemu, runner)
        boot_cache.keep(cache, KEPT, {"about": about, "answer": asdict(answer)})
        return answer


def lacking() -> dict[str, str]:
    """Return programs missing for running virtual machines, each with its Debian package."""
    return {} if which(QEMU) else {QEMU: PACKAGE}


def find_qemu() -> str:
    """Return the path of QEMU.  Raises MachineError if it is missing or unsupported here."""
    if os.uname().machine != MACHINE:
        raise MachineError(
            f"virtual machines need {MACHINE}, but this machine is {os.uname().machine}",
            hint="use the provider netns",
        )
    qemu = which(QEMU)
    if qemu is None:
        raise MachineError(
            f"{QEMU} is missing; only virtual machines need it",
            hint=f"apt-get install -y --no-install-recommends {PACKAGE}",
        )
    return qemu


def guest(seconds: float, kind: Kind, *, qemu: str, runner: Runner = run) -> tuple[bool, str]:
    """Run the test guest; return whether it succeeded, and a description of the result."""
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
            return False, f"a guest was too slow: it did not count to {loops} in {seconds:g} s"
    if answer.status != GUEST_SAYS:
        said = (answer.stderr.strip().splitlines() or [f"status {answer.status}"])[-1]
        return False, f"a guest did not run: {said}"
    return True, f"a guest ran in {time.monotonic() - begin:.2f} s"


def bios_image(loops: int = GUEST_LOOPS) -> bytes:
    """Return a 64 KiB BIOS that counts to ``loops`` and then writes GUEST_CODE to port 0xf4."""
    code = b"\x66\xb9" + loops.to_bytes(4, "little")  # mov ecx, loops
    code += b"\x67\xe2\xfd"  # loop to itself, counting in ecx
    code += bytes((0xB0, GUEST_CODE, 0xE6, 0xF4, 0xF4))  # mov al, GUEST_CODE; out 0xf4, al; hlt
    image = bytearray(b"\xf4" * 0x10000)  # hlt at every other address
    image[0xFF00 : 0xFF00 + len(code)] = code
    image[0xFFF0:0xFFF3] = b"\xe9" + (0xFF00 - 0xFFF3 & 0xFFFF).to_bytes(2, "little")  # jmp there
    return bytes(image)


def _try(qemu: str, runner: Runner) -> Acceleration:
    begin = time.monotonic()
    if not DEVICE.exists():
        why = f"{DEVICE} does not exist"
    elif not os.access(DEVICE, os.R_OK | os.W_OK):
        why = f"this user has no permission to open {DEVICE}"
    else:
        ran, said = guest(TIMEOUT, "kvm", qemu=qemu, runner=runner)
        if ran:
            return Acceleration("kvm", said, time.monotonic() - begin)
        why = f"{DEVICE} exists, but {said}"
    # Emulation normally takes less than a second; a busy machine may need many.
    ran, said = guest(10 * TIMEOUT, "tcg", qemu=qemu, runner=runner)
    if not ran:
        raise MachineError(f"QEMU cannot run a guest: emulated, {said}", hint=f"try: {qemu}")
    return Acceleration("tcg", f"{why}; emulated, {said}", time.monotonic() - begin)


def _about(qemu: str) -> list[object]:
    """Return the properties that the result depends on, apart from the boot."""
    status = Path(qemu).stat()
    may = os.access(DEVICE, os.R_OK | os.W_OK)
    return [qemu, status.st_size, status.st_mtime_ns, DEVICE.exists(), may]
