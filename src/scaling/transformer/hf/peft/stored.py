"""The tensors of an adapter's file, sorted by the modules that they belong to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from scaling.core import CheckpointError, first_of, nearest
from scaling.transformer.hf.peft.modules import Module, Modules
from scaling.transformer.hf.peft.values import Values

PREFIX: Final = "base_model.model."
"""Prefix of the names of all tensors but a prompt."""
PREFIX_BESIDE_PROMPT: Final = "base_model."
"""Prefix where PEFT does not wrap the model."""
PROMPT: Final = "prompt_embeddings"
A, B, B_BIAS = "lora_A.weight", "lora_B.weight", "lora_B.bias"
EMBEDDING_A, EMBEDDING_B = "lora_embedding_A", "lora_embedding_B"
MAGNITUDE: Final = "lora_magnitude_vector"
IA3: Final = "ia3_l"
ROWS_OF_LORA, ROWS = "token_adapter.trainable_tokens_delta", "trainable_tokens_delta"
NORM: Final = "ln_tuning_layers."
BASE: Final = "base_layer."
REPEATED: Final = ("modules_to_save.", "original_module.")
"""Prefixes of tensors that `bias: all` saves again for a module that is trained whole; they are not used."""
WEIGHT, BIAS = "weight", "bias"

_KINDS: Final = (
    *(A, B, B_BIAS, EMBEDDING_A, EMBEDDING_B, MAGNITUDE, IA3, ROWS_OF_LORA, ROWS),
    *(f"{wrapper}{kind}" for wrapper in (NORM, BASE, *REPEATED) for kind in (WEIGHT, BIAS)),
    *(WEIGHT, BIAS),
)
_NAMED: Final = 5


class AdapterTensors:
    """The tensors of a file. Each is taken once; any that is left is refused."""

    def __init__(self, tensors: Mapping[str, Values], modules: Modules, *, source: str, prefix: str = PREFIX) -> None:
        """Sort the tensors by module; `source` is the file, for messages.

        Raises:
            CheckpointError: A tensor belongs to no module of the model.
        """
        self.source = source
        self._prefix = prefix
        self._by_module: dict[str, dict[str, Values]] = {}
        self._prompt: Values | None = None
        known = {name: module for module in modules for name in module.names}
        strange = []
        for name, values in tensors.items():
            if name == PROMPT:
                self._prompt = values
                continue
            ways = [_split(name.removeprefix(one)) for one in (prefix, PREFIX) if name.startswith(one)]
            path, kind = next((way for way in ways if way[0] in known), ("", ""))
            if not path:
                strange.append((name, ways[0][0] if ways else name))
                continue
            own = self._by_module.setdefault(known[path].name, {})
            if kind in own:
                raise CheckpointError(f"{source} holds {kind} of {known[path].name} twice; remove one")
            own[kind] = values
        if strange:
            self._refuse(strange, known, modules)

    def take(self, module: Module, kind: str, shape: tuple[int, ...]) -> Values | None:
        """Return a tensor of a module, or None where there is none.

        Raises:
            CheckpointError: The tensor has another shape.
        """
        values = self._by_module.get(module.name, {}).pop(kind, None)
        if values is not None and values.shape != shape:
            raise CheckpointError(
                f"{self.source}: {self._prefix}{module.name}.{kind} has the shape {list(values.shape)}, but on this "
                f"base it would be {list(shape)}; the adapter is for another base, or its configuration was changed"
            )
        return values

    def require(self, module: Module, kind: str, shape: tuple[int, ...]) -> Values:
        """Return a tensor of a module; `CheckpointError` where it is missing or has another shape."""
        values = self.take(module, kind, shape)
        if values is None:
            raise CheckpointError(
                f"{self.source} lacks {self._prefix}{module.name}.{kind}; the file is incomplete, or "
                "adapter_config.json is of another adapter"
            )
        return values

    def shape(self, module: Module, kind: str) -> tuple[int, ...] | None:
        """Return the shape of a tensor that has not been taken."""
        values = self._by_module.get(module.name, {}).get(kind)
        return None if values is None else values.shape

    def holds(self, module: Module, *kinds: str) -> bool:
        """Return whether any of these tensors of a module exists and has not been taken."""
        return any(kind in self._by_module.get(module.name, {}) for kind in kinds)

    def take_prompt(self) -> Values | None:
        """Return the tensor of a prompt."""
        prompt, self._prompt = self._prompt, None
        return prompt

    def require_empty(self, method: str) -> None:
        """Refuse a file with tensors that have not been taken."""
        rest = list(self._rest())
        if rest:
            raise CheckpointError(
                f"{self.source} holds {first_of(rest, _NAMED)}, which an adapter of {method} with this "
                "adapter_config.json does not have; the two are not of one adapter"
            )

    def _rest(self) -> Iterator[str]:
        for module, own in self._by_module.items():
            for kind in own:
                yield f"{self._prefix}{module}.{kind}"
        if self._prompt is not None:
            yield PROMPT

    def _refuse(self, strange: list[tuple[str, str]], known: Mapping[str, Module], modules: Modules) -> None:
        names = first_of([name for name, _ in strange], _NAMED)
        if not self._by_module:
            example = next(module.name for module in modules if module.role == "linear")
            raise CheckpointError(
                f"{self.source} is an adapter for another family of models: it holds {names}, while a "
                f"{modules.model_type} model has modules such as {example}; name the base that it was trained on"
            )
        near = nearest(strange[0][1], known)
        hint = f" (the nearest is {near})" if near is not None else ""
        raise CheckpointError(
            f"{self.source} holds {names}, of modules that this {modules.model_type} model does not have{hint}; the "
            "adapter is for another base, or of a kind that is not built"
        )


def _split(name: str) -> tuple[str, str]:
    """Return the name of a tensor's module, and the kind of the tensor."""
    for kind in _KINDS:
        if name.endswith(f".{kind}"):
            return name[: -len(kind) - 1], kind
    return name, ""
