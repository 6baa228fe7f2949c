"""Whatever is wrong with an adapter of PEFT is refused with one message that names place and remedy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from torch import Tensor

from scaling.core import CheckpointError, ConfigError, ScalingError, StoredCheckpoint
from scaling.core.checkpoint.search import find_newest
from scaling.transformer.hf.importer import import_model
from scaling.transformer.hf.peft.importer import import_adapter
from tests.transformer.hf.by_hand import HIDDEN, VOCABULARY, weights, write_model
from tests.transformer.hf.peft.by_hand import AT, CONFIG, QUERY, RANK, tensors, write

EMBEDDING: Final = "base_model.model.model.embed_tokens"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> StoredCheckpoint:
    folder = tmp_path_factory.mktemp("base")
    import_model(write_model(folder / "model"), folder / "checkpoints")
    return find_newest(folder / "checkpoints", weights_only=True).require()


def renamed(replace: Callable[[str], str]) -> dict[str, Tensor | None]:
    return {**dict.fromkeys(tensors()), **{replace(name): tensor for name, tensor in tensors().items()}}


FIELDS: Final[list[tuple[dict[str, Any], str]]] = [
    ({"peft_type": "ADALORA"}, r"peft_type: is \"ADALORA\", a method that is not built; these are: LORA, IA3, .*Merge"),
    ({"peft_type": None}, "peft_type: is missing, so the method is unknown; add one of LORA"),
    ({"peft_type": ["LORA"]}, r"peft_type: is \[\"LORA\"\], a method"),
    *(
        (
            {"init_lora_weights": start},
            rf"init_lora_weights: is \"{start}\", which changed the base's weights: .*convert",
        )
        for start in ("pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga")
    ),
    (
        {"init_lora_weights": "mica"},
        r"init_lora_weights: is \"mica\"; this is not built, so the adapter cannot be read",
    ),
    ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication: is .*layers of the base are repeated; this is not"),
    ({"target_parameters": ["experts.w"]}, "target_parameters: is .*parameters that are no module's weight"),
    ({"alora_invocation_tokens": [5]}, r"alora_invocation_tokens: .*behind these tokens only \(aLoRA\)"),
    ({"use_qalora": True}, r"use_qalora: is true: inputs are pooled in groups \(QA-LoRA\)"),
    ({"use_dorra": True}, "use_dorra: is not known for LORA, and might change .*did you mean use_dora"),
    ({"task_type": "SEQ_CLS"}, r"task_type: is \"SEQ_CLS\"; only adapters of language models are read: CAUSAL_LM"),
    ({"r": 0}, "r: is 0; it has to be a whole number above 0"),
    ({"lora_alpha": "6"}, r"lora_alpha: is \"6\"; it has to be a number of at least 0"),
    ({"target_modules": "("}, r"target_modules: is \"\(\"; it has to be a list of names, or one regular expression"),
    ({"rank_pattern": {"(": 2}}, "rank_pattern: is .*it has to be an object of ranks by names of modules"),
    ({"r": 17}, r"layers\.0\.self_attn\.q_proj has rank 17, more than its matrix of 16 x 16 can have \(16\)"),
    ({"target_modules": ["query"]}, r"adapts model\.layers\.0\.self_attn\.q_proj, which target_modules .* do not mean"),
    ({"target_modules": ["q_proj", "v_proj", "o_proj"]}, r"lacks .*o_proj\.lora_A\.weight; the file is incomplete"),
    (
        {"target_modules": ["q_proj", "v_proj", "norm"]},
        r"mean model\.norm, but only linear layers, the token embedding",
    ),
    ({"rank_pattern": {"q_proj": 4}}, r"q_proj\.lora_A\.weight has the shape \[3, 16\], but on this base .*\[4, 16\]"),
    ({"use_dora": True, "lora_bias": True}, "use_dora and lora_bias together are not built"),
    ({"trainable_token_indices": [1, 1]}, r"trainable_token_indices are \[1, 1\]; they have to be different tokens"),
    ({"trainable_token_indices": [VOCABULARY]}, "below the base's vocabulary of 271. Where tokens were added"),
    ({"trainable_token_indices": {"q_proj": [1]}}, r"name q_proj, but only model\.embed_tokens and lm_head have rows"),
    ({"trainable_token_indices": {"embed_tokens": [1], "lm_head": [2]}}, r"are \[1\] and \[2\] for embedding and head"),
]


@pytest.mark.parametrize(("config", "message"), FIELDS)
def test_a_configuration_is_refused(
    base: StoredCheckpoint, tmp_path: Path, config: Mapping[str, Any], message: str
) -> None:
    refuse(base, tmp_path, message, config)


OF_NO_OTHER: Final = dict.fromkeys(CONFIG.keys() - {"task_type", "target_modules"})
"""Removes the fields of LoRA alone."""
PROMPT: Final = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4, "target_modules": None}
TENSORS: Final[list[tuple[dict[str, Any], dict[str, Tensor | None], str]]] = [
    ({}, {f"{QUERY}.lora_B.weight": None}, rf"lacks {QUERY}\.lora_B\.weight; the file is incomplete"),
    ({}, {f"{QUERY}.lora_B.weight": torch.ones(8, RANK)}, r"has the shape \[8, 3\], but on this base .*\[16, 3\]"),
    ({}, {f"{QUERY}.lora_magnitude_vector": torch.ones(16)}, r"holds .*q_proj\.lora_magnitude_vector, which an"),
    ({}, {f"{AT}.qq_proj.lora_A.weight": torch.ones(1)}, r"does not have \(the nearest is .*q_proj\); the adapter"),
    ({}, {f"{QUERY}.lora_B.weight": torch.ones(16, RANK, dtype=torch.int8)}, r"is of type I8; only tensors of"),
    (
        {"target_modules": ["embed_tokens"], "use_dora": True},
        {
            **dict.fromkeys(tensors()),
            f"{EMBEDDING}.lora_embedding_A": torch.ones(RANK, VOCABULARY),
            f"{EMBEDDING}.lora_embedding_B": torch.ones(HIDDEN, RANK),
        },
        r"use_dora with model\.embed_tokens, an embedding, is not built; merge the adapter into its model",
    ),
    (
        {"target_modules": ["embed_tokens"]},
        {
            **dict.fromkeys(tensors()),
            f"{EMBEDDING}.lora_embedding_A": torch.ones(RANK, VOCABULARY),
            f"{EMBEDDING}.lora_embedding_B": torch.ones(HIDDEN, RANK),
            f"{EMBEDDING}.base_layer.weight": weights()["model.embed_tokens.weight"] + 1,
        },
        r"holds a copy of the base's model\.embed_tokens that differs from it; the adapter is for another base",
    ),
    (
        {},
        renamed(lambda name: name.replace("model.layers", "gpt_neox.layers")),
        r"is an adapter for another family of models: .*while a llama model has modules such as model\.layers\.0",
    ),
    ({}, {f"{EMBEDDING}.weight": torch.ones(VOCABULARY + 1, HIDDEN)}, r"has the shape \[272, 16\], but on this base"),
    ({**OF_NO_OTHER, "peft_type": "IA3"}, {}, r"lacks .*q_proj\.ia3_l; the file is incomplete"),
    ({**OF_NO_OTHER, **PROMPT}, {}, "lacks prompt_embeddings"),
    ({**OF_NO_OTHER, **PROMPT, "num_transformer_submodules": 2}, {}, "num_transformer_submodules: is 2; it has"),
    (
        {**OF_NO_OTHER, **PROMPT, "num_virtual_tokens": 32},
        {**dict.fromkeys(tensors()), "prompt_embeddings": torch.ones(32, HIDDEN)},
        r"softprompt_config\.n_tokens: is 32, but a sequence has 32 tokens \(sequence_length\)",
    ),
    ({**OF_NO_OTHER, **PROMPT, "num_virtual_tokens": None}, {}, "num_virtual_tokens: is missing"),
    (
        {**OF_NO_OTHER, **PROMPT},
        {**dict.fromkeys(tensors()), "prompt_embeddings": torch.ones(4, 15)},
        r"prompt_embeddings has the shape \[4, 15\], but on this base, with num_virtual_tokens 4, .*\[4, 16\]",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("config", "changes", "message"), TENSORS)
def test_tensors_are_refused(
    base: StoredCheckpoint,
    tmp_path: Path,
    config: Mapping[str, Any],
    changes: Mapping[str, Tensor | None],
    message: str,
) -> None:
    refuse(base, tmp_path, message, config, changes)


def refuse(
    base: StoredCheckpoint,
    tmp_path: Path,
    message: str,
    config: Mapping[str, Any] | None = None,
    changes: Mapping[str, Tensor | None] | None = None,
) -> None:
    folder = write(tmp_path / "adapter", config, changes)
    with pytest.raises(ScalingError, match=message):
        import_adapter(folder, tmp_path / "imported", base)
    assert not (tmp_path / "imported").exists()


def test_an_equal_copy_of_the_base_is_let_through(base: StoredCheckpoint, tmp_path: Path) -> None:
    changes: dict[str, Tensor | None] = {
        **dict.fromkeys(tensors()),
        f"{EMBEDDING}.lora_embedding_A": torch.ones(RANK, VOCABULARY),
        f"{EMBEDDING}.lora_embedding_B": torch.ones(HIDDEN, RANK),
        f"{EMBEDDING}.base_layer.weight": weights()["model.embed_tokens.weight"],
    }
    import_adapter(write(tmp_path / "a", {"target_modules": ["embed_tokens"]}, changes), tmp_path / "imported", base)


def test_folders_that_are_none_are_refused(base: StoredCheckpoint, tmp_path: Path) -> None:
    def refused(folder: Path, message: str) -> None:
        with pytest.raises((ConfigError, CheckpointError), match=message):
            import_adapter(folder, tmp_path / "imported", base)

    refused(tmp_path / "nowhere", "is not there; name the folder of an adapter")
    several = tmp_path / "several"
    write(several / "english")
    refused(several, "holds no adapter_config.json, but several adapters; name one of them: english")
    refused(write_model(tmp_path / "model"), "holds a whole model and no adapter; import it without --base")
    pickled = write(tmp_path / "pickled")
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    refused(pickled, r"as a pickle \(adapter_model\.bin\), which can run any code .*convert it with PEFT")
    (pickled / "adapter_model.bin").unlink()
    refused(pickled, r"holds no adapter_model\.safetensors; the download is incomplete")
    malformed = write(tmp_path / "malformed")
    (malformed / "adapter_config.json").write_text('{"r": 3,')
    refused(malformed, r"adapter_config\.json is not JSON")
    cut = write(tmp_path / "cut")
    data = (cut / "adapter_model.safetensors").read_bytes()
    (cut / "adapter_model.safetensors").write_bytes(data[:-1])
    refused(cut, "is damaged or cut off")
    assert not (tmp_path / "imported").exists()


def test_a_base_that_is_an_adapter_itself_is_refused(base: StoredCheckpoint, tmp_path: Path) -> None:
    first = import_adapter(write(tmp_path / "adapter"), tmp_path / "first", base)
    other = find_newest(first.checkpoint, weights_only=True).require()
    with pytest.raises(
        CheckpointError,
        match=r"holds only what was trained on a base; merge the two first .*name the base of that adapter",
    ):
        import_adapter(tmp_path / "adapter", tmp_path / "second", other)
