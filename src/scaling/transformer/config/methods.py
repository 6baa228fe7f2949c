"""Turn the fine-tuning methods of a section into edits of the layers, and check that they fit. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from scaling.core import LoRaModuleType, Problem, nearest
from scaling.transformer.config.finetuning import AdapterConfig, IA3Config, MethodsConfig
from scaling.transformer.plan.attention import AttentionPlan
from scaling.transformer.plan.edits import (
    AddedBiasPlan,
    BottleneckPlan,
    EditPlan,
    LowRankEmbeddingPlan,
    LowRankHeadPlan,
    LowRankLinearPlan,
    SoftPromptPlan,
    TokenRowsPlan,
    VectorPlan,
)
from scaling.transformer.plan.model import LayerPlan, ModelPlan
from scaling.transformer.plan.parts import FeedForwardPlan, LinearPlan, TablePlan

_SHORT = frozenset(kind.value for kind in LoRaModuleType)


@dataclass(frozen=True)
class Module:
    """A module with a matrix, within its layer."""

    layer: int
    path: str
    """`self_attention.query`; a part of a fused layer has the name of the separate layer."""
    matrix: LinearPlan | TablePlan
    fused: bool = False
    """Whether it is one of several outputs of a layer."""

    @property
    def name(self) -> str:
        """Return the name in the model."""
        return f"layers.{self.layer}.{self.path}"

    @property
    def short(self) -> str:
        """Return the short name."""
        if isinstance(self.matrix, TablePlan):
            return "head" if self.matrix.multiplied else "embedding"
        return self.matrix.name

    @property
    def shape(self) -> tuple[int, int]:
        """Return (output features, input features) of the matrix."""
        if isinstance(self.matrix, TablePlan):
            return self.matrix.vocabulary, self.matrix.hidden
        return self.matrix.outputs, self.matrix.inputs

    def is_one_of(self, words: Sequence[str]) -> bool:
        """Return whether one of these short names or patterns matches it."""
        return any(self.short == word if word in _SHORT else re.search(word, self.name) for word in words)


def modules_of(plan: ModelPlan) -> Iterator[Module]:
    """Yield all modules with a matrix, in the order of the layers."""
    for index, layer in enumerate(plan.layers()):
        yield from _modules_in(layer, index)


def _modules_in(layer: LayerPlan, index: int) -> Iterator[Module]:
    for name, part in layer.parts:
        match part:
            case AttentionPlan():
                for linear in part.projections:
                    yield Module(index, f"{name}.{linear.name}", linear, part.fused)
                yield Module(index, f"{name}.{part.dense.name}", part.dense)
            case FeedForwardPlan():
                for linear in (*part.inputs, part.output):
                    yield Module(index, f"{name}.{linear.name}", linear)
            case TablePlan():
                yield Module(index, name, part)


def with_methods(plan: ModelPlan, methods: MethodsConfig) -> ModelPlan:
    """Return the model with the additions of the methods; without methods, return it as it is."""
    if not methods.has_methods:
        return plan
    edited = [_edited(layer, index, methods) for index, layer in enumerate(plan.layers())]
    return replace(plan, runs=tuple((len(list(alike)), layer) for layer, alike in groupby(edited)))


def _edited(layer: LayerPlan, index: int, methods: MethodsConfig) -> LayerPlan:
    edits = tuple(_edits(layer, index, methods))
    rows = [edit for edit in edits if isinstance(edit, TokenRowsPlan) and layer.tied]
    return replace(
        layer, edits=edits, tied_edits=tuple(parameter.name for edit in rows for parameter in edit.parameters())
    )


def _edits(layer: LayerPlan, index: int, methods: MethodsConfig) -> Iterator[EditPlan]:
    """Yield the edits of one layer: first those of inputs, then additions to a product, then those of outputs."""
    for module in _modules_in(layer, index):
        yield from _edits_of_module(module, methods)
    if (adapter := methods.adapter_config) is not None:
        yield from _bottlenecks(layer, adapter)
    if (prompt := methods.softprompt_config) is not None and layer.kind == "embedding":
        table = next(part for _, part in layer.parts if isinstance(part, TablePlan))
        yield SoftPromptPlan(
            name=f"softprompt_{prompt.name}", length=prompt.n_tokens, hidden=table.hidden, std=table.std
        )


def _edits_of_module(module: Module, methods: MethodsConfig) -> Iterator[EditPlan]:
    lora, ia3, bitfit = methods.lora_config, methods.ia3_config, methods.bitfit_bias_config
    path, matrix = module.path, module.matrix
    if isinstance(matrix, TablePlan):
        if methods.finetunable_token_ids:  # first, so that updates of the table apply to these rows too
            yield TokenRowsPlan(module=path, tokens=tuple(methods.finetunable_token_ids), table=matrix)
        if lora is not None and module.is_one_of(lora.parallel_modules):
            form, name = lora.form_of(module.name), f"lora_{lora.name}"
            if matrix.multiplied:
                yield LowRankHeadPlan(module=path, name=name, table=matrix, form=form, dropout=lora.dropout)
            else:
                yield LowRankEmbeddingPlan(module=path, name=name, table=matrix, form=form)
        return
    if lora is not None and module.is_one_of(lora.parallel_modules):
        form, name = lora.form_of(module.name), f"lora_{lora.name}"
        yield LowRankLinearPlan(module=path, name=name, linear=matrix, form=form, dropout=lora.dropout)
    if bitfit is not None and bitfit.add_to and module.is_one_of(bitfit.add_to):
        yield AddedBiasPlan(module=path, name=f"bitfit_{bitfit.name}", linear=matrix)
    if ia3 is not None and module.is_one_of(ia3.parallel_modules):
        of_inputs = bool(ia3.input_modules) and module.is_one_of(ia3.input_modules)
        yield VectorPlan(module=path, name=f"ia3_{ia3.name}", linear=matrix, of_inputs=of_inputs)


def _bottlenecks(layer: LayerPlan, adapter: AdapterConfig) -> Iterator[EditPlan]:
    parts = dict(layer.parts)
    attention = parts.get("self_attention")
    if not isinstance(attention, AttentionPlan):
        return
    for module, factor in (
        ("add_attention", adapter.attention_downsampling_factor),
        ("add_mlp", adapter.mlp_downsampling_factor),
    ):
        if factor is not None:
            yield BottleneckPlan(
                module=module,
                name=f"adapter_{adapter.name}",
                hidden=attention.hidden,
                width=round(factor * attention.hidden),
                std=adapter.init_std,
            )


def method_problems(plan: ModelPlan, methods: MethodsConfig) -> Iterator[Problem]:
    """Yield the problems of methods that do not fit the model. `plan` is the model without methods."""
    if not methods.has_methods:
        return
    modules = list(modules_of(plan))
    yield from _lora_problems(modules, methods)
    yield from _vector_problems(modules, methods)
    yield from _bias_problems(plan, modules, methods)
    yield from _adapter_problems(plan, methods)
    yield from token_problems(plan.parts(TablePlan)[0].vocabulary, methods)


def _unmatched(
    path: str, words: Sequence[str], modules: Sequence[Module], *, of: str = "module of the model"
) -> Iterator[Problem]:
    known = dict.fromkeys([module.short for module in modules])
    for index, word in enumerate(words):
        if not any(module.is_one_of([word]) for module in modules):
            near = nearest(word, [*known, *dict.fromkeys(module.path for module in modules)])
            hint = f"did you mean {near}?" if near is not None else f"the modules are {', '.join(known)}"
            yield Problem(f"{path}.{index}", f"is {word!r}, which names no {of}; {hint}")


def _lora_problems(modules: Sequence[Module], methods: MethodsConfig) -> Iterator[Problem]:
    lora = methods.lora_config
    if lora is None:
        return
    yield from _unmatched("lora_config.parallel_modules", lora.parallel_modules, modules)
    chosen = [module for module in modules if module.is_one_of(lora.parallel_modules)]
    for name in ("rank_pattern", "alpha_pattern"):
        for pattern in getattr(lora, name):
            if not any(re.search(pattern, module.name) for module in chosen):
                yield Problem(
                    f"lora_config.{name}",
                    f"has {pattern!r}, which is found in the name of no module that parallel_modules names (such as "
                    f"{chosen[0].name if chosen else 'layers.1.self_attention.query'}); correct it",
                )
    too_high: dict[tuple[int, int, int], Module] = {}
    for module in chosen:
        rank = lora.form_of(module.name).rank
        if rank > min(size for size in module.shape if size):  # a vocabulary of 0 is not known yet
            too_high.setdefault((rank, *module.shape), module)
        if lora.use_dora and module.short == "embedding":
            yield Problem(
                "lora_config.use_dora",
                "is true, but parallel_modules names the embedding, which is looked up and not multiplied; remove "
                "embedding from parallel_modules, or set use_dora to false",
            )
        if lora.use_dora and module.short == "head" and methods.finetunable_token_ids:
            yield Problem(
                "lora_config.use_dora",
                "is true, and parallel_modules names the head, but finetunable_token_ids replaces rows of its matrix, "
                "whose lengths it would learn; remove head from parallel_modules, or finetunable_token_ids",
            )
    for (rank, rows, columns), module in too_high.items():
        yield Problem(
            "lora_config.rank",
            f"is {rank} for {module.name}, but its matrix is {rows or 'vocab_size'} x {columns}, of rank "
            f"{min(rows or columns, columns)} at most; lower it, or give that module another in rank_pattern",
        )


def _vector_problems(modules: Sequence[Module], methods: MethodsConfig) -> Iterator[Problem]:
    ia3 = methods.ia3_config
    if ia3 is None:
        return
    linears = [module for module in modules if isinstance(module.matrix, LinearPlan)]
    yield from _unmatched("ia3_config.parallel_modules", ia3.parallel_modules, linears)
    chosen = [module for module in linears if module.is_one_of(ia3.parallel_modules)]
    if ia3.input_modules != IA3Config().input_modules:  # the default need not match
        yield from _unmatched("ia3_config.input_modules", ia3.input_modules, chosen, of="module in parallel_modules")
    fused = sorted({m.short for m in chosen if m.fused and ia3.input_modules and m.is_one_of(ia3.input_modules)})
    if fused:
        yield Problem(
            "ia3_config.input_modules",
            f"names {', '.join(fused)}, which are computed in one product of one input (attention_qkv_in_one); set "
            "that to false, or let their outputs be multiplied",
        )


def _bias_problems(plan: ModelPlan, modules: Sequence[Module], methods: MethodsConfig) -> Iterator[Problem]:
    bitfit = methods.bitfit_bias_config
    if bitfit is None:
        return
    linears = [module for module in modules if isinstance(module.matrix, LinearPlan)]
    yield from _unmatched("bitfit_bias_config.add_to", bitfit.add_to, linears)
    own = any(parameter.name.endswith(".bias") for _, layer in plan.runs for parameter in layer.parameters())
    if not own and not bitfit.add_to:
        yield Problem(
            "bitfit_bias_config",
            "trains biases, but the model has none; name layers that get new ones in bitfit_bias_config.add_to, or use "
            "another method",
        )
    have = sorted({m.short for m in linears if bitfit.add_to and m.is_one_of(bitfit.add_to) and _has_bias(m)})
    if have:
        yield Problem(
            "bitfit_bias_config.add_to",
            f"names {', '.join(have)}, which have a bias already, and that is trained; remove them",
        )


def _has_bias(module: Module) -> bool:
    return isinstance(module.matrix, LinearPlan) and module.matrix.bias


def _adapter_problems(plan: ModelPlan, methods: MethodsConfig) -> Iterator[Problem]:
    adapter = methods.adapter_config
    if adapter is None:
        return
    hidden = plan.parts(AttentionPlan)[0].hidden
    for name in ("attention_downsampling_factor", "mlp_downsampling_factor"):
        factor = getattr(adapter, name)
        if factor is not None and (abs(factor * hidden - round(factor * hidden)) > 1e-6 or round(factor * hidden) < 1):
            width = max(1, round(factor * hidden))
            yield Problem(
                f"adapter_config.{name}",
                f"is {factor:g}, but times hidden_size ({hidden}) must be a whole number of at least 1, not "
                f"{factor * hidden:g}; {width / hidden!r} gives {width}",
            )


def token_problems(vocabulary: int, methods: MethodsConfig) -> Iterator[Problem]:
    """Yield problems of the tokens whose rows are trained. A vocabulary of 0 is not known yet."""
    tokens = methods.finetunable_token_ids
    repeated = sorted({token for token in tokens if tokens.count(token) > 1}) if len(set(tokens)) < len(tokens) else []
    if repeated:
        yield Problem("finetunable_token_ids", f"has {', '.join(map(str, repeated))} more than once; name each once")
    outside = [token for token in tokens if token < 0 or (vocabulary and token >= vocabulary)]
    if outside and not vocabulary:
        yield Problem("finetunable_token_ids", f"has {outside[0]}; tokens are numbered from 0")
    elif outside:
        yield Problem(
            "finetunable_token_ids",
            f"has {outside[0]}, outside the vocabulary (vocab_size {vocabulary}); use 0 to {vocabulary - 1}, or raise "
            "vocab_size to have new tokens",
        )
