"""An adapter of PEFT that was imported computes, beside its base and merged into it, what it computes in `peft`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from scaling.core import Checkpointer, ConfigError
from scaling.transformer.finetuning.merge_checkpoint import merge_checkpoint
from scaling.transformer.hf.importer import import_model
from scaling.transformer.hf.peft.importer import import_adapter
from scaling.transformer.inference.module import TransformerInferenceModule
from tests.transformer.hf.peft.adapters import LENGTH, saved, their_logits
from tests.transformer.hf.peft.test_against_peft import CASES, config_of
from tests.transformer.hf.tiny_models import tiny_model, tokens

QUICK = (("llama_yarn", "ends"), ("llama_yarn", "tied"), ("gpt_neox", "dora"))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("name", "method"), [pytest.param(*case, marks=[] if case in QUICK else [pytest.mark.slow]) for case in CASES]
)
def test_it_computes_beside_its_base_and_merged_what_it_does_there(name: str, method: str, tmp_path: Path) -> None:
    theirs = their_logits(saved(name, config_of(name, method), tmp_path / "adapter"))
    tiny_model(name).save_pretrained(tmp_path / "model")
    base = Checkpointer(None).find(import_model(tmp_path / "model", tmp_path / "base").checkpoint).require()
    adapter = import_adapter(tmp_path / "adapter", tmp_path / "ours", base).checkpoint
    model = TransformerInferenceModule.from_checkpoint(base.path)
    name_here = model.load_adapter(adapter)
    found = [
        model.logits(tokens(LENGTH), adapter=name_here),
        TransformerInferenceModule.from_checkpoint(adapter).logits(tokens(LENGTH)),
    ]
    stored = Checkpointer(None).find(adapter).require()
    if method == "prompt":
        with pytest.raises(ConfigError, match="a soft prompt"):
            merge_checkpoint(base, [stored], tmp_path / "merged")
    else:
        merged = merge_checkpoint(base, [stored], tmp_path / "merged")
        found.append(TransformerInferenceModule.from_checkpoint(merged).logits(tokens(LENGTH)))
    for logits in found:
        assert (logits - theirs).abs().max() < 1e-5 * theirs.abs().max()
