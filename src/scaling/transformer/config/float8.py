"""Settings of the architecture for computing linear layers in 8-bit floating point."""

from __future__ import annotations

from typing import Annotated

from typing_extensions import Self

from scaling.core import BaseConfig, FP8LinearConfig, OnResume, Unavailable
from scaling.transformer.plan.float8 import Float8Plan

FLOAT8_SECTIONS = (
    "fp8_config_attention",
    "fp8_config_attention_dense_out",
    "fp8_config_mlp",
    "fp8_config_mlp_dense_out",
)


class Float8ArchitectureConfig(BaseConfig):
    """Which layers are computed in 8 bits. Needs torchao and GPUs that support it; a CPU emulates it, slowly."""

    fp8_config_attention: Annotated[FP8LinearConfig | None, OnResume.SCHEDULE] = None
    """8-bit query, key and value products. null: in the precision of the model."""
    fp8_config_attention_dense_out: Annotated[FP8LinearConfig | None, OnResume.SCHEDULE] = None
    """8-bit attention output product. null: in the precision of the model."""
    fp8_config_mlp: Annotated[FP8LinearConfig | None, OnResume.SCHEDULE] = None
    """8-bit first MLP products. null: in the precision of the model."""
    fp8_config_mlp_dense_out: Annotated[FP8LinearConfig | None, OnResume.SCHEDULE] = None
    """8-bit last MLP product. null: in the precision of the model."""
    fp8_config_lm_head: Annotated[
        FP8LinearConfig | None, Unavailable("remove it: the head is computed in the precision of the model")
    ] = None
    """8-bit language model head. null: in the precision of the model, as always."""

    def without_float8(self) -> Self:
        """Return the same model with all products in its precision."""
        return self.model_copy(update=dict.fromkeys(FLOAT8_SECTIONS))

    @property
    def float8_plan(self) -> Float8Plan:
        """Return the recipes of the layers."""
        recipes = [None if found is None else found.recipe for found in map(self.__getattribute__, FLOAT8_SECTIONS)]
        attention, attention_out, mlp, mlp_out = recipes
        return Float8Plan(attention=attention, attention_out=attention_out, mlp=mlp, mlp_out=mlp_out)
