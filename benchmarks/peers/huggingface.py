"""Hugging Face: the Llama class of `transformers`, compiled, trained by hand or through its Trainer with accelerate."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from peers.common import ADAMW, CLIPPING, CPU, Job, Step, connect, cross_entropy, tokens, training


def llama(plan: Job) -> LlamaForCausalLM:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=plan.vocabulary,
        hidden_size=plan.hidden,
        intermediate_size=plan.intermediate,
        num_hidden_layers=plan.layers,
        num_attention_heads=plan.heads,
        num_key_value_heads=plan.heads,
        max_position_embeddings=plan.sequence,
        rms_norm_eps=plan.epsilon,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
        use_cache=False,
    )
    return LlamaForCausalLM(config)


def by_hand(place: Any, **job: Any) -> tuple[Step, torch.device]:
    plan = Job(**job)
    whole: nn.Module = llama(plan)
    if place.world_size > 1:
        connect(place)
        whole = DistributedDataParallel(whole, gradient_as_bucket_view=True)
    compiled = torch.compile(whole)
    ids, targets = tokens(plan, place.world_size)
    return training(lambda: cross_entropy(compiled(input_ids=ids).logits, targets), whole.parameters()), CPU


class Rows(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
    """The same sequences without end. Labels are ids, which the model shifts: the target of each is the next."""

    def __init__(self, ids: Tensor) -> None:
        self.ids = ids

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        while True:
            for row in self.ids:
                yield {"input_ids": row, "labels": row}


class Turns(TrainerCallback):  # type: ignore[misc]
    """Gives control to the other side of a pair of threads after each step."""

    def __init__(self, wait: Any, done: Any) -> None:
        self.wait, self.done = wait, done

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.wait()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.done()


def by_trainer(place: Any, **job: Any) -> tuple[Step, torch.device]:
    """The Trainer owns the loop: it runs in a thread that waits before each step until one is asked for.

    The loss is that of all positions but the last of a row, which have a next token.
    """
    import threading

    plan = Job(**job)
    os.environ |= {
        "RANK": str(place.rank),
        "LOCAL_RANK": str(place.rank),
        "WORLD_SIZE": str(place.world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(place.port),
    }
    if place.world_size == 1:
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
            del os.environ[name]
    threads = torch.get_num_threads()
    rows = plan.rows(place.world_size)
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        max_steps=10**9,
        per_device_train_batch_size=rows,
        learning_rate=ADAMW["lr"],
        adam_beta1=ADAMW["betas"][0],
        adam_beta2=ADAMW["betas"][1],
        adam_epsilon=ADAMW["eps"],
        weight_decay=ADAMW["weight_decay"],
        lr_scheduler_type="constant",
        max_grad_norm=CLIPPING,
        optim="adamw_torch_fused",
        torch_compile=True,
        use_cpu=True,
        bf16=False,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        accelerator_config={"dispatch_batches": False},
        ddp_backend="gloo" if place.world_size > 1 else None,
    )
    ids, _ = tokens(plan, place.world_size)
    begin, end = threading.Semaphore(0), threading.Semaphore(0)
    losses: list[Tensor] = []
    failures: list[BaseException] = []

    class Watched(Trainer):  # type: ignore[misc]
        def training_step(self, *given: Any, **named: Any) -> Tensor:
            loss: Tensor = super().training_step(*given, **named)
            losses[:] = [loss]
            return loss

    # Each rank is to see the same rows: the batches of two ranks are drawn from one stream, a batch for each in turn.
    trainer = Watched(llama(plan), arguments, train_dataset=Rows(ids), callbacks=[Turns(begin.acquire, end.release)])

    def train() -> None:
        try:
            torch.set_num_threads(threads)  # a thread has settings of its own
            trainer.train()
        except BaseException as problem:
            failures.append(problem)
            end.release()

    threading.Thread(target=train, daemon=True).start()

    def step() -> float:
        begin.release()
        end.acquire()
        if failures:
            raise failures[0]
        return float(losses[0].detach())

    return step, CPU
