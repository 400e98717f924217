"""The value of the fixture ``fault``: breaks a lab, and heals it."""

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
    """Causes faults, and heals those that it has caused."""

    def __init__(self, lab: LiveLab, faults: Faults) -> None:
        self._lab = lab
        self._faults = faults
        self._done: list[Fault] = []

    def __call__(self, words: str) -> Fault:
        """Cause a fault, given by its words or by its name in the topology.

        Skip the test, with the reason, if the machine lacks a requirement of the fault.
        """
        fault = fault_of(words, self._lab.topology)
        self._done.append(fault)  # first, so that an interrupted fault is healed too
        try:
            if not self._faults.apply(fault):
                self._done.remove(fault)  # it was active before, so it is not healed here
        except MachineError as error:  # nothing has been changed
            self._done.remove(fault)
            pytest.skip(str(error))
        return fault

    def heal(self) -> None:
        """Heal the faults caused so far."""
        keys = {fault.key for fault in self._done}
        if keys:
            self._faults.heal(lambda fault: fault.key in keys, kinds={kind for kind, *_ in keys})
            self._lab.close()  # a restarted engine requires a new connection
        self._done.clear()
