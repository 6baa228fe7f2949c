"""config.json to our settings and back, for every family, against the configuration classes of transformers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import transformers

from scaling.core import ConfigError
from scaling.transformer.config.architecture import TransformerArchitectureConfig
from scaling.transformer.config.model_plan import plan_of
from scaling.transformer.hf.choose import family_for, family_of
from scaling.transformer.hf.families import FAMILIES as OURS
from scaling.transformer.hf.family import Family
from scaling.transformer.hf.fields import Only
from scaling.transformer.hf.inert import INERT
from tests.transformer.hf.in_memory import architecture_of, config_json, rows_of, their_tensors
from tests.transformer.hf.tiny_models import FAMILIES

Config = dict[str, Any]

FLAT = [name for name in FAMILIES if name != "gpt2"]
"""All that are rotated."""


def as_transformers_reads(config: Mapping[str, Any]) -> Config:
    """Return all fields of a config.json, the missing ones filled in."""
    fields: Config = transformers.AutoConfig.for_model(**json.loads(json.dumps(config))).to_dict()
    fields.pop("transformers_version")
    return json.loads(json.dumps(fields, default=str))  # type: ignore[no-any-return]  # json.loads is Any


def exported(config: Mapping[str, Any]) -> Config:
    """Return what is written of an imported config.json."""
    return family_of(config).config(architecture_of(config), family_of(config).inert(config))


def in_old_schema(config: Config) -> Config:
    """Return a config.json as it was written before `rope_parameters`."""
    old = dict(config)
    rope = json.loads(json.dumps(old.pop("rope_parameters")))
    if "full_attention" in rope:
        sliding, rope = rope["sliding_attention"], rope["full_attention"]
        if old["model_type"] == "gemma3_text":
            old["rope_local_base_freq"] = sliding["rope_theta"]
    neox = old["model_type"] == "gpt_neox"
    old["rotary_emb_base" if neox else "rope_theta"] = rope.pop("rope_theta")
    if "partial_rotary_factor" in rope:
        old["rotary_pct" if neox else "partial_rotary_factor"] = rope.pop("partial_rotary_factor")
    if old["model_type"] == "phi3":
        rope.pop("original_max_position_embeddings", None)
    old["rope_scaling"] = None if rope == {"rope_type": "default"} else rope
    return old


@pytest.mark.parametrize("name", FAMILIES)
def test_a_config_comes_back_as_it_was(name: str) -> None:
    config = config_json(name)
    again = exported(config)
    assert as_transformers_reads(again) == as_transformers_reads(config)
    assert family_of(again).section(again) == family_of(config).section(config)
    assert family_for(architecture_of(config), model_type=config["model_type"]) is family_of(config)


@pytest.mark.parametrize("name", FLAT)
def test_the_old_schema_says_the_same(name: str) -> None:
    old = in_old_schema(config_json(name))
    present = as_transformers_reads(old)
    assert family_of(old).section(old) == family_of(present).section(present)
    again = exported(old)
    assert not {"rope_scaling", "rope_theta", "rotary_emb_base", "rotary_pct", "rope_local_base_freq"} & set(again)
    assert as_transformers_reads(again) == present


@pytest.mark.parametrize("family", OURS, ids=lambda family: family.model_type)
def test_a_missing_field_has_the_default_of_its_class(family: Family) -> None:
    config = transformers.AutoConfig.for_model(family.model_type)
    complete = {**json.loads(config.to_json_string(use_diff=False)), "architectures": None, "dtype": None}
    nothing = {"model_type": family.model_type}
    assert list(family.problems(complete)) == []
    assert plan_of(architecture_of(complete)) == plan_of(architecture_of(nothing))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_table_has_every_tensor_of_theirs_and_of_ours_once(name: str) -> None:
    config = config_json(name)
    family = family_of(config)
    plan = plan_of(architecture_of(config))
    maps = family.tensors(plan)
    theirs = their_tensors(name, family)
    assert {one.name: one.shape for one in maps} == {key: tuple(tensor.shape) for key, tensor in theirs.items()}
    assert len(maps) == len(theirs)
    sources = [source for one in maps for source in one.sources]
    assert {one.key: one.shape for one in sources} == {one.name: one.shape for one in plan.parameters()}
    for one in maps:
        covered = [row for source in one.sources for row in rows_of(source.shape[0], source.rows)]
        assert sorted(covered) == list(range(one.shape[-1] if one.transposed else one.shape[0]))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_bias_stays_with_its_weight(name: str) -> None:
    config = config_json(name)
    modules: dict[str, list[str]] = {}
    for one in family_of(config).tensors(plan_of(architecture_of(config))):
        ours = [source.key.rpartition(".")[0] for source in one.sources]
        assert modules.setdefault(one.name.rpartition(".")[0], ours) == ours


def changed(value: Any) -> Any:
    """Return another value of the same kind."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case "sliding_attention":
            return "full_attention"
        case "full_attention":
            return "sliding_attention"
        case str():
            return "relu"
        case None:
            return 3
        case [first, *rest]:
            return [changed(first), *rest]
    raise AssertionError(value)


def variants(family: Family) -> Iterator[Config]:
    """Yield files of a family in all schemas, with and without a list of the layers."""
    model_type = family.model_type
    only = {part.name: part.values[-1] for part in family.parts if isinstance(part, Only)}
    for name in FAMILIES:
        config = config_json(name)
        if config["model_type"] != model_type:
            continue
        schemas = [config] if name == "gpt2" else [config, in_old_schema(config)]
        for fields in schemas:
            yield fields
            yield {key: value for key, value in fields.items() if key not in ("layer_types", "no_rope_layers")}
        if model_type == "gpt_neox":
            yield {**schemas[1], "rope_theta": 10000.0, "partial_rotary_factor": 0.25}
        elif name != "gpt2":
            yield {**config, "head_dim": 16, **only}


def one_change(fields: Mapping[str, Any], path: str) -> Iterator[tuple[str, Config]]:
    """Yield (path, fields with one value changed) of every value, also in sections within."""
    for key, value in fields.items():
        if isinstance(value, dict):
            for inner, other in one_change(value, f"{path}{key}."):
                yield inner, {**fields, key: other}
        else:
            yield f"{path}{key}", {**fields, key: changed(value)}


@pytest.mark.parametrize("family", OURS, ids=lambda family: family.model_type)
def test_every_field_that_is_not_inert_changes_the_architecture(family: Family) -> None:
    reacts: dict[str, bool] = {}
    for config in variants(family):
        before = family.section(config)
        for path, other in one_change(config, ""):
            seen = any(True for _ in family.problems(other)) or family.section(other) != before
            reacts[path] = reacts.get(path, False) or seen
    inert = INERT | family.inert_names | {"architectures", "model_type", "transformers_version"}
    assert [path for path, seen in reacts.items() if not seen and path not in inert] == []
    assert [path for path, seen in reacts.items() if seen and path in family.inert_names] == []
    asked = {path.split(".")[0] for path, seen in reacts.items() if seen}
    assert {name for part in family.parts for name in part.names} - asked == set()


@pytest.mark.parametrize("family", OURS, ids=lambda family: family.model_type)
def test_whatever_a_field_says_is_written_again(family: Family) -> None:
    count = 0
    for config in (config_json(name) for name in FAMILIES):
        if config["model_type"] != family.model_type:
            continue
        for path, other in one_change(config, ""):
            if path in INERT or path in family.inert_names or any(True for _ in family.problems(other)):
                continue
            try:
                architecture = TransformerArchitectureConfig.from_dict(family.section(other))
            except ConfigError:
                continue
            again = family.section(family.config(architecture))
            assert plan_of(TransformerArchitectureConfig.from_dict(again)) == plan_of(architecture), path
            count += 1
    assert count > 8


def test_fields_that_change_nothing_are_kept() -> None:
    config = {**config_json("llama"), "pretraining_tp": 2, "temperature": 0.3, "unsloth_version": "1"}
    kept = exported(config)
    assert {key: kept[key] for key in ("pretraining_tp", "temperature", "unsloth_version", "use_cache")} == {
        "pretraining_tp": 2,
        "temperature": 0.3,
        "unsloth_version": "1",
        "use_cache": False,
    }


def test_a_kept_field_does_not_undo_what_was_changed_since() -> None:
    config = {**config_json("qwen2_plain"), "rms_norm_eps": 1e-6}
    family = family_of(config)
    kept = family.inert(config)
    assert {"rms_norm_eps", "max_window_layers"} <= set(kept)
    written = family.config(architecture_of(config, layernorm={"layernorm_epsilon": 0.5}), kept)
    assert written["rms_norm_eps"] == 0.5
    assert written["max_window_layers"] == 28


def test_a_kept_field_that_goes_without_saying_is_written_again() -> None:
    config = {**config_json("qwen2"), "head_dim": 12, "hidden_act": "swish"}
    written = exported(config)
    assert (written["head_dim"], written["hidden_act"]) == (12, "swish")
    assert "head_dim" not in exported(config_json("qwen2"))


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("gpt2", "h.3.attn.bias"),
        ("gpt2", "transformer.h.11.attn.masked_bias"),
        ("gpt_neox", "gpt_neox.layers.3.attention.masked_bias"),
        ("gpt_neox", "gpt_neox.layers.3.attention.rotary_emb.inv_freq"),
        ("llama", "model.layers.3.self_attn.rotary_emb.inv_freq"),
    ],
)
def test_tensors_of_old_files_that_nobody_needs_are_ignored(name: str, tensor: str) -> None:
    config = config_json(name)
    family = family_of(config)
    assert any(re.fullmatch(pattern, tensor) for pattern in family.ignored)
    for needed in their_tensors(name, family):
        assert not any(re.fullmatch(pattern, needed) for pattern in family.ignored)


@pytest.mark.parametrize(
    ("name", "old", "present"),
    [
        ("gpt2", "h.3.ln_1.weight", "transformer.h.3.ln_1.weight"),
        ("gpt2", "wte.weight", "transformer.wte.weight"),
        ("gpt2", "transformer.wpe.weight", "transformer.wpe.weight"),
        ("gpt2", "lm_head.weight", "lm_head.weight"),
        ("gpt_neox", "lm_head.weight", "embed_out.weight"),
        ("gpt_neox", "embed_out.weight", "embed_out.weight"),
        ("llama", "lm_head.weight", "lm_head.weight"),
    ],
)
def test_tensors_have_older_names(name: str, old: str, present: str) -> None:
    assert family_of(config_json(name)).renamed(old) == present
