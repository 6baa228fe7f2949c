"""Losses of made-up models: what is wrong in them is known, and so is what has to be found."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from scaling.core.verify.diagnosis import Replacement, Trial, causes

Weights = Mapping[str, float]

KEYS = tuple(f"layers.{layer}.{name}" for layer in (1, 2, 10) for name in ("weight", "bias"))
INITIAL = {key: 0.0 if key.endswith("bias") else 1.0 for key in KEYS}
NOW = {key: value + 0.25 for key, value in INITIAL.items()}


def right(weights: Weights) -> float:
    return 10.0 + sum(weights[key] * (index + 1) for index, key in enumerate(KEYS))


def find(wrong: Callable[[Weights], float], now: Weights = NOW, initial: Weights = INITIAL) -> tuple[str, ...]:
    def attempt(changes: Mapping[str, Replacement]) -> Trial:
        weights = {**now, **{key: initial[key] if how == "initial" else 0.0 for key, how in changes.items()}}
        return Trial(wrong(weights), right(weights))

    return causes(KEYS, attempt, tolerance=1e-10)


def test_a_parameter_that_was_neutral_at_first_is_found() -> None:
    assert find(lambda weights: right(weights) + weights["layers.2.bias"]) == ("layers.2.bias",)


def test_several_layers_and_names_are_found_in_the_order_of_the_model() -> None:
    def wrong(weights: Weights) -> float:
        return right(weights) + weights["layers.10.bias"] + weights["layers.2.bias"] + weights["layers.2.weight"] - 1.0

    assert find(wrong) == ("layers.2.weight", "layers.2.bias", "layers.10.bias")


def test_a_parameter_that_was_never_neutral_is_found() -> None:
    assert find(lambda weights: right(weights) + weights["layers.1.weight"], initial=NOW) == ("layers.1.weight",)


def test_of_several_ways_to_agree_the_smallest_change_is_taken() -> None:
    """Without the large weights nothing of the layers is left, so that everything would agree."""

    def wrong(weights: Weights) -> float:
        alive = all(weights[key] for key in KEYS if key.endswith("weight"))
        return right(weights) + alive * weights["layers.1.bias"]

    assert find(wrong, initial=NOW) == ("layers.1.bias",)


def test_two_names_that_are_wrong_from_the_start_are_found_together() -> None:
    def wrong(weights: Weights) -> float:
        return right(weights) + weights["layers.1.weight"] + 2 * weights["layers.10.bias"]

    assert find(wrong, initial=NOW) == ("layers.1.weight", "layers.10.bias")


def test_what_need_not_vanish_is_left_out_where_losses_have_to_be_equal_to_the_bit() -> None:
    """Of a product that is wrong either factor may vanish. The one tried first is taken back once the other has."""
    keys = ("layers.1.a", "layers.1.b", "layers.1.c")

    def attempt(changes: Mapping[str, Replacement]) -> Trial:
        a, b, c = (0.0 if changes.get(key) == "zero" else 1.0 for key in keys)
        expected = 10 + 2 * a + 4 * b + c
        return Trial(expected + a * c + b, expected)

    assert causes(keys, attempt, tolerance=0.0) == ("layers.1.a", "layers.1.b")


def test_what_comes_through_no_parameter_is_blamed_on_none() -> None:
    assert find(lambda weights: 2 * right(weights)) == ()
