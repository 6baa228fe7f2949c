"""The file that carries an order to machines that get no standard input."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

from scaling.core.errors import StorageError
from scaling.core.runner.plan import LaunchPlan, Order


@contextlib.contextmanager
def order_file(order: Order) -> Iterator[Path]:
    """Write an order where all machines find it, for this user only and without secrets; remove it at the end.

    Raises `StorageError` where it cannot be written.
    """
    path = order_path(order.plan, order.attempt)
    content = dataclasses.replace(order, secrets={}, config_text=None).to_json() + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except OSError as error:
        raise StorageError(
            f"{path}, in which the other machines find what to do, cannot be written: {error.strerror}; start in a "
            "folder that all machines share, or set logger.log_dir to one"
        ) from error
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(content)
        yield path
    finally:
        with contextlib.suppress(OSError):
            path.unlink()


def order_path(plan: LaunchPlan, attempt: int) -> Path:
    """Return where an order is written: in the log folder, else in the working directory, which all machines share."""
    folders = dict(plan.needs.folders)
    return Path(plan.directory, folders.get("logger.log_dir", ""), f".scaling_order_{plan.run_id}_{attempt}.json")
