"""Compare an exported model with its checkpoint: a few tokens through both, where `transformers` is installed."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from scaling.core import Checkpointer, CheckpointError
from scaling.transformer.inference.module import TransformerInferenceModule
from scaling.transformer.stored_model import architecture_of

TOKENS: Final = 33
TOLERANCE: Final = 1e-4
"""Accepted difference, relative to the largest logit. Correct programs differ by a tenth of this, wrong ones by far
more."""
FIRST_VERSION: Final = 5
"""First major version of `transformers` with the present form of rotary parameters."""


@dataclass(frozen=True)
class Checked:
    """The result of a comparison."""

    remark: str
    difference: float | None = None
    """Largest difference of the logits, relative to the largest logit. None: nothing was compared."""


def reason_not_to_check() -> str | None:
    """Return the reason why a check is not possible here, or None if it is possible."""
    remedy = "`pip install 'scaling[hf]'`"
    try:
        found = version("transformers")
    except PackageNotFoundError:
        return f"not checked: transformers is not installed ({remedy})"
    if int(found.split(".")[0]) < FIRST_VERSION:
        return f"not checked: transformers is of version {found}, the check needs {FIRST_VERSION} ({remedy})"
    return None


def check_export(checkpoint: Path, exported: Path, *, dtype: torch.dtype | None = None) -> Checked:
    """Run the same tokens through the checkpoint and the exported folder, both in float32 with the written weights.

    `dtype` is the type that the export rounded the weights to. Both models are in memory at the same time.

    Raises:
        CheckpointError: The logits differ by more than rounding.
    """
    reason = reason_not_to_check()
    if reason is not None:
        return Checked(reason)
    architecture, _ = architecture_of(Checkpointer(None).find(checkpoint, weights_only=True).require())
    length = min(TOKENS, architecture.sequence_length)
    # In transformers, rotations that depend on a length follow the length of the batch.
    ours = TransformerInferenceModule.from_checkpoint(checkpoint, precision="float32", sequence_length=length)
    if dtype is not None:
        with torch.no_grad():
            for parameter in ours.module.parameters():
                parameter.copy_(parameter.to(dtype))
    tokens = torch.randint(ours.config.vocab_size, (1, length), generator=torch.Generator().manual_seed(0))
    expected = ours.logits(tokens).float()
    found = _their_logits(exported, tokens)
    difference = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
    if not difference <= TOLERANCE:
        raise CheckpointError(
            f"{exported} does not compute what {checkpoint} does: logits of {length} tokens differ by {difference:.1e} "
            f"of the largest, more than {TOLERANCE:g}. Do not use it; please report it with its config.json"
        )
    return Checked(f"checked: logits of {length} tokens differ by {difference:.1e} of the largest", difference)


@torch.no_grad()
def _their_logits(folder: Path, tokens: Tensor) -> Tensor:
    from transformers import AutoModelForCausalLM, utils

    said: Any = utils.logging
    said.disable_progress_bar()  # the model is on disk already
    said.set_verbosity_error()  # no warnings about the owner's settings for text generation
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True, trust_remote_code=False
    )
    logits: Tensor = model.eval()(input_ids=tokens, use_cache=False).logits.float()
    return logits
