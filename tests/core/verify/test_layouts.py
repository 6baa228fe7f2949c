"""Two layouts are compared: what is the same, and where and how the others differ, by name."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from scaling.core import ConfigError, ScalingError, verify_layout
from scaling.core.verify.world import LocalWorld
from tests.core.verify.regression import Nothing, layout, recipe

verify = partial(verify_layout, timeout=60.0)


def test_layouts_that_agree_are_said_to_agree_in_everything() -> None:
    report = verify(recipe(), layout(pipe=2, data=1, model=2), layout(data=2, steps=1))
    assert report.agrees
    assert report.elements == sum((8 * 16 + 16, 3 * (32 + 16 * 32 + 32 + 32 * 16 + 16), 16 * 4 + 4))
    assert set(report.worst) == {
        "initial weights",
        "loss",
        "gradients",
        "gradient norm",
        "updated weights",
        "evaluation loss",
    }
    assert all(gap.relative < 1e-13 for gap in report.worst.values())
    assert len(report.digest or "") == 64


def test_a_bias_added_on_every_rank_is_named_although_it_is_zero_at_first() -> None:
    report = verify(recipe(broken=(1,)), layout(model=2))
    assert report.parting is not None
    assert report.parting.gap.quantity == "loss"
    assert report.parting.gap.step == 2
    assert report.parting.parameters == ("layers.2.down.bias",)


def test_biases_of_several_layers_are_named_together() -> None:
    report = verify(recipe(broken=(0, 2)), layout(pipe=2, model=2))
    assert report.parting is not None
    assert report.parting.parameters == ("layers.1.down.bias", "layers.3.down.bias")


def test_a_bias_that_is_not_zero_at_first_is_named_at_the_first_step() -> None:
    report = verify(recipe(broken=(1,), bias_std=0.5), layout(model=2))
    assert report.parting is not None
    assert report.parting.gap.step == 1
    assert report.parting.parameters == ("layers.2.down.bias",)


def test_a_gradient_that_is_not_summed_is_named_with_rank_and_place() -> None:
    report = verify(recipe(forgetful=(1,)), layout(model=2))
    assert report.parting is not None
    gap = report.parting.gap
    assert (gap.quantity, gap.step, gap.key) == ("gradients", 1, "layers.2.norm.bias")
    assert gap.rank in (0, 1)
    assert len(gap.index) == 1
    assert gap.actual != gap.expected
    # Whatever comes before the mistake has a wrong gradient too, what comes behind it has not. The nearest comes first:
    # the last that its layer registers, not the last by name.
    block = [f"{module}.{name}" for module in ("down", "up", "norm") for name in ("bias", "weight")]
    nearest = ["layers.2.norm.bias", "layers.2.norm.weight", *(f"layers.1.{name}" for name in block)]
    assert list(report.parting.parameters[: len(nearest)]) == nearest
    assert {key.split(".")[1] for key in report.parting.parameters} == {"0", "1", "2"}
    assert not [key for key in report.parting.parameters if key.startswith("layers.2.") and "norm" not in key]


def test_a_mean_of_means_comes_in_through_the_loss() -> None:
    report = verify(recipe(wrong_loss=True), layout(data=2))
    assert report.parting is not None
    assert report.parting.gap.quantity == "loss"
    assert report.parting.gap.step == 1


def test_initial_weights_that_differ_are_named_with_their_rank() -> None:
    report = verify(recipe(extra="by rank"), layout(data=2))
    assert report.digest is None
    assert report.parting is not None
    gap = report.parting.gap
    assert (gap.quantity, gap.step, gap.key, gap.rank) == ("initial weights", 0, "layers.4.scale", 1)
    assert (gap.actual, gap.expected) == (2.0, 1.0)


def test_ranks_of_the_reference_are_compared_with_each_other() -> None:
    report = verify(recipe(extra="by rank"), layout(), layout(data=2, steps=1))
    assert report.parting is not None
    assert "reference" in report.parting.message


def test_a_parameter_that_one_layout_lacks_is_named() -> None:
    report = verify(recipe(extra="only in parallel"), layout(data=2))
    assert report.parting is not None
    assert report.parting.gap.quantity == "parameters"
    assert report.parting.gap.key == "layers.4.scale"
    assert report.parting.message == "only the layout has it"


def test_what_a_layer_raises_is_reported_with_its_rank() -> None:
    with pytest.raises(ScalingError, match=r"(?s)rank \d failed.*this layer never works"):
        verify(recipe(extra="failing"), layout(data=2))


def test_a_process_that_ends_is_reported() -> None:
    with pytest.raises(ScalingError, match="the process of rank 1 ended with status 7"):
        verify(recipe(extra="dying"), layout(data=2))


def test_a_process_that_ends_is_named_before_those_that_noticed_it() -> None:
    with LocalWorld(recipe(extra="dying later"), layout(data=2), name="two", timeout=60.0) as world:
        world.call("step", 1)
        world.start("step", 2)
        assert all(connection.poll(60) for connection in world._connections)
        with pytest.raises(ScalingError, match="the process of rank 1 ended with status 7"):
            world.finish()
    world.close()  # leaving has done it already


def test_layouts_of_different_batches_are_refused() -> None:
    with pytest.raises(ConfigError, match="different global batches"):
        verify(recipe(), layout(data=2), layout())


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("not a number", "the loss of step 1 is nan in both"),
        ("no gradient number", "the gradient norm of step 1 is nan in both"),
    ],
)
def test_numbers_that_are_not_finite_prove_nothing(extra: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        verify(recipe(extra=extra), layout(data=2))


def test_steps_without_anything_that_counts_prove_nothing() -> None:
    with pytest.raises(ConfigError, match="no sample of the 2 steps counts"):
        verify(replace(recipe(), training=Nothing(50)), layout(data=2), steps=2)


def test_at_least_one_step_is_needed() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        verify(recipe(), layout(data=2), steps=0)


def test_a_recipe_that_cannot_be_sent_is_refused() -> None:
    unsent = replace(recipe(), layers=lambda topology: [])
    with pytest.raises(ConfigError, match="functions of a module"):
        verify(unsent, layout(data=2))
