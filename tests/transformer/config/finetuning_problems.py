"""The problems of methods of fine-tuning and of their data, word for word."""

from __future__ import annotations

FINETUNING_PROBLEMS = (
    (
        "transformer_architecture: {lora_config: {parallel_modules: [queery]}}",
        "transformer_architecture.lora_config.parallel_modules.0: is 'queery', which names no module of the model; did "
        "you mean query?",
    ),
    (
        "transformer_architecture: {sequence_length: 8, softprompt_config: {name: a, n_tokens: 8}}",
        "transformer_architecture.softprompt_config.n_tokens: is 8, but a sequence has 8 tokens (sequence_length), so "
        "that no text fits behind the prompt; use at most 7, or longer sequences",
    ),
    (
        "{transformer_architecture: {softprompt_config: {name: a, n_tokens: 8}}, data: {data_prefixes: [a]}}",
        "transformer_architecture.softprompt_config: stands in front of every record, but the data are a stream of "
        "texts, which has none; set data.record_format to auto and name records, or remove it",
    ),
    (
        "data: {finetuning_dataset: true, finetuning_chat_dataset: true}",
        "data.finetuning_chat_dataset: and finetuning_dataset are both true; set one of them to false",
    ),
    (
        "data: {record_format: auto, finetuning_dataset_memory_map: true}",
        "data.record_format: and finetuning_dataset_memory_map, the predecessor's way to say the same, are both given; "
        "remove finetuning_dataset_memory_map",
    ),
    (
        "data: {packing: false}",
        "data.packing: is about records of fine-tuning data; set record_format to auto, or remove it",
    ),
    (
        "data: {record_format: alpacca}",
        "data.record_format: must be auto or one of prompt_completion, alpaca, sharegpt, messages, pieces, tokens or "
        "text, or null, not 'alpacca'; did you mean alpaca?",
    ),
    (
        "data: {record_format: alpaca, only_full_sequences: true}",
        "data.only_full_sequences: is true, but the data are records (record_format); remove one",
    ),
)
