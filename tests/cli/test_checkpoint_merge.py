"""`scaling checkpoint merge` writes a whole model that computes what base and adapter compute together."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner, Result

from scaling.cli.checkpoint import app
from scaling.core import BaseReference, CheckpointError, CheckpointReader, ConfigError, StoredCheckpoint
from scaling.core.checkpoint.verify import read_manifest
from scaling.transformer.config.model_plan import base_plan_of
from scaling.transformer.data.tokenizer import train_tokenizer
from scaling.transformer.finetuning.stored import require_whole
from scaling.transformer.hf.exporter import export_model
from scaling.transformer.inference.module import TransformerInferenceModule
from tests.transformer.finetuned import VOCABULARY, found, write_adapter, write_base

LORA = {"lora_config": {"rank": 2, "alpha": 2.0, "parallel_modules": ["query", "dense", "dense_in", "dense_out"]}}
BIASES = ("layers.1.self_attention.query.bias", "layers.1.mlp.dense_out.bias")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads cost such small products more than they save."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def merge(*arguments: object) -> Result:
    result = CliRunner().invoke(app, ["merge", *map(str, arguments)])
    if result.exception is not None:
        raise result.exception
    return result


def tokens() -> Tensor:
    return torch.randint(0, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(0))


def require_close(a: Tensor, b: Tensor) -> None:
    assert (a - b).abs().max() <= 1e-5 * b.abs().max()


CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "dora": (
        {},
        {"lora_config": {"rank": 2, "alpha": 2.0, "parallel_modules": ["query", "dense", "head"], "use_dora": True}},
        {},
    ),
    "rows": ({"weight_tying": True}, {"finetunable_token_ids": [4, 20]}, {}),
    "new": ({"weight_tying": True}, {"finetunable_token_ids": [VOCABULARY]}, {"vocab_size": VOCABULARY + 2}),
    "tied": (
        {"weight_tying": True, "attention_bias": False, "mlp_bias": False},
        {
            "lora_config": {"rank": 2, "parallel_modules": ["embedding", "head", "key", "dense_in"], "bias": True},
            "ia3_config": {},
            "bitfit_bias_config": {"name": "added", "add_to": ["dense"]},
            "finetunable_token_ids": [4, 20],
        },
        {},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_merged_model_computes_what_the_two_compute(case: str, tmp_path: Path) -> None:
    has, methods, grown = CASES[case]
    base = write_base(tmp_path / "base", **has)
    write_adapter(tmp_path / "adapter", base, methods, **grown)
    result = merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    assert result.output == f"wrote {tmp_path}/merged/global_step7\n"
    manifest = read_manifest(tmp_path / "merged" / "global_step7")
    merged = TransformerInferenceModule.from_checkpoint(tmp_path / "merged")
    assert not merged.config.has_methods
    assert set(manifest.tensors) == {parameter.name for parameter in base_plan_of(merged.config).parameters()}
    assert merged.config.weight_tying is (case in ("rows", "new"))
    assert (merged.config.attention_qkv_bias, merged.config.lm_head_bias) == (
        (True, True) if case == "tied" else (None, False)
    )
    require_close(
        merged.logits(tokens()), TransformerInferenceModule.from_checkpoint(tmp_path / "adapter").logits(tokens())
    )


def test_several_are_merged_into_their_sum_in_one_command_or_in_turn(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", precision="bfloat16")
    adapters = [tmp_path / "first", tmp_path / "second", tmp_path / "biases"]
    write_adapter(adapters[0], base, LORA)
    write_adapter(adapters[1], base, LORA, seed=8)
    write_adapter(adapters[2], base, {"bitfit_bias_config": {"name": "b"}} | LORA, seed=9, also=BIASES)
    merge(tmp_path / "base", *adapters, tmp_path / "all")
    changes: dict[str, Tensor] = {}
    for number, adapter in enumerate(adapters):
        merge(tmp_path / "base", adapter, tmp_path / str(number))
        for name, value in weights(found(tmp_path / str(number))).items():
            change = value.float() - weights(base)[name].float()
            changes[name] = changes[name] + change if name in changes else change
    for name, value in weights(found(tmp_path / "all")).items():
        assert found(tmp_path / "all").manifest.tensors[name].dtype == "BF16"
        wanted = weights(base)[name].float() + changes[name]
        torch.testing.assert_close(value.float(), wanted, rtol=0.01, atol=0.03)
    merge(tmp_path / "0", adapters[1], tmp_path / "in_turn")
    merge(tmp_path / "base", *adapters[:2], tmp_path / "both")
    for name, value in weights(found(tmp_path / "both")).items():
        torch.testing.assert_close(weights(found(tmp_path / "in_turn"))[name], value, rtol=0.01, atol=0.01)
    digest = found(adapters[0]).manifest.weights_digest
    scalars: Any = found(tmp_path / "in_turn").manifest.scalars
    assert scalars["merged"]["adapters"][0]["digest"] == digest
    assert scalars["merged"]["base"] == BaseReference.to(base).as_dict()
    for source, again, message in (
        (tmp_path / "in_turn", adapters[0], r"first/global_step7 is merged into .*in_turn/global_step7 already"),
        (tmp_path / "in_turn", adapters[2], r"trained layers.1.mlp.dense_out.bias, .* of its base itself"),
    ):
        with pytest.raises(CheckpointError, match=message):
            merge(source, again, tmp_path / "no")
    with pytest.raises(CheckpointError, match="is named twice"):
        merge(tmp_path / "base", adapters[0], adapters[0], tmp_path / "no")


def test_what_was_trained_of_the_base_keeps_its_bits_and_doubles_are_computed_as_such(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", precision="float64")
    write_adapter(tmp_path / "adapter", base, LORA, also=BIASES)
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    merged, before, added = (weights(found(tmp_path / name)) for name in ("merged", "base", "adapter"))
    assert {value.dtype for value in merged.values()} == {torch.float64}
    for name in BIASES:
        assert torch.equal(merged[name], added[name])
    dense = "layers.2.mlp.dense_out"
    update = added[f"{dense}.lora_lora.b"] @ added[f"{dense}.lora_lora.a"]
    torch.testing.assert_close(merged[f"{dense}.weight"], before[f"{dense}.weight"] + update, rtol=0, atol=1e-13)


def weights(stored: StoredCheckpoint) -> dict[str, Tensor]:
    with CheckpointReader(stored) as reader:
        return {name: reader.read(name) for name in stored.manifest.tensors}


def test_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    write_base(tmp_path / "base", step=4, seed=5)  # of several steps the one that was trained on is taken
    write_base(tmp_path / "other", seed=5)
    write_adapter(tmp_path / "adapter", base, LORA)
    write_adapter(tmp_path / "prompt", base, {"softprompt_config": {"name": "p", "n_tokens": 3}})
    adapter = tmp_path / "adapter"
    with pytest.raises(CheckpointError, match=r"was trained on the base .*base/global_step3 .*name its own base"):
        merge(tmp_path / "other", adapter, tmp_path / "no")
    with pytest.raises(CheckpointError, match=r"holds only what was trained on a base; merge the two first"):
        merge(adapter, adapter, tmp_path / "no")
    with pytest.raises(CheckpointError, match=r"holds a whole model, not what was trained on one"):
        merge(tmp_path / "base", tmp_path / "other", tmp_path / "no")
    with pytest.raises(ConfigError, match=r"has a soft prompt .* cannot be merged; use it beside its base"):
        merge(tmp_path / "base", tmp_path / "prompt", tmp_path / "no")
    assert not (tmp_path / "no").exists()
    (tmp_path / "base").rename(tmp_path / "moved")
    merge(tmp_path / "moved", adapter, tmp_path / "merged")
    with pytest.raises(CheckpointError, match=r"global_step7"):
        merge(tmp_path / "moved", adapter, tmp_path / "merged")


def test_tokenizer_and_export_come_with_it(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", vocab_size=270, norm_type="rms", attention_bias=False, mlp_bias=False)
    train_tokenizer(["a text"], 260).save(tmp_path / "base" / "vocab.json")
    write_adapter(tmp_path / "adapter", base, LORA)
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    assert (tmp_path / "merged" / "vocab.json").read_bytes() == (tmp_path / "base" / "vocab.json").read_bytes()
    assert TransformerInferenceModule.from_checkpoint(tmp_path / "adapter").tokenizer is not None
    export_model(found(tmp_path / "merged"), tmp_path / "exported")
    assert (tmp_path / "exported" / "model.safetensors").exists()
    with pytest.raises(CheckpointError, match=r"scaling checkpoint merge .*base/global_step3 .* or .*--adapter"):
        export_model(found(tmp_path / "adapter"), tmp_path / "no")
    require_whole(base, instead="")
