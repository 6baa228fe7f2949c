"""What the predecessor had and this version does not is refused by name, unless it is switched off."""

from __future__ import annotations

import pytest

from scaling.core.errors import ConfigError
from scaling.transformer.config.root import TransformerConfig

UNAVAILABLE = [
    "transformer_architecture.image_encoder=true",
    "transformer_architecture.embedding_head_config={name: a, proj_layers: [1]}",
    "transformer_architecture.umup.enable=true",
    "data.embedding_dataset=true",
    "data.embedding_dataset_memory_map=true",
]


@pytest.mark.parametrize("override", UNAVAILABLE)
def test_a_feature_this_version_does_not_have_is_refused_instead_of_ignored(override: str) -> None:
    with pytest.raises(ConfigError) as raised:
        TransformerConfig.from_dict({}, [override])
    path = override.partition("=")[0]
    assert str(raised.value) == f"{path}: is not available in this version; remove it"


def test_the_head_is_not_in_8_bits() -> None:
    with pytest.raises(
        ConfigError, match=r"not available in this version; remove it: the head is computed in the precision of the"
    ):
        TransformerConfig.from_dict({}, ["transformer_architecture.fp8_config_lm_head={}"])


def test_what_another_command_does_is_named() -> None:
    with pytest.raises(
        ConfigError, match=r"not available in this version; merge once, with scaling checkpoint merge BASE"
    ):
        TransformerConfig.from_dict({}, ["trainer.merge_lora_after_loading_checkpoint=true"])


def test_null_is_off() -> None:
    config = TransformerConfig.from_dict({}, ["trainer.merge_lora_after_loading_checkpoint=null"])
    assert not config.trainer.merge_lora_after_loading_checkpoint
