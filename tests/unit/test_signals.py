"""Signals that wait to be asked for."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from testbed import signals
from testbed.errors import Interrupted

NAMES = [signal.Signals(signum).name for signum in signals.ENDING]


@pytest.fixture(autouse=True)
def seen() -> Iterator[list[int]]:
    """Signals that arrive while none are held; our handlers stand in for pytest's."""
    came: list[int] = []

    def note(signum: int, _: Any) -> None:
        came.append(signum)

    before = {signum: signal.signal(signum, note) for signum in signals.ENDING}
    yield came
    for signum, handler in before.items():
        signal.signal(signum, handler)


def send(signum: int) -> None:
    os.kill(os.getpid(), signum)


def test_the_three_that_end_a_program() -> None:
    assert set(NAMES) == {"SIGINT", "SIGTERM", "SIGHUP"}


def test_nothing_came() -> None:
    with signals.held() as held:
        held.check()
    assert held.signum is None


@pytest.mark.parametrize("signum", signals.ENDING, ids=NAMES)
def test_one_that_comes_waits_to_be_asked_for(signum: int, seen: list[int]) -> None:
    with signals.held() as held:
        send(signum)
        assert held.signum == signum
        with pytest.raises(Interrupted) as caught:
            held.check()
    assert caught.value.signum == signum
    assert caught.value.exit_code == 128 + signum
    assert seen == []  # it was ours alone


def test_asking_does_not_forget() -> None:
    with signals.held() as held:
        send(signal.SIGTERM)
        for _ in range(2):
            with pytest.raises(Interrupted):
                held.check()
    with pytest.raises(Interrupted):
        held.check()


def test_the_first_one_counts_and_is_told_once() -> None:
    told: list[int] = []
    with signals.held() as held:
        held.told = told.append
        for signum in (signal.SIGHUP, signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            send(signum)
    assert held.signum == signal.SIGHUP
    assert told == [signal.SIGHUP]


def test_afterwards_signals_do_what_they_did(seen: list[int]) -> None:
    with signals.held():
        pass
    for signum in signals.ENDING:
        send(signum)
    assert seen == list(signals.ENDING)


def test_a_failure_gives_them_back_too(seen: list[int]) -> None:
    with pytest.raises(ZeroDivisionError), signals.held():
        _ = 1 / 0
    send(signal.SIGTERM)
    assert seen == [signal.SIGTERM]


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL])
def test_what_was_ignored_stays_so(handler: signal.Handlers) -> None:
    """As under nohup(1), which has SIGHUP ignored."""
    signal.signal(signal.SIGHUP, handler)
    with signals.held() as held:
        send(signal.SIGHUP)
    assert held.signum == signal.SIGHUP
    assert signal.getsignal(signal.SIGHUP) is handler


def test_a_handler_that_python_did_not_set_becomes_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """signal.signal() says None of it, and takes no None."""
    real = signal.signal
    given: list[Any] = []

    def fake(signum: int, handler: Any) -> Any:
        given.append(handler)
        return None if callable(handler) else real(signum, handler)

    with monkeypatch.context() as patch:
        patch.setattr(signal, "signal", fake)
        with signals.held():
            pass
    assert given[-3:] == [signal.SIG_DFL] * 3


def test_within_each_other_the_inner_one_holds(seen: list[int]) -> None:
    with signals.held() as outer:
        with signals.held() as inner:
            send(signal.SIGTERM)
        assert (outer.signum, inner.signum) == (None, signal.SIGTERM)
        send(signal.SIGINT)
    assert (outer.signum, inner.signum) == (signal.SIGINT, signal.SIGTERM)
    assert seen == []


def test_in_another_thread_nothing_is_held(seen: list[int]) -> None:
    found: list[int | None] = []

    def work() -> None:
        with signals.held() as held:
            signal.raise_signal(signal.SIGTERM)
            held.check()
            found.append(held.signum)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert found == [None]
    assert seen == [signal.SIGTERM]  # the main thread had it, as ever
