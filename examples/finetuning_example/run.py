"""Fine-tune a model with LoRA, and show what it says before and after.

python3 -m examples.finetuning_example.run examples/finetuning_example/config.yml [KEY=VALUE ...]
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.nn.utils.rnn import pad_sequence

from examples.finetuning_example.data import Record, write_data
from scaling.core import (
    Checkpointer,
    CheckpointError,
    ConfigError,
    ExitStatus,
    StoredCheckpoint,
    folder_meant,
    read_config,
    run_process,
)
from scaling.transformer import Sampling, TransformerConfig, TransformerInferenceModule, launch_training

PROGRAM = "examples.finetuning_example.run"
FIRST = "python3 -m examples.transformer_example.run examples/transformer_example/config.yml"
SCORED, SHOWN, AT_ONCE = 150, 3, 30
"""How many records of the validation file are scored, how many are shown, and how many rows the model sees at once."""


def main() -> int:
    """Look at the base, train on it through the runner, look at what has become of it."""
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        raise ConfigError(f"name a configuration: python3 -m {PROGRAM} CONFIG [KEY=VALUE ...]")
    path, *overrides = sys.argv[1:]
    text = read_config(path)
    config = TransformerConfig.from_str(text, overrides, source=path, quiet=True)
    base, save_dir = find_base(config.trainer.load_dir), config.trainer.save_dir
    if save_dir is None:
        raise ConfigError("trainer.save_dir is not given, but what is trained has to be saved to be shown; name one")
    settings: Any = base.manifest.scalars["config"]  # those that the base was trained with
    end = settings.get("data", {}).get("eod_token_id")
    model = model_of_base(settings, yaml.safe_load(text), tokenizer=base.path.parent / "vocab.json")
    overrides = [f"transformer_architecture={model}", f"data.eod_token_id={json.dumps(end)}", *overrides]
    files = config.data.validation_data_prefixes
    if not config.data.data_prefixes:
        training, validation = write_data(config.data.records_dir)
        overrides += [f"data.data_prefixes=[{training}]", f"data.validation_data_prefixes=[{validation}]"]
        files = [validation]
    first = int(os.environ.get("RANK", "0")) == 0
    records = read_records(files[0])[:SCORED] if files and first else []

    before = look(base.path, records, end, "Before") if records else 0.0
    _, status = launch_training(Path(path), overrides)
    if status != ExitStatus.DONE or not first:
        return status
    if records:
        after = look(save_dir, records, end, "After")
        share = 100 * (1 - after / before)
        print(f"\nLoss on {len(records)} completions that were not trained on: {before:.3f} before, {after:.3f} after.")
        print(f"That is {share:.0f} % less.")
    print(f"\nNext:\n{next_commands(base.path.parent, save_dir)}")
    return ExitStatus.DONE


def find_base(directory: Path | None) -> StoredCheckpoint:
    """Return the checkpoint to train on."""
    try:
        if directory is None:
            raise CheckpointError("trainer.load_dir names none")
        return Checkpointer(None).find(folder_meant(directory), weights_only=True).require()
    except CheckpointError as error:
        raise CheckpointError(
            f"fine-tuning starts from a model, and {error}. Name one in trainer.load_dir, or make the one that the "
            f"configuration of this example names:\n  {FIRST}"
        ) from error


def model_of_base(settings: dict[str, Any], own: dict[str, Any], *, tokenizer: Path) -> str:
    """Return the model of the base, as a setting, with what the configuration says of its own."""
    named = own.get("transformer_architecture") or {}
    return json.dumps({**settings["transformer_architecture"], "vocab_file": str(tokenizer), **named})


def read_records(path: Path) -> list[Record]:
    """Return the records of a file, one a line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def look(checkpoint: Path, records: Sequence[Record], end: int | None, when: str) -> float:
    """Show what a model makes of the first prompts, and return its loss on the completions of all.

    A completion is followed by the token that ends texts; None is the tokenizer's.
    """
    model = TransformerInferenceModule.from_checkpoint(checkpoint)
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise CheckpointError(f"{checkpoint} has no tokenizer (vocab.json) beside it, which prompts need; put it there")
    print(f"\n{when} the fine-tuning:")
    for record in records[:SHOWN]:
        said = model.generate(24, input_text=record["prompt"], sampling=Sampling(temperature=0))
        print(f"\n  {record['prompt'].strip()}\n    {said.completion_text.strip()!r}")
    pairs = [(tokenizer.encode(record["prompt"]), tokenizer.encode(record["completion"])) for record in records]
    last = tokenizer.eos_token_id if end is None else end
    return loss_on(model, [(prompt, [*completion, last]) for prompt, completion in pairs])


def loss_on(model: TransformerInferenceModule, pairs: Sequence[tuple[list[int], list[int]]]) -> float:
    """Return the mean of -log p over all tokens of the completions, each behind its prompt."""
    losses = []
    for start in range(0, len(pairs), AT_ONCE):
        some = pairs[start : start + AT_ONCE]
        rows = [torch.tensor([*prompt, *completion]) for prompt, completion in some]
        counts = [torch.arange(1, len(row)) >= len(pair[0]) for pair, row in zip(some, rows, strict=True)]
        likelihoods = model.log_likelihood(pad_sequence(rows, batch_first=True))  # no token sees what pads behind it
        losses.append(-likelihoods[pad_sequence(counts, batch_first=True)])
    return float(torch.cat(losses).mean())


def next_commands(base: Path, save_dir: Path) -> str:
    """Return what to do with what was trained, a line for each command."""
    folder = save_dir.parent
    return f"""\
  scaling generate {save_dir} --prompt $'def close(self):\\n'
  scaling checkpoint ls {save_dir}

One model of both:
  scaling checkpoint merge {base} {save_dir} {folder / "merged"}

The base for transformers, and what was trained for peft beside it:
  scaling hf export {base} {folder / "hf-base"}
  scaling hf export {save_dir} {folder / "hf-adapter"} --adapter"""


if __name__ == "__main__":
    run_process(main)
