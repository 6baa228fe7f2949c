"""The fine-tuning methods of a model: each is a section that says what is added to a base and trained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field
from typing_extensions import Self

from scaling.core import NAME_PATTERN, BaseConfig, LoRaConfig, OnResume, Problem, pattern_problems


class BitfitBiasConfig(BaseConfig):
    """Train biases alone (BitFit, arXiv:2106.10199): those of the base, and new ones where add_to asks for them."""

    name: str = Field(pattern=NAME_PATTERN)
    """Name of the biases; part of the parameter names of new ones: bitfit_<name>."""
    add_to: list[str] = Field(default_factory=list)
    """Linear layers that get a new bias, which starts at 0: any of query, key, value, dense, dense_in, siglu_weight,
    dense_out, or patterns of module names. For models without biases."""
    version: str = ".unknown."
    """Free text."""

    def problems(self) -> Iterator[Problem]:
        """Check the patterns."""
        yield from pattern_problems("add_to", self.add_to)


class SoftpromptConfig(BaseConfig):
    """Learn vectors in front of each text (prompt tuning, arXiv:2104.08691)."""

    name: str = Field(pattern=NAME_PATTERN)
    """Name of the prompt, part of its parameter's name: softprompt_<name>."""
    n_tokens: int = Field(ge=1)
    """Length of the prompt in tokens, which count towards sequence_length."""
    version: str = ".unknown."
    """Free text."""


class AdapterConfig(BaseConfig):
    """Small networks after attention and MLP (bottleneck adapters, arXiv:1902.00751)."""

    name: str = Field(pattern=NAME_PATTERN)
    """Name of the adapters, part of their parameters' names: adapter_<name>."""
    attention_downsampling_factor: float | None = Field(default=None, gt=0)
    """Width of the adapter after attention, as a factor of hidden_size. null: none."""
    mlp_downsampling_factor: float | None = Field(default=None, gt=0)
    """Width of the adapter after the MLP, as a factor of hidden_size. null: none."""
    init_std: float = Field(default=1e-5, ge=0)
    """Standard deviation of the initial weights."""
    version: str = ".unknown."
    """Free text."""

    def problems(self) -> Iterator[Problem]:
        """Refuse a section without adapters."""
        if self.attention_downsampling_factor is None and self.mlp_downsampling_factor is None:
            yield Problem(
                "attention_downsampling_factor",
                "and mlp_downsampling_factor are both null, so there are no adapters; give one of them, or remove the "
                "section",
            )


class IA3Config(BaseConfig):
    """Learn vectors that multiply activations (IA3, arXiv:2205.05638)."""

    name: str = Field(default="ia3", pattern=NAME_PATTERN)
    """Name of the vectors, part of their parameters' names: ia3_<name>."""
    parallel_modules: list[str] = Field(default=["key", "value", "dense_out"], min_length=1)
    """Linear layers that get a vector: any of query, key, value, dense, dense_in, siglu_weight, dense_out, or patterns
    of module names."""
    input_modules: list[str] = Field(default=["dense_out"])
    """Those of parallel_modules whose input is multiplied instead of their output."""
    version: str = ".unknown."
    """Free text."""

    def problems(self) -> Iterator[Problem]:
        """Check the patterns."""
        yield from pattern_problems("parallel_modules", self.parallel_modules)
        yield from pattern_problems("input_modules", self.input_modules)


class MethodsConfig(BaseConfig):
    """Additions to a model, which are then trained alone. Empty: the model itself is trained."""

    lora_config: Annotated[LoRaConfig | None, OnResume.ORDER] = None
    """Low-rank updates of matrices. null: none."""
    ia3_config: Annotated[IA3Config | None, OnResume.ORDER] = None
    """Vectors that multiply activations. null: none."""
    bitfit_bias_config: Annotated[BitfitBiasConfig | None, OnResume.ORDER] = None
    """Train biases. null: no."""
    adapter_config: Annotated[AdapterConfig | None, OnResume.ORDER] = None
    """Small networks after attention and MLP. null: none."""
    softprompt_config: Annotated[SoftpromptConfig | None, OnResume.ORDER] = None
    """Vectors in front of each text. null: none."""
    finetunable_token_ids: Annotated[list[int], OnResume.ORDER] = Field(default_factory=list)
    """Tokens whose embeddings are trained, in rows apart from the table, which stays as it is. Their rows of the head
    are trained too, whether it shares the table or has its own. Empty: none."""

    def without_methods(self) -> Self:
        """Return the section with nothing added to the model."""
        names = MethodsConfig.model_fields
        return self.model_copy(
            update={name: field.get_default(call_default_factory=True) for name, field in names.items()}
        )

    @property
    def has_methods(self) -> bool:
        """Return whether anything is added to the model."""
        sections = (
            self.lora_config,
            self.ia3_config,
            self.bitfit_bias_config,
            self.adapter_config,
            self.softprompt_config,
        )
        return bool(self.finetunable_token_ids) or any(section is not None for section in sections)
