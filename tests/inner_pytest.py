"""A pytest within a pytest: it leaves nothing in this process."""

from __future__ import annotations

import contextlib
import gc
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from testbed import pytest_plugin
from testbed.topology.load import load

if TYPE_CHECKING:
    import pytest

HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class FakeLab:
    """All that the runner and the plugin ask of a LiveLab."""

    name = "two-node"
    facts: ClassVar[dict[str, str]] = {"docker": "20.10.24"}

    def __init__(self, topology: str = "two-node") -> None:
        self.topology = load(topology)


@contextlib.contextmanager
def kept_apart(*beginnings: str) -> Iterator[None]:
    """Put back modules, paths and handlers of signals after the block.

    Modules whose names begin with ``test_``, ``conftest`` or one of ``beginnings`` are forgotten.
    """
    gc.freeze()  # for pytest collects garbage as it ends; what is there by now stays
    modules, path = set(sys.modules), list(sys.path)
    handlers = {signum: signal.getsignal(signum) for signum in HANDLED}
    yield
    for name in set(sys.modules) - modules:
        if name.startswith(("test_", "conftest", *beginnings)):
            del sys.modules[name]
    sys.path[:] = path
    now = {signum: signal.getsignal(signum) for signum in HANDLED}
    for signum, handler in handlers.items():
        signal.signal(signum, handler)
    assert now == handlers, "the handlers of signals are put back"


def plain_pytest(
    pytester: pytest.Pytester, patch: pytest.MonkeyPatch, *argv: str, **env: str
) -> pytest.RunResult:
    """Run pytest with our plugin in the folder of ``pytester``, as a user does, in this process.

    ``env`` are variables of this run and of all that follow in the test.
    """
    patch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # others' plugins take their time
    patch.delenv("TESTBED_LAB", raising=False)
    for name, value in env.items():
        patch.setenv(name, value)
    off = ("-p", "no:cacheprovider", "-p", "no:unraisableexception")
    here = ("--rootdir", ".", "--confcutdir", ".")
    return pytester.runpytest_inprocess("-q", *off, *here, *argv, plugins=[pytest_plugin])
