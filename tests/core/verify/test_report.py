"""What a comparison of layouts says as text: of agreement, and of where two layouts part."""

from __future__ import annotations

import math

from scaling.core import Gap, LayoutReport, Parting

GRADIENT = Gap(
    quantity="gradients", step=2, relative=0.5, actual=2.0, expected=1.0, key="layers.1.dense.bias", rank=3, index=(7,)
)
SMALL = Gap(quantity="gradients", step=2, relative=3e-15, key="layers.0.embedding.weight", rank=1, index=(7, 0))


def test_agreement_is_said_with_the_largest_differences() -> None:
    report = LayoutReport(steps=3, tolerance=1e-10, digest="ab" * 32, elements=1234, worst={"gradients": SMALL})
    assert str(report).splitlines() == [
        "3 steps, 1,234 parameters; largest relative differences:",
        "  initial weights  identical, SHA-256 abababababababab...",
        "  gradients        3.0e-15  step 2  layers.0.embedding.weight[7, 0] on rank 1",
        "The layouts are the same training run (to 1e-10).",
    ]


def test_a_parting_names_parameter_step_rank_and_place() -> None:
    parting = Parting(GRADIENT, parameters=tuple(f"layers.{layer}.dense.bias" for layer in range(1, 9)))
    report = LayoutReport(steps=3, tolerance=1e-10, elements=1234, worst={"loss": SMALL}, parting=parting)
    first, *_, where, names = str(report).splitlines()
    assert first == "parted in step 2 of 3, 1,234 parameters; largest relative differences until then:"
    assert where == (
        "The layouts part at step 2 on rank 3: gradients of layers.1.dense.bias[7] are 2.0 instead of 1.0 "
        "(5.0e-01 relative, 1e-10 allowed)."
    )
    assert names.startswith("  8 parameters differ (the nearest to the loss first): layers.1.dense.bias, ")
    assert names.endswith(" and 3 more.")


def test_a_parting_by_itself_says_the_same() -> None:
    parting = Parting(GRADIENT, "ranks of the reference layout hold different values", ("layers.1.dense.bias",))
    assert str(parting).splitlines() == [
        "The layouts part at step 2 on rank 3: gradients of layers.1.dense.bias[7] are 2.0 instead of 1.0 "
        "(5.0e-01 relative).",
        "  Ranks of the reference layout hold different values.",
    ]


def test_a_loss_that_differs_points_to_parameters_or_away_from_them() -> None:
    gap = Gap(quantity="loss", step=1, relative=1e-3, actual=4.0, expected=4.004)
    assert "comes in through layers.2.bias: look at" in str(Parting(gap, parameters=("layers.2.bias",)))
    assert "through no parameter of its own" in str(Parting(gap))


def test_a_parting_before_the_first_step_is_said_so() -> None:
    gap = Gap(quantity="initial weights", step=0, relative=1.0, key="w", rank=0, index=(0,))
    report = LayoutReport(steps=3, tolerance=1e-10, elements=10, parting=Parting(gap))
    assert str(report).startswith("parted before step 1 of 3, 10 parameters\nThe layouts part at step 0 on rank 0: ")


def test_a_parameter_that_is_missing_is_named() -> None:
    gap = Gap(quantity="parameters", step=0, relative=math.inf, key="layers.3.bias")
    report = LayoutReport(steps=3, tolerance=1e-10, parting=Parting(gap, "only the layout has it"))
    assert str(report) == "The layouts have different parameters: layers.3.bias only the layout has it."
