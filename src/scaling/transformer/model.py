"""Make the list of layers from a plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from torch import nn

from scaling.core import ConfigError, LayerSpec, TiedLayerSpec, Topology
from scaling.transformer.config.architecture import ArchitectureConfig
from scaling.transformer.config.model_plan import plan_of
from scaling.transformer.layers.block import (
    NormAfterSum,
    OneNormParallel,
    Parallel,
    PostNorm,
    PreNorm,
    SandwichNorm,
)
from scaling.transformer.layers.edits import edit_layer
from scaling.transformer.layers.embedding import EmbeddingInput
from scaling.transformer.layers.head import LayerNormWrapper, TransformerLMHead, TransformerLMHeadTied
from scaling.transformer.layers.parts import PartMaker, unbuilt
from scaling.transformer.plan.model import LayerPlan, ModelPlan

LayerClass = Callable[..., nn.Module]
"""Called with the modules of a layer's parts, by their names."""

Layers = Mapping[str, LayerClass]

LAYERS: Mapping[str, LayerClass] = {
    "embedding": EmbeddingInput,
    "pre": PreNorm,
    "post": PostNorm,
    "sandwich": SandwichNorm,
    "after_sum": NormAfterSum,
    "parallel": Parallel,
    "one_norm_parallel": OneNormParallel,
    "norm": LayerNormWrapper,
    "head": TransformerLMHead,
    "tied_head": TransformerLMHeadTied,
}
"""The classes that implement the layers of a plan, by kind of layer."""


def layer_specs(config: ArchitectureConfig, topology: Topology, *, seed: int) -> list[LayerSpec]:
    """Return the layers of the model: embedding, blocks, final norm and, with `lm_head`, the head.

    `seed` keys the dropout masks. The costs for the balanced partition are multiply-adds per token.
    """
    return specs_of(plan_of(config), topology, seed=seed)


def specs_of(plan: ModelPlan, topology: Topology, *, seed: int, layers: Layers = LAYERS) -> list[LayerSpec]:
    """Return the layers of a plan, as `layer_specs` does. `layers` maps each kind of layer in the plan to a class.

    Raises `ConfigError` if the plan has a part that cannot be built.
    """
    problems = list(unbuilt(plan))
    problems += [f"layers of the kind {layer.kind}" for _, layer in plan.runs if layer.kind not in layers]
    if problems:
        raise ConfigError(f"this version cannot build {', '.join(problems)}; remove it from the model")
    make = PartMaker(plan, topology, seed=seed)
    return [
        _edited(_spec(make, layers[layer.kind], layer, index, cost), make, layer, index)
        for index, (layer, cost) in enumerate(zip(plan.layers(), plan.costs, strict=True))
    ]


def _spec(make: PartMaker, layer_class: LayerClass, layer: LayerPlan, index: int, cost: float) -> LayerSpec:
    build, name = partial(_build, make, layer_class, layer, index), getattr(layer_class, "__name__", layer.kind)
    if layer.tied:
        return TiedLayerSpec(build, tie="embedding_tying", tied_parameters=layer.tied, cost=cost, name=name)
    return LayerSpec(build, cost=cost, name=name)


def _edited(spec: LayerSpec, make: PartMaker, layer: LayerPlan, index: int) -> LayerSpec:
    """Return the layer with the edits of its plan; parameters of the edits that tied layers share are tied too."""
    if layer.edits:
        spec = spec.then(partial(edit_layer, edits=layer.edits, make=make, layer=index))
    if isinstance(spec, TiedLayerSpec) and layer.tied_edits:
        spec = spec.also_tying(*layer.tied_edits)
    return spec


def _build(make: PartMaker, layer_class: LayerClass, layer: LayerPlan, index: int) -> nn.Module:
    return layer_class(**{name: make(part, index) for name, part in layer.parts})
