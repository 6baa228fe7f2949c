"""Family: what the models of one `model_type` of Hugging Face have in common, as data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from scaling.transformer.config.architecture import TransformerArchitectureConfig
from scaling.transformer.hf.tensors import TensorMap
from scaling.transformer.plan.model import ModelPlan


class Family(Protocol):
    """The models of one `model_type`."""

    model_type: str
    architecture: str
    """The class that reads them: `LlamaForCausalLM`."""
    ignored: tuple[str, ...]
    """Regular expressions that match the whole name of tensors that old files hold and nobody needs."""

    def section(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the section `transformer_architecture` of a valid config.json."""
        ...

    def config(self, architecture: TransformerArchitectureConfig) -> dict[str, Any]:
        """Return the config.json of a section, in the present schema."""
        ...

    def inert(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of a config.json that `section` does not express and that change nothing."""
        ...

    def tensors(self, plan: ModelPlan) -> tuple[TensorMap, ...]:
        """Return all tensors of theirs, in the order of their files."""
        ...

    def renamed(self, name: str) -> str:
        """Return the present name of a tensor that goes by an older one; other names stay."""
        ...
