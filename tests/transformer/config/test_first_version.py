"""The settings of version 0.1 that chose what is trained mean the same here: groups, rates, decay, members by name."""

from __future__ import annotations

import itertools
import re
import warnings
from collections.abc import Sequence
from typing import Any

import pytest

from scaling.core import ConfigError, name_in_layer
from scaling.core.config.fields import ConfigWarning
from scaling.core.optimizer.patterns import takes_parameter
from scaling.transformer.config import TransformerConfig
from scaling.transformer.config.first_version import read_first_version
from scaling.transformer.config.model_plan import plan_of

RATE: dict[str, Any] = {
    "learning_rate": 0.01,
    "learning_rate_minimum": 0.001,
    "learning_rate_decay_style": "cosine",
    "learning_rate_decay_iters": 10,
    "learning_rate_warmup_steps": 2,
}
OF_EMBEDDING: dict[str, Any] = {**RATE, "learning_rate": 0.02}
UNUSED: dict[str, Any] = {"learning_rate": 0.0, "learning_rate_decay_style": "cosine", "learning_rate_decay_iters": 0}
"""As version 0.1 wrote it into every file it saved."""

BARE: dict[str, Any] = {"attention_bias": False, "mlp_bias": False, "norm_type": "rms", "weight_tying": False}
BIASED: dict[str, Any] = {"attention_bias": True, "mlp_bias": True, "norm_type": "layernorm"}
SELECTIONS: list[dict[str, Any]] = [
    {},
    {"weight_decay": 0.1, "finetune": False, "finetunable_parameters": [], "parameters_exclude": []},
    {"parameters_exclude": ["norm", r"\.bias$"]},
    {"parameters_exclude": ["embedding"]},
    {"use_separate_lr_on_embeddings": True},
    {"use_seperate_lr_on_embeddings": True, "weight_decay": 0.3, "parameters_exclude": ["norm"]},
    {"use_separate_lr_on_embeddings": True, "parameters_exclude": [r"^embedding\.weight$"]},
    {"finetune": True, "finetunable_parameters": ["mlp", "input_layernorm"]},
    {"finetune": True, "finetunable_parameters": ["mlp", "norm"], "parameters_exclude": ["dense_out", "norm"]},
    {"finetune": True, "finetunable_parameters": ["(?i)DENSE_IN"], "weight_decay": 0.2},
]
ONLY_WITH_BIASES: list[dict[str, Any]] = [
    {"finetune": True, "finetunable_parameters": [r"\.bias$"]},
    {"finetune": True, "finetunable_parameters": [r"\.bias$", "mlp"], "parameters_exclude": ["norm"]},
]
CASES = [*itertools.product((BARE, BIASED), SELECTIONS), *((BIASED, selection) for selection in ONLY_WITH_BIASES)]

Group = tuple[float, float, frozenset[str]]
"""Peak learning rate, weight decay, members."""


def as_version_1(selection: dict[str, Any], names: Sequence[str]) -> dict[str, Group]:
    """Return the groups that version 0.1 made: parameters dealt out one by one, then exclusions, then empty groups."""
    separate = any(selection.get(f"use_{word}_lr_on_embeddings") for word in ("separate", "seperate"))
    decay = selection.get("weight_decay", 1e-4)
    dealt: dict[str, set[str]] = {f"{kind}weight_decay_params": set() for kind in ("", "no_", "embedding_")}
    for name in names:
        if selection.get("finetune") and not any(
            re.search(pattern, name) for pattern in selection["finetunable_parameters"]
        ):
            continue
        if separate and name == "embedding.weight":
            dealt["embedding_weight_decay_params"].add(name)
        elif name.endswith(".bias"):
            dealt["no_weight_decay_params"].add(name)
        else:
            dealt["weight_decay_params"].add(name)
    for pattern in selection.get("parameters_exclude", ()):
        for members in dealt.values():
            members -= {name for name in members if re.search(pattern, name)}
    return {
        group: (
            0.02 if group.startswith("embedding") else 0.01,
            0.0 if group.startswith("no_") else decay,
            frozenset(members),
        )
        for group, members in dealt.items()
        if members
    }


def values(architecture: dict[str, Any], selection: dict[str, Any]) -> dict[str, Any]:
    return {
        "transformer_architecture": architecture,
        "training": {"allow_missing_params_in_optimizer": False, **selection},
        "learning_rate_scheduler": RATE,
        "embedding_learning_rate_scheduler": OF_EMBEDDING,
    }


def load(given: dict[str, Any], *overrides: str) -> tuple[TransformerConfig, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConfigWarning)
        config = TransformerConfig.from_dict(given, overrides)
    return config, [str(warning.message) for warning in caught]


def names_of(config: TransformerConfig) -> list[str]:
    return [name_in_layer(parameter.name) for parameter in plan_of(config.transformer_architecture).parameters()]


def groups_of(config: TransformerConfig) -> dict[str, Group]:
    names = names_of(config)
    return {
        group.group_name: (
            group.learning_rate_scheduler.learning_rate,
            group.weight_decay,
            frozenset(
                name
                for name in names
                if takes_parameter(name, group.parameters_include or (), group.parameters_exclude)
            ),
        )
        for group in config.training_groups
    }


@pytest.mark.parametrize(("architecture", "selection"), CASES)
def test_groups_are_those_of_version_1(architecture: dict[str, Any], selection: dict[str, Any]) -> None:
    config, notes = load(values(architecture, selection))
    expected = as_version_1(selection, names_of(config))
    assert list(groups_of(config).items()) == list(expected.items())  # in this order
    assert config.training.allow_missing_params_in_optimizer == selection.get("finetune", False)
    assert config.training_groups[0].learning_rate_scheduler.learning_rate_decay_iters == 10
    (note,) = notes
    assert note.startswith("training_groups: are made of ")
    assert all(f'"group_name": "{name}"' in note for name in expected)
    assert load_again(config.to_yaml()) == config


def load_again(text: str) -> TransformerConfig:
    """Load what was saved, which is in the present form: nothing is noted."""
    return TransformerConfig.from_str(text)


def test_a_selection_that_takes_no_bias_leaves_out_their_group() -> None:
    plain, _ = load(values(BARE, {"weight_decay": 0.1}))
    assert [group.group_name for group in plain.training_groups] == ["weight_decay_params"]
    bitfit, _ = load(values(BIASED, ONLY_WITH_BIASES[0]))
    assert [group.group_name for group in bitfit.training_groups] == ["no_weight_decay_params"]


def test_a_schedule_that_nobody_uses_may_be_anything() -> None:
    given = {**values(BARE, {"weight_decay": 0.1}), "embedding_learning_rate_scheduler": UNUSED}
    assert len(load(given)[0].training_groups) == 1


def test_the_note_shows_groups_that_load_in_their_place() -> None:
    given = values(BIASED, {"finetune": True, "finetunable_parameters": ["mlp", r"\.bias$"]})
    config, (note,) = load(given)
    said, _, shown = note.partition("write instead ")
    assert "training.finetune, training.finetunable_parameters and embedding_learning_rate_scheduler" in said
    groups, _, allowed = shown.rpartition(", and ")
    assert allowed == "training.allow_missing_params_in_optimizer: true"
    text = f"training: {{allow_missing_params_in_optimizer: true}}\n{groups}"
    assert load_again(text).training_groups == config.training_groups


def test_settings_of_version_1_are_overridden_by_their_names() -> None:
    config, _ = load(
        values(BARE, {"weight_decay": 0.1}), "training.weight_decay=0.5", "learning_rate_scheduler.learning_rate=0.25"
    )
    (group,) = config.training_groups
    assert (group.weight_decay, group.learning_rate_scheduler.learning_rate) == (0.5, 0.25)
    separate, _ = load(
        values(BARE, {"weight_decay": 0.1}),
        "training.use_separate_lr_on_embeddings=true",
        "embedding_learning_rate_scheduler.learning_rate=0.125",
    )
    assert separate.training_groups[-1].learning_rate_scheduler.learning_rate == 0.125


def test_the_present_form_is_returned_as_it_is() -> None:
    given = {"training": {}, "learning_rate_scheduler": RATE, "training_groups": []}
    assert read_first_version(given).values is given


BOTH = "of which version 0.1 made groups of its own; remove one of the two, from the file or from the command line"


@pytest.mark.parametrize(
    ("changes", "overrides", "problems"),
    [
        (
            {"training": {"finetune": True}},
            [],
            [
                "training.finetune: is true, but finetunable_parameters names nothing to train; give patterns there, "
                "or set it to false"
            ],
        ),
        (
            {"training": {"finetunable_parameters": ["mlp"]}},
            [],
            [
                "training.finetunable_parameters: are ['mlp'], but finetune is false; set it to true, or remove them",
            ],
        ),
        (
            {
                "training": {
                    "finetune": True,
                    "finetunable_parameters": ["mlp"],
                    "use_separate_lr_on_embeddings": True,
                },
            },
            [],
            [
                "training.use_separate_lr_on_embeddings: is true together with finetune; set one of them to false, or "
                "write training_groups",
            ],
        ),
        (
            {"training": {"use_separate_lr_on_embeddings": True}, "embedding_learning_rate_scheduler": None},
            [],
            [
                "embedding_learning_rate_scheduler: is needed with training.use_separate_lr_on_embeddings; give it",
            ],
        ),
        (
            {"training": {"finetune": True, "finetunable_parameters": ["mlp", "atention.dense"]}},
            [],
            [
                "training.finetunable_parameters.1: 'atention.dense' matches no parameter; did you mean "
                "self_attention.dense?",
            ],
        ),
        (
            {"training": {"parameters_exclude": ["."]}},
            [],
            ["training.parameters_exclude: leaves nothing to train; remove what is to be trained"],
        ),
        (
            {"training": {"weight_decay": "much", "finetunable_parameters": ["("], "finetune": 1}},
            [],
            [
                "training.weight_decay: must be a number of at least 0, not 'much'",
                "training.finetune: must be true or false, not 1",
            ],
        ),
        (
            {"training": {"finetune": True, "finetunable_parameters": ["("], "parameters_exclude": ["["]}},
            [],
            [
                "training.finetunable_parameters.0: is '(', which is not a regular expression: missing ), unterminated "
                "subpattern at position 0",
                "training.parameters_exclude.0: is '[', which is not a regular expression: unterminated character set "
                "at position 0",
            ],
        ),
        (
            {"training": {"use_separate_lr_on_embeddings": True, "use_seperate_lr_on_embeddings": True}},
            [],
            [
                "training.use_seperate_lr_on_embeddings: is the earlier name of use_separate_lr_on_embeddings, which "
                "is given too; remove use_seperate_lr_on_embeddings",
            ],
        ),
        (
            {"learning_rate_scheduler": {"learning_rate": -1}, "transformer_architecture": {"num_layers": 0}},
            [],
            [
                "learning_rate_scheduler.learning_rate: must be a number of at least 0, not -1",
                "transformer_architecture.num_layers: must be a whole number of at least 1, not 0",
            ],
        ),
        (
            {"training_groups": [{"group_name": "all"}]},
            [],
            [
                f"training_groups: are given together with training.weight_decay and "
                f"embedding_learning_rate_scheduler, {BOTH}",
            ],
        ),
        (
            {"embedding_learning_rate_scheduler": OF_EMBEDDING},
            ["training_groups.0.group_name=all"],
            [
                f"training_groups: are given together with training.weight_decay and "
                f"embedding_learning_rate_scheduler, {BOTH}",
            ],
        ),
    ],
)
def test_what_version_1_refused_is_named_where_it_was_written(
    changes: dict[str, Any], overrides: list[str], problems: list[str]
) -> None:
    with pytest.raises(ConfigError) as raised:
        TransformerConfig.from_dict({**values(BIASED, {"weight_decay": 0.1}), **changes}, overrides)
    assert [str(problem) for problem in raised.value.problems] == problems
