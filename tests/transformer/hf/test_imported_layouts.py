"""Imported checkpoints compute what transformers does in a layout that cuts the model along every axis."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from scaling.transformer.hf.importer import import_model
from tests.distributed import run_distributed
from tests.transformer.hf.layouts import LAYOUT, ROWS, logits_of_rows
from tests.transformer.hf.tiny_models import FAMILIES, tiny_model, tokens

LENGTH = 34
"""Even, for two ranks cut each sequence; 33 tokens and one more."""


def test_logits_are_those_of_transformers_when_two_ranks_cut_each_axis(tmp_path: Path) -> None:
    rows, folders = tokens(ROWS * LENGTH).view(ROWS, LENGTH), {name: tmp_path / name for name in FAMILIES}
    for name, folder in folders.items():
        tiny_model(name).save_pretrained(folder / "theirs")
        import_model(folder / "theirs", folder / "ours")
    by_rank = run_distributed(logits_of_rows, 8, [folder / "ours" for folder in folders.values()], rows, timeout=240)
    for name, *by_rank_of_one in zip(FAMILIES, *by_rank, strict=True):
        expected: Tensor = tiny_model(name)(input_ids=rows, use_cache=False).logits
        parts = {(row, place): logits for of_rank in by_rank_of_one for row, place, logits in of_rank}
        assert len(parts) == ROWS * LAYOUT["model"]
        found = torch.stack(
            [torch.cat([parts[row, place] for place in range(LAYOUT["model"])], dim=-1) for row in range(ROWS)]
        )
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max(), name
