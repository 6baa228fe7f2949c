"""Report what a folder without a checkpoint is instead, and which folder was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from scaling.core.checkpoint.folders import list_steps
from scaling.core.checkpoint.nearby import folders_in
from scaling.core.config.plain_words import first_of

_SHOWN: Final = 3

_OTHERS: Final[Mapping[str, tuple[str, ...]]] = {
    "Hugging Face": (
        "model.safetensors.index.json",
        "pytorch_model.bin.index.json",
        "pytorch_model.bin",
        "model.safetensors",
    ),
    "DeepSpeed": ("zero_to_fp32.py", "mp_rank_*_model_states.pt", "*/mp_rank_*_model_states.pt"),
    "Megatron": ("latest_checkpointed_iteration.txt", "mp_rank_*/model_optim_rng.pt", "iter_*/mp_rank_*/*.pt"),
    "torch.distributed.checkpoint": (".metadata", "*/.metadata"),
}
"""Files by which checkpoints of other libraries are recognised."""
_FORMER: Final = ("model_state_layer_*.pt", "*/model_state_layer_*.pt")


def instead_of_checkpoint(folder: Path) -> str:
    """Return what a folder without a checkpoint is instead, or which folder was probably meant; empty if unknown."""
    for pattern in _FORMER:
        if (found := next(folder.glob(pattern), None)) is not None:
            return f"it is of the predecessor; convert it: scaling checkpoint import {found.parent} TARGET"
    for library, patterns in _OTHERS.items():
        for pattern in patterns:
            if next(folder.glob(pattern), None) is not None:
                return f"it is a checkpoint of {library}, which cannot be loaded"
    for place in (folder.parent, *folders_in(folder)):
        if steps := list_steps(place):
            where = f"there are checkpoints in {place} ({_listed(steps, near=folder.name)})"
            return f"{where}; name that folder, or one of them"
    return ""


def _listed(steps: list[Path], *, near: str) -> str:
    """Return a few names, those similar to `near` first."""
    names = [step.name for step in steps]
    likely = difflib.get_close_matches(near, names, n=_SHOWN, cutoff=0.7)
    return first_of(list(dict.fromkeys([*likely, *names])), _SHOWN)
