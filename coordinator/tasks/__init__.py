"""The tasks, one file each. To add one: its file, its test, and its line in `REGISTRY`."""

from __future__ import annotations

from importlib import import_module

from umbel.coordinator.tasks.base import AbstractTask
from umbel.shared.errors import ConfigError

REGISTRY: dict[str, str] = {
    "classification": "umbel.coordinator.tasks.classification:Classification",
}


def task_class(kind: str) -> type[AbstractTask]:
    """Returns the class of a registered task.

    Raises:
        ConfigError: No task has this name.
    """
    if kind not in REGISTRY:
        raise ConfigError(f"there is no task '{kind}'", hint=f"Known tasks: {', '.join(sorted(REGISTRY))}.")
    module, _, attribute = REGISTRY[kind].partition(":")
    found: type[AbstractTask] = getattr(import_module(module), attribute)
    assert issubclass(found, AbstractTask)
    return found
