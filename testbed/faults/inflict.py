"""The value of the fixture ``fault``: breaks a lab in a test, and heals it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from testbed.errors import MachineError
from testbed.faults.force import fault_of

if TYPE_CHECKING:
    from testbed.faults.force import Faults
    from testbed.faults.model import Fault
    from testbed.labs.live import LiveLab


class Inflict:
    """Brings faults about, and heals those that it has."""

    def __init__(self, lab: LiveLab, faults: Faults) -> None:
        self._lab = lab
        self._faults = faults
        self._done: list[Fault] = []

    def __call__(self, words: str) -> Fault:
        """Bring a fault about, by its words or by its name in the topology.

        Skips the test, and says why, where the machine lacks what it takes.
        """
        fault = fault_of(words, self._lab.topology)
        self._done.append(fault)  # first: what is cut off half-way is healed, too
        try:
            if not self._faults.apply(fault):
                self._done.remove(fault)  # it was there before, and is not ours to heal
        except MachineError as error:  # nothing has been changed
            self._done.remove(fault)
            pytest.skip(str(error))
        return fault

    def heal(self) -> None:
        """Undo what has been done so far."""
        keys = {fault.key for fault in self._done}
        if keys:
            self._faults.heal(lambda fault: fault.key in keys, kinds={kind for kind, *_ in keys})
            self._lab.close()  # an engine that was started again wants a new connection
        self._done.clear()
