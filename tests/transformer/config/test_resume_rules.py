"""What a change of each setting means to a run that is resumed: every setting says it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from scaling.core.checkpoint.resume import ChangeRules
from scaling.core.config.base import BaseConfig
from scaling.core.config.explain import sections_of
from scaling.core.config.fields import NoEffect, OnResume, SetByLauncher, marker
from scaling.transformer.config.root import TransformerConfig
from scaling.transformer.train import CHANGE_RULES

RULES = CHANGE_RULES.over(ChangeRules.of(TransformerConfig))


def settings_of(section: type[BaseConfig], below: str = "") -> Iterator[str]:
    """Yield the paths of all settings that a checkpoint keeps, 0 standing for any item of a list."""
    for name, field in section.model_fields.items():
        if marker(field, NoEffect) or marker(field, SetByLauncher):
            continue
        yield f"{below}{name}"
        for inner in sections_of(field.annotation):
            if issubclass(inner, BaseConfig):
                item = "0." if str(field.annotation).startswith("list") else ""
                yield from settings_of(inner, f"{below}{name}.{item}")


def test_every_setting_has_a_rule() -> None:
    settings = list(settings_of(TransformerConfig))
    assert len(settings) > 150
    assert [setting for setting in settings if RULES.find(setting) is None] == []


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (
            OnResume.IDENTITY,
            "transformer_architecture.hidden_size transformer_architecture.umup.enable "
            "transformer_architecture.masked_softmax.scale transformer_architecture.logit_scale data.eod_token_id "
            "transformer_architecture.absolute_positions transformer_architecture.rotary.factor "
            "transformer_architecture.attention_kinds fingerprints.tokenizer",
        ),
        (OnResume.ORDER, "trainer.seed fingerprints.data transformer_architecture.sequence_length"),
        (
            OnResume.SCHEDULE,
            "transformer_architecture.precision transformer_architecture.dropout_attention_probs optimizer.beta1 "
            "transformer_architecture.initialization.std "
            "optimizer.loss_scaler.window topology.global_batch_size training.loss_function_config.loss_type "
            "training.loss_function_config.z_loss "
            "training_groups.0.learning_rate_scheduler.learning_rate trainer.train_iterations",
        ),
        (
            OnResume.RUNTIME,
            "transformer_architecture.masked_softmax.kernel transformer_architecture.vocab_file optimizer.zero "
            "optimizer.allreduce_bucket_size topology.data_parallel_size topology.sequence_parallel trainer.save_dir "
            "training.loss_function_config.chunk_size data.data_prefixes runner.hosts logger.log_dir "
            "profiler.profile_steps version",
        ),
    ],
)
def test_settings_mean_what_the_documentation_says(kind: OnResume, settings: str) -> None:
    assert {setting: RULES.kind(setting) for setting in settings.split()} == dict.fromkeys(settings.split(), kind)
