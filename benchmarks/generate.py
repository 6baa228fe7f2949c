"""Measure generation against `transformers`, with its dynamic and its static cache: the faster of the two counts.

    python3 benchmarks/generate.py [--rows 1] [--prompt 128] [--new 128] [--rounds 3] [--threads 1] [--layers 30]
                                   [--json FILE]

The model has the shape of SmolLM2-135M, in float32, with the same random weights on all sides, which choose the most
likely token. The sides take turns in one process, and what counts is CPU seconds: on a shared machine only these, and
the ratios of neighbours, mean anything. `--new 1` measures the reading of the prompt alone. For one row the fraction of
the memory bandwidth is told that reading all weights once per token makes, of what reading a large tensor gives in the
same run. The first round is not counted.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from reporting import begin, parser, publish
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, StoppingCriteria, StoppingCriteriaList
from transformers import logging as transformers_logging

from scaling.transformer.config.architecture import TransformerArchitectureConfig
from scaling.transformer.config.presets import preset
from scaling.transformer.inference import TransformerInferenceModule

Prompts = list[list[int]]
Times = list[float]
"""CPU seconds from the start of a call until each of the tokens of a row."""
SIDES = ("scaling", "dynamic", "static")


def architecture(layers: int, length: int) -> TransformerArchitectureConfig:
    """Return the shape of SmolLM2-135M."""
    shape = {**preset("smollm2-135m"), "num_layers": layers, "precision": "float32", "sequence_length": length}
    return TransformerArchitectureConfig.from_dict(shape)


def ours(layers: int, length: int) -> TransformerInferenceModule:
    """Return the model, with random weights and no end of a text."""
    return TransformerInferenceModule(architecture(layers, length))


def theirs(model: TransformerInferenceModule) -> LlamaForCausalLM:
    """Return the same model as `transformers` has it, on the same values."""
    config = model.config
    made = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=1536,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=3,
            max_position_embeddings=max(8192, config.sequence_length),
            rms_norm_eps=1e-5,
            rope_theta=100000.0,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
    ).eval()
    own = dict(model.module.named_parameters())
    last = config.num_layers + 1
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            parameter.copy_(own[own_name(name, last)])
    return made


def own_name(name: str, last: int) -> str:
    """Return what a parameter of `transformers` is named here."""
    parts = name.split(".")
    if parts[1] == "embed_tokens":
        return "stages.0.layers.0.embedding.weight"
    if parts[1] == "norm":
        return f"stages.0.layers.{last}.norm.weight"
    named = {
        "q_proj": "query", "k_proj": "key", "v_proj": "value", "o_proj": "dense",
        "gate_proj": "dense_in", "up_proj": "siglu_weight", "down_proj": "dense_out", "self_attn": "self_attention",
    }  # fmt: skip
    return ".".join(["stages.0.layers", str(int(parts[2]) + 1), *(named.get(part, part) for part in parts[3:])])


def run_ours(model: TransformerInferenceModule, prompts: Prompts, new: int) -> tuple[Times, list[int]]:
    """Continue prompts; return when each token came, and the tokens of the first row."""
    times, tokens, start = [], [], time.process_time()
    for row, token in model.stream(prompts, max_tokens=new):
        if row == 0:
            times.append(time.process_time() - start)
            tokens.append(token)
    return times, tokens


class Clock(StoppingCriteria):  # type: ignore[misc]
    """Notes when each token comes, and stops nothing."""

    def __init__(self) -> None:
        self.times: Times = []
        self.start = time.process_time()

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        self.times.append(time.process_time() - self.start)
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


def run_theirs(model: LlamaForCausalLM, prompts: Prompts, new: int, cache: str) -> tuple[Times, list[int]]:
    """Do the same with `transformers`."""
    clock, input_ids = Clock(), torch.tensor(prompts)
    with torch.no_grad():
        out = model.generate(
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            max_new_tokens=new,
            do_sample=False,
            cache_implementation=cache,
            disable_compile=True,
            stopping_criteria=StoppingCriteriaList([clock]),
        )
    return clock.times, out[0, input_ids.shape[1] :].tolist()


def bandwidth(size: int = 2**27) -> float:
    """Return how many bytes per CPU second are read of a tensor much larger than the caches."""
    values, best = torch.zeros(size), float("inf")
    for _ in range(5):
        start = time.process_time()
        values.sum()
        best = min(best, time.process_time() - start)
    return 4 * size / best


def main() -> None:
    arguments = parser(__doc__, rows=1, prompt=128, new=128, rounds=3, threads=1, layers=30)
    options = arguments.parse_args()
    report = begin()
    transformers_logging.set_verbosity_error()
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    model = ours(options.layers, 2048)
    other = theirs(model)
    prompts = torch.randint(0, model.config.vocab_size, (options.rows, options.prompt)).tolist()
    sides: dict[str, Callable[[], tuple[Times, list[int]]]] = {
        "scaling": lambda: run_ours(model, prompts, options.new),
        "dynamic": lambda: run_theirs(other, prompts, options.new, "dynamic"),
        "static": lambda: run_theirs(other, prompts, options.new, "static"),
    }
    rounds: dict[str, list[Times]] = {side: [] for side in SIDES}
    bytes_per_second = []
    for number in range(options.rounds + 1):
        found = {}
        for side in SIDES if number % 2 == 0 else reversed(SIDES):
            times, found[side] = sides[side]()
            rounds[side].append(times)
        if number:
            bytes_per_second.append(bandwidth())
    report["tokens_agree"] = found["scaling"] == found["dynamic"]
    report |= figures({side: times[1:] for side, times in rounds.items()}, options.rows, options.new)
    if options.rows == 1 and options.new > 1:
        weights = sum(parameter.nbytes for parameter in model.module.parameters())
        rate = statistics.median(weights * r / b for r, b in zip(report["decode_rates"], bytes_per_second, strict=True))
        report["bytes_read_per_cpu_second"] = statistics.median(bytes_per_second)
        report["fraction_of_bandwidth"] = rate
    publish(report, options.json)


def figures(rounds: dict[str, list[Times]], rows: int, new: int) -> dict[str, Any]:
    """Return CPU seconds per side, and how many times as fast as the faster of the others each round was."""
    seconds = {side: [times[-1] for times in every] for side, every in rounds.items()}
    report: dict[str, Any] = {"cpu_seconds": seconds, "speed": ratios(seconds)}
    if new > 1:
        decode = {side: [times[-1] - times[0] for times in every] for side, every in rounds.items()}
        report["decode_cpu_seconds"] = decode
        report["decode_speed"] = ratios(decode)
        report["decode_rates"] = [rows * (new - 1) / spent for spent in decode["scaling"]]
    return report


def ratios(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Return the ratios round by round, and their median."""
    best = min(SIDES[1:], key=lambda side: statistics.median(seconds[side]))
    by_round = [other / own for own, other in zip(seconds["scaling"], seconds[best], strict=True)]
    return {"against": best, "median": statistics.median(by_round), "by_round": by_round}


if __name__ == "__main__":
    main()
