"""Adapters beside a loaded base give what they give alone, one of them at a time, and leave the base as it is."""

from __future__ import annotations

import hashlib
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from scaling.core import Checkpointer, CheckpointError, ConfigError
from scaling.transformer.inference.module import TransformerInferenceModule
from tests.transformer.finetuned import VOCABULARY, found, write_adapter, write_base

LINEARS = ["query", "key", "value", "dense", "dense_in", "siglu_weight", "dense_out"]
LORA = {"lora_config": {"rank": 2, "alpha": 2.0, "parallel_modules": LINEARS, "dropout": 0.5}}
DORA = {"lora_config": {"rank": 2, "alpha": 2.0, "parallel_modules": [*LINEARS, "head"], "use_dora": True}}
IA3: dict[str, Any] = {"ia3_config": {}}
ROWS = {"finetunable_token_ids": [5, 0, 28]}
BITFIT = {"bitfit_bias_config": {"name": "bias"}}
PROMPT = {"softprompt_config": {"name": "prompt", "n_tokens": 3}}
BOTTLENECK = {"adapter_config": {"name": "deep", "attention_downsampling_factor": 0.25, "mlp_downsampling_factor": 0.5}}
BIASES = ("layers.1.self_attention.query.bias", "layers.1.mlp.dense_out.bias", "layers.2.input_layernorm.bias")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads cost such small products more than they save."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tokens(rows: int = 2, length: int = 9) -> Tensor:
    return torch.randint(0, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(0))


def digests(model: TransformerInferenceModule, folder: Path) -> str:
    """Return the SHA-256 of the weights of the base as the model has them."""
    known = found(folder).manifest.tensors
    digest = hashlib.sha256()
    for tensor in model.module.global_tensors():
        if tensor.key in known:
            digest.update(tensor.parts[0][1].contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


METHODS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "lora": (LORA, ()),
    "dora": (DORA, ()),
    "ia3": (IA3, ()),
    "rows": (ROWS | {"lora_config": {"rank": 2, "parallel_modules": ["embedding", "head"], "bias": True}}, ()),
    "bitfit": (BITFIT, BIASES),
    "all": (LORA | IA3 | ROWS | BITFIT, BIASES),
    "deep": (BOTTLENECK, ()),
}


@pytest.mark.parametrize("base_has", [{}, {"attention_qkv_in_one": False, "weight_tying": True}], ids=["fused", "tied"])
def test_an_adapter_beside_a_base_gives_what_was_trained(base_has: dict[str, Any], tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", **base_has)
    model = TransformerInferenceModule.from_checkpoint(tmp_path / "base")
    alone = model.logits(tokens())
    for name, (methods, also) in METHODS.items():
        trained = write_adapter(tmp_path / name, base, methods, also=also)
        assert model.load_adapter(tmp_path / name, name) == name
        expected = trained.logits(tokens())
        assert not torch.allclose(expected, alone, atol=0.01)
        assert torch.equal(model.logits(tokens(), adapter=name), expected), name
        opened = TransformerInferenceModule.from_checkpoint(tmp_path / name)
        assert torch.equal(opened.logits(tokens()), expected)
        assert torch.equal(opened.logits(tokens(), adapter=None), alone)
    assert torch.equal(model.logits(tokens()), alone)


def test_a_hundred_swaps_give_each_its_own_bits_in_constant_memory(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    model = TransformerInferenceModule.from_checkpoint(tmp_path / "base")
    expected = {None: model.logits(tokens())}
    for seed, (methods, also) in enumerate(((LORA, ()), (LORA | IA3 | BITFIT, BIASES))):
        write_adapter(tmp_path / str(seed), base, methods, also=also, seed=seed + 2)
        alone = TransformerInferenceModule.from_checkpoint(tmp_path / str(seed))
        expected[model.load_adapter(tmp_path / str(seed), f"of-{seed}")] = alone.logits(tokens())  # type: ignore[index]
    pointers = {parameter.data_ptr() for parameter in model.module.parameters()}
    memory = 0
    for turn in range(100):
        for name, logits in expected.items():
            assert torch.equal(model.logits(tokens(), adapter=name), logits), (turn, name)
        if turn == 20:
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 2048
    )  # KiB; a copy of all weights each time: more
    model.logits(tokens(), adapter=None)
    assert pointers == {parameter.data_ptr() for parameter in model.module.parameters()}
    assert digests(model, tmp_path / "base") == digests(
        TransformerInferenceModule.from_checkpoint(tmp_path / "base"), tmp_path / "base"
    )


def test_a_soft_prompt_stands_in_front_and_shows_nowhere(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    trained = write_adapter(tmp_path / "prompt", base, PROMPT)
    model = TransformerInferenceModule.from_checkpoint(tmp_path / "base")
    assert model.load_adapter(tmp_path / "prompt") == "prompt"
    with_placeholders = torch.cat([torch.full((2, 3), 4), tokens()], dim=1)
    expected = trained.logits(with_placeholders)[:, 3:]
    assert torch.equal(model.logits(tokens(), adapter="prompt"), expected)
    likelihood = model.log_likelihood(tokens(), adapter="prompt")
    every = expected[:, :-1].log_softmax(-1).gather(-1, tokens()[:, 1:, None]).squeeze(-1)
    torch.testing.assert_close(likelihood, every)
    sequence = tokens(1, 4)[0].tolist()
    streams = [model.stream(sequence, adapter=name) for name in ("prompt", None)]
    mixed = [[next(stream)[1] for stream in streams] for _ in range(8)]
    for number, name in enumerate(("prompt", None)):
        text = list(sequence)
        for pair in mixed:
            assert pair[number] == int(model.logits(torch.tensor([text]), adapter=name)[0, -1].argmax())
            text.append(pair[number])
    completion = model.generate(8, input_tokens=sequence, adapter="prompt", stop_tokens=[])
    assert completion.completion_tokens == [pair[0] for pair in mixed]
    opened = TransformerInferenceModule.from_checkpoint(tmp_path / "prompt")
    assert [token for _, token in opened.stream(sequence, max_tokens=8)] == completion.completion_tokens


def test_learned_positions_count_the_prompt(tmp_path: Path) -> None:
    length: dict[str, Any] = {
        "sequence_length": 12,
        "absolute_positions": 12,
        "relative_position_embedding_type": "none",
    }
    base = write_base(tmp_path / "base", **length)
    write_adapter(tmp_path / "prompt", base, PROMPT)
    model = TransformerInferenceModule.from_checkpoint(tmp_path / "prompt")
    with pytest.raises(ConfigError, match=r"set max_tokens to at most 6"):
        model.generate(7, input_tokens=[1, 2, 3, 4])
    model.generate(7, input_tokens=[1, 2, 3, 4], adapter=None)


def test_more_tokens_than_the_base_has_come_with_the_adapter(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    trained = write_adapter(
        tmp_path / "rows", base, {"finetunable_token_ids": [VOCABULARY, VOCABULARY + 1]}, vocab_size=VOCABULARY + 2
    )
    ids = torch.tensor([[3, VOCABULARY, 4, VOCABULARY + 1]])
    opened = TransformerInferenceModule.from_checkpoint(tmp_path / "rows")
    assert torch.equal(opened.logits(ids), trained.logits(ids))
    before = digests(opened, tmp_path / "base")
    opened.merge_adapter("token_rows")
    torch.testing.assert_close(opened.logits(ids), trained.logits(ids))
    opened.unmerge_adapter()
    assert digests(opened, tmp_path / "base") == before
    assert torch.equal(opened.logits(ids), trained.logits(ids))
    model = TransformerInferenceModule.from_checkpoint(tmp_path / "base")
    with pytest.raises(CheckpointError, match=r"layers.0.embedding.weight is \[31, 16\] in its base, and \[29, 16\]"):
        model.load_adapter(tmp_path / "rows")


def test_what_was_frozen_of_a_method_has_its_first_values(tmp_path: Path) -> None:
    """Only what is trained is saved: here B, and not A and the magnitudes."""
    base = write_base(tmp_path / "base")
    trained = write_adapter(tmp_path / "all", base, DORA)
    stored = found(tmp_path / "all")
    names = [name for name in stored.manifest.tensors if name.endswith(".b")]
    fresh = TransformerInferenceModule(trained.config, seed=42)
    weights = {tensor.key: tensor.parts[0][1] for tensor in fresh.module.global_tensors()}
    of_base = [tensor for tensor in fresh.module.global_tensors() if tensor.key in base.manifest.tensors]
    Checkpointer(None).load(base, of_base)
    fresh.module.follow_base()
    of_b = [tensor for tensor in fresh.module.global_tensors() if tensor.key in names]
    Checkpointer(None).load(stored, of_b, allowed_unexpected=[""])
    Checkpointer(tmp_path / "b").save(1, of_b, stored.manifest.scalars)
    assert len(names) == len(of_b) < len(weights)
    opened = TransformerInferenceModule.from_checkpoint(tmp_path / "b")
    assert torch.equal(opened.logits(tokens()), fresh.logits(tokens()))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_merged_equals_beside_and_unmerged_is_the_base_to_the_bit(precision: str, tmp_path: Path) -> None:
    has: dict[str, Any] = {"precision": precision, "lm_head_bias": True}
    base = write_base(tmp_path / "base", **has)
    model = TransformerInferenceModule.from_checkpoint(tmp_path / "base")
    before, alone = digests(model, tmp_path / "base"), model.logits(tokens())
    for name, (methods, also) in METHODS.items():
        if name == "deep":
            continue
        write_adapter(tmp_path / name, base, methods, also=also)
        model.load_adapter(tmp_path / name, name)
        expected = model.logits(tokens(), adapter=name)
        model.merge_adapter(name)
        rounding = 1e-5 if precision == "float32" else 0.05
        assert (model.logits(tokens()) - expected).abs().max() <= rounding * expected.abs().max(), name
        assert digests(model, tmp_path / "base") != before
        model.unmerge_adapter()
        assert digests(model, tmp_path / "base") == before
        assert torch.equal(model.logits(tokens()), alone)
        assert torch.equal(model.logits(tokens(), adapter=name), expected)


def test_several_merged_in_turn_equal_their_sum(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", precision="float64")
    model = TransformerInferenceModule.from_checkpoint(tmp_path / "base")
    start = {tensor.key: tensor.parts[0][1].clone() for tensor in model.module.global_tensors()}
    total = {key: value.clone() for key, value in start.items()}
    tuned: tuple[dict[str, Any], ...] = (LORA, LORA | BITFIT, BITFIT)
    for seed, methods in enumerate(tuned):
        write_adapter(tmp_path / str(seed), base, methods, also=BIASES if seed else (), seed=seed + 5)
        alone = TransformerInferenceModule.from_checkpoint(tmp_path / str(seed))
        alone.merge_adapter("lora" if seed < 2 else "bias")
        for tensor in alone.module.global_tensors():
            if tensor.key in total:
                total[tensor.key] += tensor.parts[0][1] - start[tensor.key]
        model.load_adapter(tmp_path / str(seed), str(seed))
    for name in "012":
        model.merge_adapter(name)
    for tensor in model.module.global_tensors():
        if tensor.key in total:
            torch.testing.assert_close(tensor.parts[0][1], total[tensor.key], rtol=0, atol=1e-12)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    write_base(tmp_path / "other", seed=9)
    write_adapter(tmp_path / "lora", base, LORA)
    model = TransformerInferenceModule.from_checkpoint(tmp_path / "base")
    model.load_adapter(tmp_path / "lora")
    with pytest.raises(
        ConfigError, match=r"there is an adapter named 'lora' already, from .*another name: load_adapter"
    ):
        model.load_adapter(tmp_path / "lora")
    with pytest.raises(ConfigError, match=r"adapter \(loar\) is not loaded; there are lora"):
        model.logits(tokens(), adapter="loar")
    with pytest.raises(ConfigError, match=r"name \('a\.b'\) of an adapter must be letters"):
        model.load_adapter(tmp_path / "lora", "a.b")
    with pytest.raises(CheckpointError, match=r"holds a whole model, not what was trained on one"):
        model.load_adapter(tmp_path / "base")
    with pytest.raises(ConfigError, match=r"base \(here\) is given, but .* holds a whole model"):
        TransformerInferenceModule.from_checkpoint(tmp_path / "other", base="here")
    another = TransformerInferenceModule.from_checkpoint(tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"was trained on the base .*base/global_step3 .* not on .*other/global_"):
        another.load_adapter(tmp_path / "lora")
    unknown = TransformerInferenceModule(model.config.model_copy(update={"mlp_factor": 3}))
    with pytest.raises(CheckpointError, match=r"mlp\.\w+\.\w+ is \[32.*\] in its base, and \[48"):
        unknown.load_adapter(tmp_path / "lora")
    model.merge_adapter("lora")
    with pytest.raises(ConfigError, match=r"adapter \(lora\) is merged already; call unmerge_adapter"):
        model.merge_adapter("lora")
    with pytest.raises(ConfigError, match=r"cannot act while lora is merged"):
        model.logits(tokens(), adapter="lora")
    with pytest.raises(ConfigError, match=r"lora is merged into the base, which .* does not know"):
        model.load_adapter(tmp_path / "lora", "second")
    model.unmerge_adapter()
    with pytest.raises(ConfigError, match=r"no adapter is merged"):
        model.unmerge_adapter()
    shutil.move(tmp_path / "base", tmp_path / "moved")
    with pytest.raises(CheckpointError, match=r"which was not found(.|\n)*from_checkpoint\(path, base=\.\.\.\)"):
        TransformerInferenceModule.from_checkpoint(tmp_path / "lora")
    found_again = TransformerInferenceModule.from_checkpoint(tmp_path / "lora", base=tmp_path / "moved")
    assert torch.equal(found_again.logits(tokens()), model.logits(tokens(), adapter="lora"))


@pytest.mark.parametrize(
    ("has", "methods", "message"),
    [
        ({}, BOTTLENECK, "cannot be merged: it has bottleneck adapters"),
        ({}, PROMPT, "cannot be merged: it has a soft prompt"),
        ({"weight_tying": True}, DORA, "needs weight_tying false .* scaling checkpoint merge"),
        (
            {"attention_bias": False},
            {"bitfit_bias_config": {"name": "b", "add_to": ["query"]}},
            "needs attention_qkv_bias true",
        ),
    ],
    ids=["bottleneck", "prompt", "tied", "bias"],
)
def test_what_cannot_become_part_of_the_weights_is_refused_by_name(
    has: dict[str, Any], methods: dict[str, Any], message: str, tmp_path: Path
) -> None:
    base = write_base(tmp_path / "base", **has)
    write_adapter(tmp_path / "adapter", base, methods)
    model = TransformerInferenceModule.from_checkpoint(tmp_path / "base")
    name = model.load_adapter(tmp_path / "adapter")
    with pytest.raises(ConfigError, match=message):
        model.merge_adapter(name)
