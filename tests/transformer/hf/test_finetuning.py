"""Fine-tuning in one process is that of `peft` on the model of transformers: losses, gradients, weights after steps."""

from __future__ import annotations

from typing import Any

import peft
import pytest

from scaling.transformer.config.model_plan import base_plan_of
from scaling.transformer.hf.choose import NOT_THE_MODEL, family_of
from tests.transformer.hf.in_memory import architecture_of, config_json
from tests.transformer.hf.test_gradients import ONE_DOCUMENT, PACKED, farthest
from tests.transformer.hf.with_peft import keep_blocks, our_steps, read, sources, their_adapter, their_steps

TOLERANCE = 1e-5
PROMPT = 6

# PyTorch is asked for a state that models of transformers no longer have under that name.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

LLAMA = {
    "query": "q_proj",
    "key": "k_proj",
    "value": "v_proj",
    "dense": "o_proj",
    "dense_in": "gate_proj",
    "siglu_weight": "up_proj",
    "dense_out": "down_proj",
}
NEOX = {
    "query": "query_key_value",
    "key": "query_key_value",
    "value": "query_key_value",
    "dense": "attention.dense",
    "dense_in": "dense_h_to_4h",
    "dense_out": "dense_4h_to_h",
}
ENDS = {"embedding": "embed_tokens", "head": "lm_head"}


def compare(name: str, theirs: Any, *, prompt: int = 0, **methods: Any) -> None:
    """Compare a training of an adapter, from the same start, in `peft` and here, in double precision.

    In single precision the order of sums, which differs between processors, would show more than the tolerance.
    """
    config = config_json(name)
    maps = list(family_of(config).tensors(base_plan_of(architecture_of(config, **NOT_THE_MODEL))))
    model = their_adapter(name, theirs).double()
    keep_blocks(model, maps)
    found = sources(model, maps)
    rows = ONE_DOCUMENT if prompt else PACKED
    adapter = read(found, dict(model.named_parameters()))
    ours = our_steps(name, adapter, rows, prompt=prompt, **methods)
    expected = their_steps(model, found, rows, prompt=prompt)
    assert ours.losses == pytest.approx(expected.losses, rel=TOLERANCE)
    assert len(set(expected.losses)) == len(expected.losses)
    for mine, other in zip((*ours.gradients, ours.weights), (*expected.gradients, expected.weights), strict=True):
        apart = farthest(mine, other)
        assert apart.relative <= TOLERANCE, apart
    assert not any((adapter[key] == weight).all() for key, weight in ours.weights.items())


def lora(modules: dict[str, str], rank: int = 4, parts: int = 1, **options: Any) -> tuple[Any, dict[str, Any]]:
    """Return LoRA of these modules in both configurations; theirs has the ranks of all parts of a fused matrix."""
    config = peft.LoraConfig(
        r=rank * parts, lora_alpha=6 * parts, target_modules=list(dict.fromkeys(modules.values())), **options
    )
    return config, {"parallel_modules": list(modules), "rank": rank, "alpha": 6.0, **options}


@pytest.mark.parametrize("name", ["llama", "qwen3"])
@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"use_dora": True}], ids=["LoRA", "rsLoRA", "DoRA"])
def test_low_rank_updates_train_as_in_peft(name: str, options: dict[str, bool]) -> None:
    ends = {"head": "lm_head"} if "use_dora" in options else ENDS
    theirs, ours = lora({**LLAMA, **ends}, **options)
    compare(name, theirs, lora_config=ours)


def test_low_rank_updates_of_gemma_train_as_in_peft() -> None:
    theirs, ours = lora(LLAMA)
    compare("gemma2", theirs, lora_config=ours)


def test_low_rank_updates_of_parts_of_a_fused_matrix_train_as_blocks_of_one_in_peft() -> None:
    theirs, ours = lora({name: module for name, module in NEOX.items() if module == "query_key_value"}, parts=3)
    compare("gpt_neox", theirs, lora_config=ours)
    theirs, ours = lora({name: module for name, module in NEOX.items() if module != "query_key_value"})
    compare("gpt_neox", theirs, lora_config=ours)


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_vectors_train_as_in_peft(name: str) -> None:
    theirs = peft.IA3Config(
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"], feedforward_modules=["down_proj"]
    )
    compare(name, theirs, ia3_config={"parallel_modules": ["query", "key", "value", "dense", "dense_out"]})


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_a_soft_prompt_trains_as_in_peft(name: str) -> None:
    theirs = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=PROMPT)
    compare(name, theirs, prompt=PROMPT, softprompt_config={"name": "prompt", "n_tokens": PROMPT})
