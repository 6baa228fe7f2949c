"""The device that a model runs on: one that cannot be used is refused before anything is built, naming usable ones."""

from __future__ import annotations

import torch

from scaling.core import ConfigError


def require_device(device: str) -> None:
    """Raise a `ConfigError` for a device that does not exist, or that this machine does not have."""
    useful = "choose cpu, or where there is a GPU cuda, or cuda:N for the one of number N, counted from 0"
    try:
        torch.device(device)
    except RuntimeError as error:  # it lists every kind of device that torch was ever written for
        meant = "; a GPU is called cuda" if device.lower().startswith(("gpu", "nvidia")) else ""
        raise ConfigError(f"device ({device}) cannot be used: there is none of this name{meant}; {useful}") from error
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter where torch was built without that kind of device
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"device ({device}) cannot be used: {reason}; {useful}") from error
