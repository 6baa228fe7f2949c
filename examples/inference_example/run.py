"""Let a trained model continue texts, in every way there is, and say how likely a text is.

python3 -m examples.inference_example.run [CHECKPOINT]
"""

from __future__ import annotations

import sys
from pathlib import Path

from scaling.core import CheckpointError, ConfigError, ExitStatus, run_process
from scaling.transformer import Sampling, TransformerInferenceModule

PROGRAM = "examples.inference_example.run"
FIRST = "python3 -m examples.transformer_example.run examples/transformer_example/config.yml"
CHECKPOINT = "runs/transformer_example/checkpoints"
PROMPTS = ("import ", "def __init__(self, ", "class Queue:\n", "The following")
TEXTS = ("for item in items:", "items in item for:")
"""One that is Python, and the same words in an order that is not."""
NEW = 24
DRAWN = Sampling(temperature=0.8, top_p=0.95)


def main() -> int:
    """Load a checkpoint and show what can be done with it."""
    given = sys.argv[1:]
    if len(given) > 1 or any(word.startswith("-") for word in given):
        raise ConfigError(f"name one checkpoint, or none for {CHECKPOINT}: python3 -m {PROGRAM} [CHECKPOINT]")
    path = Path(*given or (CHECKPOINT,))
    model = load(path)
    show_memory(model)
    show_many(model)
    show_samples(model)
    show_stream(model)
    show_seed(model)
    show_likelihood(model)
    print(f"\nNext:\n{next_commands(path)}")
    return ExitStatus.DONE


def load(path: Path) -> TransformerInferenceModule:
    """Return the model of the newest checkpoint, trained in whatever layout."""
    try:
        model = TransformerInferenceModule.from_checkpoint(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}. Name another one, or make one with the first example:\n  {FIRST}") from error
    if model.tokenizer is None:
        raise CheckpointError(f"{path} has no tokenizer (vocab.json) in it, which texts need; put it there")
    return model


def show_memory(model: TransformerInferenceModule) -> None:
    """Say what will be kept in memory, which is known before anything is computed."""
    plan = model.plan(PROMPTS, max_tokens=NEW)
    print(f"\nKeys and values of {len(PROMPTS)} prompts with {NEW} new tokens each take {plan.bytes:,} bytes:")
    for pool in plan.pools:
        print(f"  a pool of {pool.rows} rows of {pool.capacity} positions, in each layer")


def show_many(model: TransformerInferenceModule) -> None:
    """Continue several prompts at once, with the most likely token each time."""
    print("\nThe most likely continuations:")
    for prompt, completion in zip(PROMPTS, model.generate(PROMPTS, max_tokens=NEW), strict=True):
        print(f"  {prompt!r} -> {completion.completion_text!r}")


def show_samples(model: TransformerInferenceModule) -> None:
    """Draw several continuations of one prompt, which is read once for all of them."""
    print(f"\nThree that are drawn, of {PROMPTS[0]!r}:")
    for completion in model.generate(PROMPTS[0], max_tokens=NEW, sampling=DRAWN, seed=1, samples=3):
        print(f"  {completion.completion_text!r}")


def show_stream(model: TransformerInferenceModule) -> None:
    """Print a text piece by piece, as its tokens come, up to a text that ends it."""
    print("\nA stream, up to the first empty line:\n  ", end="")
    for piece in model.stream_text("def main():\n", max_tokens=3 * NEW, sampling=DRAWN, seed=1, stop=["\n\n"]):
        print(piece.replace("\n", "\n  "), end="", flush=True)
    print()


def show_seed(model: TransformerInferenceModule) -> None:
    """Show that a text follows from its prompt and its seed, not from what is generated beside it."""
    together = model.generate(PROMPTS, max_tokens=NEW, sampling=DRAWN, seed=[10, 11, 12, 13])
    alone = model.generate(PROMPTS[2], max_tokens=NEW, sampling=DRAWN, seed=12)
    same = alone.completion_tokens == together[2].completion_tokens
    print(f"\nThe third prompt with seed 12, in a batch and alone: {'the same text' if same else 'two texts'}.")


def show_likelihood(model: TransformerInferenceModule) -> None:
    """Say how likely given texts are at the beginning of a line."""
    assert model.tokenizer is not None
    context = model.tokenizer.encode("\n")
    texts = [model.tokenizer.encode(text) for text in TEXTS]
    print("\nHow likely two texts are, as the logarithm of their probability:")
    for text, likelihood in zip(TEXTS, model.log_likelihood([context, context], texts), strict=True):
        print(f"  {likelihood.total:8.2f}  {text!r}")


def next_commands(checkpoint: Path) -> str:
    """Return what to try next, a line for each command."""
    return f"""\
  scaling generate {checkpoint} --prompt "class Queue:" --prompt "import " --samples 2 --seed 1
  scaling generate {checkpoint} --prompt "class Queue:" --pipe-parallel-size 2
  scaling evaluate {checkpoint} --data PREFIX       # a data set of scaling data tokenize
  scaling chat CHECKPOINT                           # of a model with a chat template: scaling hf import"""


if __name__ == "__main__":
    run_process(main)
