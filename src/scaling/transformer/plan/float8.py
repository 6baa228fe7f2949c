"""The linear layers of a model that are computed in 8-bit floating point, and their recipes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from scaling.core import Float8Recipe, Heads
from scaling.transformer.plan.attention import AttentionPlan
from scaling.transformer.plan.parameters import Even
from scaling.transformer.plan.parts import FeedForwardPlan, LinearPlan, PartPlan


@dataclass(frozen=True, kw_only=True)
class Float8Plan:
    """The recipes of the linear layers within the blocks; None: their products are in the model's precision.

    Embedding, head and norms are never in 8 bits: later layers do not average out the effects of their rounding.
    """

    attention: Float8Recipe | None = None
    """Recipe of queries, keys and values."""
    attention_out: Float8Recipe | None = None
    mlp: Float8Recipe | None = None
    """Recipe of the products on the way in."""
    mlp_out: Float8Recipe | None = None

    @property
    def recipes(self) -> list[Float8Recipe]:
        """Return the recipes in use, each once."""
        found = (self.attention, self.attention_out, self.mlp, self.mlp_out)
        return list(dict.fromkeys(recipe for recipe in found if recipe is not None))

    @property
    def scales_micro_batches(self) -> bool:
        """Return whether some scale is computed over a whole micro-batch, and so depends on the micro-batch size."""
        return any(not recipe.per_row or recipe.grad_weight is not None for recipe in self.recipes)

    def linears(self, parts: Iterable[PartPlan]) -> Iterator[tuple[LinearPlan, Float8Recipe]]:
        """Yield the linear layers of some parts that are in 8 bits, with their recipes."""
        for part in parts:
            found: list[tuple[LinearPlan, Float8Recipe | None]] = []
            if isinstance(part, AttentionPlan):
                found = [(linear, self.attention) for linear in part.projections]
                found.append((part.dense, self.attention_out))
            elif isinstance(part, FeedForwardPlan):
                found = [*((linear, self.mlp) for linear in part.inputs), (part.output, self.mlp_out)]
            yield from ((linear, recipe) for linear, recipe in found if recipe is not None)

    def odd_sizes(self, parts: Iterable[PartPlan], ranks: int, multiple: int) -> Iterator[str]:
        """Yield sizes of these layers on each of `ranks` model ranks that are no `multiple`: `24 inputs of dense`."""
        for linear, _ in self.linears(parts):
            sizes = {"inputs": linear.inputs, "outputs": linear.outputs}
            cut = linear.cut
            if isinstance(cut, Heads):
                sizes["outputs"] = max(cut.count // ranks, 1) * cut.size
            else:
                sizes["inputs" if cut == Even(1) else "outputs"] //= ranks
            yield from (f"{size} {name} of {linear.name}" for name, size in sizes.items() if size % multiple)

    def __str__(self) -> str:
        """Return the layers by recipe, in the words that users see."""
        names = {
            "query, key, value": self.attention,
            "dense": self.attention_out,
            "MLP in": self.mlp,
            "MLP out": self.mlp_out,
        }
        return "; ".join(
            f"{recipe}: {', '.join(name for name, own in names.items() if own == recipe)}" for recipe in self.recipes
        )


NO_FLOAT8 = Float8Plan()
"""All products are in the precision of the model."""
