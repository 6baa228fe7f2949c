"""Imported checkpoints in a layout that cuts the model along every axis: same logits, and same bits on the way back."""

from __future__ import annotations

from pathlib import Path
from shutil import copy

import pytest
import torch
from torch import Tensor

from scaling.core.checkpoint.search import find_newest
from scaling.transformer.data.end_token import ORIGIN_FILE
from scaling.transformer.hf.exporter import export_model
from scaling.transformer.hf.importer import import_model
from tests.distributed import run_distributed
from tests.transformer.hf.by_hand import read_weights, same_bits
from tests.transformer.hf.layouts import LAYOUT, ROWS, SAVED, logits_of_rows
from tests.transformer.hf.tiny_models import FAMILIES, tiny_model, tokens

LENGTH = 34
"""Even, for two ranks cut each sequence; 33 tokens and one more."""


@pytest.mark.slow
def test_where_two_ranks_cut_each_axis_logits_are_those_of_transformers_and_every_bit_goes_back(tmp_path: Path) -> None:
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
        ours, theirs, saved = (folders[name] / which for which in ("ours", "theirs", SAVED))
        copy(ours / ORIGIN_FILE, saved)
        done = export_model(find_newest(saved).require(), folders[name] / "exported")
        assert same_bits(read_weights(done.path), read_weights(theirs)), name
