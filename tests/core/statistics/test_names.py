"""Which statistics a tensor gets by its name."""

from __future__ import annotations

import pytest

from scaling.core.errors import ConfigError
from scaling.core.statistics.config import Statistic, TensorStatisticsRecorderConfig
from scaling.core.statistics.names import chosen, joined_names

NAMES = [
    "parameters/layers.0.weight",
    "parameters/layers.1.bias",
    "parameter_gradients/layers.0.weight",
    "activations/layers.1.mlp",
]


def config(*pairs: tuple[str, list[str]]) -> TensorStatisticsRecorderConfig:
    return TensorStatisticsRecorderConfig.from_dict({"statistics": [list(pair) for pair in pairs]})


def test_the_first_pattern_that_fits_counts() -> None:
    found = chosen(NAMES, config(("*.bias", []), ("activations/*", ["max"]), ("layers.0.*", ["mean", "mean", "std"])))
    assert found == {
        "parameters/layers.0.weight": (Statistic.MEAN, Statistic.STD),
        "parameter_gradients/layers.0.weight": (Statistic.MEAN, Statistic.STD),
        "activations/layers.1.mlp": (Statistic.MAX,),
    }


def test_the_default_takes_every_tensor() -> None:
    assert list(chosen(NAMES, TensorStatisticsRecorderConfig())) == NAMES


def test_a_pattern_that_fits_nothing_is_named_with_what_it_may_mean() -> None:
    with pytest.raises(ConfigError) as raised:
        chosen(NAMES, config(("layers.1.mpl", ["mean"]), ("*", ["mean"]), ("layers.1.*", ["max"])))
    setting = "trainer.tensor_statistics_recorder_config.statistics"
    assert str(raised.value).splitlines() == [
        "2 problems:",
        f"  - {setting}.0: has the pattern 'layers.1.mpl', which fits none of the model's 4 tensors; did you mean "
        "'layers.1.mlp'? names are like 'parameters/layers.0.weight'",
        f"  - {setting}.2: has the pattern 'layers.1.*', but all that it fits is taken by '*', which comes before; "
        "move it up",
    ]


def test_names_of_ranks_are_joined_in_the_order_of_the_model() -> None:
    ranks = [["activations/layers.2"], [], ["parameters/layers.10.w", "parameters/layers.9.w", "activations/layers.2"]]
    assert joined_names(ranks) == ["parameters/layers.9.w", "parameters/layers.10.w", "activations/layers.2"]
