"""Show what a language model has learnt: let it continue a few prompts."""

from __future__ import annotations

from pathlib import Path

from scaling.transformer import Sampling, TransformerInferenceModule

PROMPTS = ("def ", "import ", "The following")


def show(save_dir: Path) -> None:
    """Let the model continue a few prompts."""
    model = TransformerInferenceModule.from_checkpoint(save_dir)
    if model.tokenizer is None:
        print(
            "\nThe model was trained without a tokenizer (transformer_architecture.vocab_file); it continues no text."
            f"\nTo generate, copy the tokenizer of the token data to {save_dir}/vocab.json."
        )
        return
    print("\nThe model continues:")
    for prompt in PROMPTS:
        print(f"\n  {prompt}", end="")
        text = model.stream_text(prompt, max_tokens=48, sampling=Sampling(temperature=0.7, top_p=0.9), seed=1)
        for piece in text:
            print(piece.replace("\n", "\n  "), end="", flush=True)
        print()
