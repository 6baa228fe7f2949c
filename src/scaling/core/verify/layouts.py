"""Prove that two layouts are the same training run, or find where they diverge."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import Any

from scaling.core.boxes import whole
from scaling.core.errors import ConfigError
from scaling.core.topology.config import TopologyConfig
from scaling.core.training.recipe import Recipe
from scaling.core.verify.deviation import (
    Distance,
    HeldBoxes,
    distances,
    in_model_order,
    incomplete,
    relative_difference,
    shapes,
)
from scaling.core.verify.diagnosis import Replacement, Trial, causes
from scaling.core.verify.precision import in_precision
from scaling.core.verify.report import Gap, LayoutReport, Parting, Quantity
from scaling.core.verify.session import Tensors
from scaling.core.verify.shared_tensors import SharedTensors
from scaling.core.verify.world import LocalWorld

TOLERANCES: Mapping[str, float] = MappingProxyType({"float64": 1e-10, "float32": 1e-5})
"""Allowed difference of two layouts, relative to the largest element. docs/layout_contract.md gives the reasons, and
why less precise types prove nothing."""

Progress = Callable[[str], None]


class _Parted(Exception):
    def __init__(self, parting: Parting) -> None:
        super().__init__(parting)
        self.parting = parting


def verify_layout(
    recipe: Recipe,
    layout: TopologyConfig,
    against: TopologyConfig | None = None,
    *,
    steps: int = 3,
    precision: str | None = "float64",
    tolerance: float | None = None,
    timeout: float = 300.0,
    progress: Progress | None = None,
) -> LayoutReport:
    """Train `recipe` in two layouts at once, in processes of this machine, and compare everything after each step.

    `against` is the reference, one process by default; both must have the same global batch size. The comparison covers
    the initial weights (bit by bit); in each step the loss, every gradient, the gradient norm and every updated weight,
    on every rank; and at the end the loss over the evaluation set. Parameters and floating-point data are converted to
    `precision`; None leaves them as they are. `tolerance` is relative (`TOLERANCES` by default); `timeout` is in
    seconds, for each step. The function starts processes: call it below `if __name__ == "__main__"`.

    Raises `ConfigError` where the layouts cannot be compared, and whatever the layers raise.
    """
    against = single_process(layout) if against is None else against
    if against.global_batch_size != layout.global_batch_size:
        raise ConfigError(
            f"the layouts have different global batches ({layout.global_batch_size} and {against.global_batch_size} "
            "samples), so their losses are not comparable; give both the same global_batch_size"
        )
    if steps < 1:
        raise ConfigError(f"the number of steps is {steps}; it has to be at least 1")
    if tolerance is None and precision not in TOLERANCES:
        raise ConfigError(
            f"there is no usual tolerance for precision {precision}; take float64, in which agreement is "
            "decisive, or give a tolerance"
        )
    if tolerance is None:
        tolerance = TOLERANCES[precision or ""]
    if precision is not None:
        recipe = in_precision(recipe, precision)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="scaling_verify_")))
        reference = stack.enter_context(LocalWorld(recipe, against, name="the reference layout", timeout=timeout))
        tested = stack.enter_context(LocalWorld(recipe, layout, name="the layout", timeout=timeout))
        pair = _Pair(tested, reference, directory, tolerance, progress or _silent)
        parting = None
        try:
            pair.prepare()
            for step in range(1, steps + 1):
                pair.step(step)
            if not pair.counted:
                raise ConfigError(
                    f"no sample of the {steps} steps counts (their weight in the loss is 0), which proves nothing; "
                    "compare more steps, or train on other data"
                )
            pair.evaluate(steps)
        except _Parted as parted:
            parting = parted.parting
        return LayoutReport(
            steps=steps,
            tolerance=tolerance,
            digest=pair.digest,
            elements=pair.elements,
            worst=pair.worst,
            parting=parting,
        )


def _silent(message: str) -> None:
    pass


def single_process(layout: TopologyConfig) -> TopologyConfig:
    """Return the layout of one process that runs each global batch of `layout` as one micro-batch."""
    return TopologyConfig.from_dict({"global_batch_size": layout.global_batch_size, "gradient_accumulation_steps": 1})


class _Pair:
    """Two worlds in step, and the results so far."""

    def __init__(
        self, tested: LocalWorld, reference: LocalWorld, directory: Path, tolerance: float, progress: Progress
    ) -> None:
        self._tested, self._reference = tested, reference
        self._directory = directory
        self._tolerance = tolerance
        self._progress = progress
        self._shapes: dict[str, tuple[int, ...]] = {}
        self.digest: str | None = None
        self.counted = 0.0
        """Sum of the weights of all samples so far."""
        self.worst: dict[Quantity, Gap] = {}

    @property
    def elements(self) -> int:
        return sum(whole(shape).size for shape in self._shapes.values())

    def prepare(self) -> None:
        """Compare the names and shapes of the parameters, and their initial values."""
        self._progress("comparing initial weights")
        tested, reference = self._both("held_boxes")
        self._compare_parameters(tested, reference)
        self._compare_tensors("initial weights", "weights", 0)
        self.digest = SharedTensors(self._directory / "weights").digest(self._shapes)

    def step(self, step: int) -> None:
        """Train on one global batch and compare all results, in the order in which they are computed."""
        self._progress(f"step {step}")
        tested, reference = (answers[0] for answers in self._both("step", step))
        _require_finite("loss", step, tested.loss, reference.loss)
        loss = _gap("loss", step, tested.loss, reference.loss)
        if not self._accepted(loss):
            raise _Parted(Parting(loss, parameters=self._causes(step)))
        _require_finite("gradient norm", step, tested.gradient_norm, reference.gradient_norm)
        self._compare_tensors("gradients", "gradients", step)
        self.counted += reference.weight
        norm = _gap("gradient norm", step, tested.gradient_norm, reference.gradient_norm)
        if not self._accepted(norm):
            raise _Parted(Parting(norm, "every gradient agrees, so the norm is computed wrongly"))
        self._compare_tensors("updated weights", "weights", step)

    def evaluate(self, step: int) -> None:
        """Compare the loss over the evaluation set, where there is one."""
        tested, reference = (answers[0] for answers in self._both("evaluate"))
        if reference is not None:
            _require_finite("evaluation loss", step, tested, reference)
            gap = _gap("evaluation loss", step, tested, reference)
            if not self._accepted(gap):
                raise _Parted(Parting(gap, "every weight agrees, so samples are counted differently"))

    def _both(self, method: str, *arguments: Any) -> tuple[list[Any], list[Any]]:
        for world in (self._tested, self._reference):
            world.start(method, *arguments)
        return self._tested.finish(), self._reference.finish()

    def _compare_parameters(self, tested: Sequence[list[HeldBoxes]], reference: Sequence[list[HeldBoxes]]) -> None:
        def parted(key: str, message: str) -> _Parted:
            return _Parted(Parting(Gap(quantity="parameters", step=0, relative=math.inf, key=key), message, (key,)))

        here, there = shapes(tested), shapes(reference)
        for key in in_model_order({**here, **there}):
            if key not in here or key not in there:
                raise parted(key, f"only the {'layout' if key in here else 'reference'} has it")
            if here[key] != there[key]:
                raise parted(key, f"has shape {list(here[key])} instead of {list(there[key])}")
        for held_by_rank, where in ((tested, "layout"), (reference, "reference")):
            for key, box in incomplete(held_by_rank):
                raise parted(key, f"no rank of the {where} has {box} of {list(here[key])}")
        self._shapes = {key: here[key] for key in in_model_order(here)}

    def _compare_tensors(self, quantity: Quantity, which: Tensors, step: int) -> None:
        """Compare the values that the ranks of both layouts hold with those that the owners in the reference hold."""
        directory = self._directory / which
        self._reference.call("write", which, directory)
        for world, deviations in zip(("layout", "reference"), self._both("compare", which, directory), strict=True):
            # Gradients come in the optimizer's groups; weights, and so `_shapes`, in the order of registration.
            found = distances((deviation for rank in deviations for deviation in rank), self._shapes)
            gaps = [_gap_of(quantity, step, distance) for distance in found]
            exact = quantity == "initial weights"
            bad = [
                gap
                for gap, distance in zip(gaps, found, strict=True)
                if (distance.different if exact else gap.relative > self._tolerance)
            ]
            if bad:
                # A wrong gradient makes those of all earlier layers wrong: the last one is nearest to the mistake.
                bad = bad[::-1] if quantity == "gradients" else bad
                message = "" if world == "layout" else "ranks of the reference layout hold different values"
                raise _Parted(Parting(bad[0], message, tuple(str(gap.key) for gap in bad)))
            for gap in gaps:
                self._note(gap)

    def _causes(self, step: int) -> tuple[str, ...]:
        self._progress(f"the losses of step {step} differ: looking for the parameter")

        def attempt(replacements: Mapping[str, Replacement]) -> Trial:
            tested, reference = self._both("probe", step, dict(replacements))
            return Trial(tested[0], reference[0])

        return causes(self._shapes, attempt, tolerance=self._tolerance)

    def _accepted(self, gap: Gap) -> bool:
        if gap.relative > self._tolerance:
            return False
        self._note(gap)
        return True

    def _note(self, gap: Gap) -> None:
        if gap.quantity not in self.worst or gap.relative > self.worst[gap.quantity].relative:
            self.worst[gap.quantity] = gap


def _require_finite(quantity: Quantity, step: int, *values: float) -> None:
    """Refuse a quantity that is finite in neither layout: such values agree whatever the layouts do."""
    if not any(math.isfinite(value) for value in values):
        raise ConfigError(
            f"the {quantity} of step {step} is {values[0]} in both layouts, which proves nothing; lower the learning "
            "rate, or look for the layer whose numbers are not finite"
        )


def _gap(quantity: Quantity, step: int, actual: float, expected: float) -> Gap:
    relative = relative_difference(actual, expected)
    return Gap(quantity=quantity, step=step, relative=relative, actual=actual, expected=expected)


def _gap_of(quantity: Quantity, step: int, distance: Distance) -> Gap:
    return Gap(
        quantity=quantity,
        step=step,
        relative=distance.relative,
        actual=distance.actual,
        expected=distance.expected,
        key=distance.key,
        rank=distance.rank,
        index=distance.index,
    )
