"""Choice between KVM and emulation, with a stand-in for QEMU."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from testbed import boot_cache
from testbed.errors import MachineError, TimeoutExpired
from testbed.process import Completed
from testbed.vm import accel


class Qemu:
    """Answers by accelerator; notes what was run."""

    def __init__(self) -> None:
        self.answers: dict[str, Completed | Exception] = {
            "kvm": said(accel.GUEST_SAYS),
            "tcg": said(accel.GUEST_SAYS),
        }
        self.calls: list[list[str]] = []
        self.limits: list[float | None] = []

    def __call__(
        self, argv: Sequence[str | Path], *, timeout: float | None = None, **_: Any
    ) -> Completed:
        words = [str(word) for word in argv]
        assert Path(words[words.index("-bios") + 1]).stat().st_size == 0x10000
        self.calls.append(words)
        self.limits.append(timeout)
        answer = self.answers[words[words.index("-accel") + 1]]
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def tried(self) -> list[str]:
        return [call[call.index("-accel") + 1] for call in self.calls]


def said(status: int, err: str = "") -> Completed:
    return Completed((), status, b"", err.encode())


@pytest.fixture
def qemu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Qemu:
    program, device, boot_id = tmp_path / "qemu", tmp_path / "kvm", tmp_path / "boot_id"
    for path in (program, device):
        path.touch(0o700)
    boot_id.write_text("first\n")
    monkeypatch.setattr(accel, "which", lambda _: str(program))
    monkeypatch.setattr(accel, "DEVICE", device)
    monkeypatch.setattr(accel, "MACHINE", os.uname().machine)
    monkeypatch.setattr(boot_cache, "BOOT_ID", boot_id)
    return Qemu()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_kvm_is_used_where_a_guest_ran_under_it(qemu: Qemu, cache: Path) -> None:
    answer = accel.probe(cache, runner=qemu)
    assert answer.kind == "kvm"
    assert "a guest ran in" in answer.detail
    assert "host" in answer.cpu
    assert "kvm" in answer.machine
    assert qemu.tried == ["kvm"]
    assert qemu.limits == [accel.TIMEOUT]
    assert not Path(qemu.calls[0][qemu.calls[0].index("-bios") + 1]).exists()


@pytest.mark.parametrize(
    ("kvm", "why"),
    [
        (TimeoutExpired("no"), "did not count to"),
        (said(1, "x\nCould not access KVM"), "Could not access KVM"),
        (said(-6), "status -6"),
        (said(0), "status 0"),
    ],
)
def test_else_it_is_emulated_and_says_why(
    qemu: Qemu, cache: Path, kvm: Completed | Exception, why: str
) -> None:
    qemu.answers["kvm"] = kvm
    answer = accel.probe(cache, runner=qemu)
    assert answer.kind == "tcg"
    assert why in answer.detail
    assert "slower" in answer.cost
    assert any("tcg" in word for word in answer.machine)
    assert qemu.tried == ["kvm", "tcg"]


def test_without_a_device_kvm_is_not_tried(qemu: Qemu, cache: Path) -> None:
    accel.DEVICE.unlink()
    assert accel.probe(cache, runner=qemu).detail.startswith(str(accel.DEVICE))
    assert qemu.tried == ["tcg"]


def test_a_qemu_that_runs_nothing_is_an_error(qemu: Qemu, cache: Path) -> None:
    qemu.answers = {"kvm": said(1), "tcg": said(127, "libpixman-1.so.0: not found")}
    with pytest.raises(MachineError, match="libpixman"):
        accel.probe(cache, runner=qemu)
    assert boot_cache.recall(cache, accel.KEPT) is None


def test_no_qemu_is_an_error_that_says_how_to_get_it(
    qemu: Qemu, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accel, "which", lambda _: None)
    with pytest.raises(MachineError, match="qemu") as caught:
        accel.probe(cache, runner=qemu)
    assert accel.PACKAGE in str(caught.value.hint)


def test_another_processor_is_an_error(
    qemu: Qemu, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accel, "MACHINE", "pdp11")
    with pytest.raises(MachineError, match="pdp11"):
        accel.probe(cache, runner=qemu)


def test_the_answer_is_kept_for_the_boot(qemu: Qemu, cache: Path) -> None:
    first = accel.probe(cache, runner=qemu)
    assert accel.probe(cache, runner=qemu) == first
    assert len(qemu.calls) == 1
    accel.probe(cache, fresh=True, runner=qemu)
    assert len(qemu.calls) == 2
    boot_cache.BOOT_ID.write_text("second\n")
    accel.probe(cache, runner=qemu)
    assert len(qemu.calls) == 3


def test_many_that_ask_at_once_wait_for_one_trial(qemu: Qemu, cache: Path) -> None:
    begin = threading.Barrier(6)

    def slow(*given: Any, **more: Any) -> Completed:
        time.sleep(0.1)
        return qemu(*given, **more)

    def ask(_: int) -> str:
        begin.wait()
        return accel.probe(cache, runner=slow).kind

    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(ask, range(6))) == {"kvm"}
    assert qemu.tried == ["kvm"]


def test_another_qemu_or_a_device_that_goes_is_tried_anew(qemu: Qemu, cache: Path) -> None:
    accel.probe(cache, runner=qemu)
    Path(accel.find_qemu()).write_text("a later release")
    accel.probe(cache, runner=qemu)
    assert len(qemu.calls) == 2
    accel.DEVICE.unlink()
    assert accel.probe(cache, runner=qemu).kind == "tcg"


def test_the_guest_is_a_bios_that_starts_at_its_reset_vector() -> None:
    image = accel.bios_image()
    assert len(image) == 0x10000
    assert image[0xFFF0] == 0xE9  # jmp rel16, counted from the next instruction
    offset = int.from_bytes(image[0xFFF1:0xFFF3], "little", signed=True)
    assert 0xFFF3 + offset == 0xFF00
    assert bytes((0xB0, accel.GUEST_CODE, 0xE6, 0xF4)) in image[0xFF00:0xFF20]
