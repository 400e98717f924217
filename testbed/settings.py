"""Settings of the commands and the pytest plugin, from the environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from testbed import limits, registry
from testbed.artifacts import Store
from testbed.errors import UsageError
from testbed.labs.lab import Settings
from testbed.labs.state import State, folder
from testbed.nodes.base import Setup
from testbed.progress import Tell, silent

if TYPE_CHECKING:
    from testbed.artifacts.config import Policy
    from testbed.artifacts.source import Preference


def settings(
    *,
    overrides: Mapping[str, str] | None = None,
    pull: Policy | None = None,
    images_from: Sequence[str] = (),
    way: Preference | None = None,
    progress: Tell = silent,
    config: Path | None = None,
    state_folder: Path | None = None,
    chosen: Mapping[str, str] | None = None,
) -> Settings:
    """Return the settings of this user; files are read and created only when needed.

    This process's limits are raised as far as permitted: a lab may need more than the limits of
    a login session.

    ``overrides``, ``pull``, ``images_from``, ``way`` and ``progress`` are passed to the store (see
    :class:`testbed.artifacts.Store`);
    ``state_folder`` replaces the user's own; ``chosen`` has the values of providers' options
    (:class:`testbed.nodes.base.Setup`).  Raises UsageError for a relative path if the
    current folder was deleted.
    """
    limits.raise_soft()
    try:
        store = Store(
            overrides=overrides,
            config=config,
            progress=progress,
            pull=pull,
            images_from=images_from,
            way=way,
        )
        state = State(state_folder or folder())
    except FileNotFoundError:
        raise UsageError(
            "a relative path cannot be resolved: the current folder was deleted",
            hint="change to another folder (cd), or use absolute paths (TESTBED_STATE, ...)",
        ) from None
    setup = Setup(state.path, store, chosen or {})
    return Settings(
        state=state,
        store=store,
        providers={name: kind.of(setup) for name, kind in registry.PROVIDERS.usable().items()},
        broken=registry.PROVIDERS.broken(),
    )
