"""The problems of methods of fine-tuning and of their data, word for word."""

from __future__ import annotations

FINETUNING_PROBLEMS = (
    (
        "transformer_architecture: {lora_config: {parallel_modules: ['que(']}}",
        "transformer_architecture.lora_config.parallel_modules.0: is 'que(', which is not a regular expression: "
        "missing ), unterminated subpattern at position 3",
    ),
    (
        "transformer_architecture: {lora_config: {rank_pattern: {query: 0}}}",
        "transformer_architecture.lora_config.rank_pattern: gives 'query' the rank 0; a rank is at least 1",
    ),
    (
        "transformer_architecture: {lora_config: {alpha_pattern: {query: -1}}}",
        "transformer_architecture.lora_config.alpha_pattern: gives 'query' the alpha -1.0; alpha is at least 0",
    ),
    (
        "transformer_architecture: {lora_config: {use_dora: true, bias: true}}",
        "transformer_architecture.lora_config.bias: is true, but use_dora has no vector beside its update; set "
        "one of them to false",
    ),
    (
        "transformer_architecture: {adapter_config: {name: a}}",
        "transformer_architecture.adapter_config.attention_downsampling_factor: and mlp_downsampling_factor are "
        "both null, so there are no adapters; give one of them, or remove the section",
    ),
    (
        "transformer_architecture: {lora_config: {parallel_modules: [query, quary]}}",
        "transformer_architecture.lora_config.parallel_modules.1: is 'quary', which names no module of the model;"
        " did you mean query?",
    ),
    (
        "transformer_architecture: {lora_config: {parallel_modules: [mamba]}}",
        "transformer_architecture.lora_config.parallel_modules.0: is 'mamba', which names no module of the model;"
        " the modules are embedding, query, key, value, dense, dense_in, dense_out, head",
    ),
    (
        "transformer_architecture: {lora_config: {rank_pattern: {dense_in: 2}}}",
        "transformer_architecture.lora_config.rank_pattern: has 'dense_in', which is found in the name of no "
        "module that parallel_modules names (such as layers.1.self_attention.query); correct it",
    ),
    (
        "transformer_architecture: {lora_config: {parallel_modules: [embedding], use_dora: true}}",
        "transformer_architecture.lora_config.use_dora: is true, but parallel_modules names the embedding, which "
        "is looked up and not multiplied; remove embedding from parallel_modules, or set use_dora to false",
    ),
    (
        "transformer_architecture: {vocab_size: 100, finetunable_token_ids: [1], lora_config: {parallel_modules: "
        "[head], use_dora: true}}",
        "transformer_architecture.lora_config.use_dora: is true, and parallel_modules names the head, but "
        "finetunable_token_ids replaces rows of its matrix, whose lengths it would learn; remove head from "
        "parallel_modules, or finetunable_token_ids",
    ),
    (
        "transformer_architecture: {hidden_size: 32, lora_config: {}}",
        "transformer_architecture.lora_config.rank: is 64 for layers.1.self_attention.query, but its matrix is 32"
        " x 32, of rank 32 at most; lower it, or give that module another in rank_pattern",
    ),
    (
        "transformer_architecture: {ia3_config: {parallel_modules: [query], input_modules: [query]}}",
        "transformer_architecture.ia3_config.input_modules: names query, which are computed in one product of one"
        " input (attention_qkv_in_one); set that to false, or let their outputs be multiplied",
    ),
    (
        "transformer_architecture: {attention_bias: false, mlp_bias: false, norm_type: rms, bitfit_bias_config: "
        "{name: b}}",
        "transformer_architecture.bitfit_bias_config: trains biases, but the model has none; name layers that get"
        " new ones in bitfit_bias_config.add_to, or use another method",
    ),
    (
        "transformer_architecture: {bitfit_bias_config: {name: b, add_to: [dense]}}",
        "transformer_architecture.bitfit_bias_config.add_to: names dense, which have a bias already, and that is "
        "trained; remove them",
    ),
    (
        "transformer_architecture: {adapter_config: {name: a, mlp_downsampling_factor: 0.3}}",
        "transformer_architecture.adapter_config.mlp_downsampling_factor: is 0.3, but times hidden_size (256) "
        "must be a whole number of at least 1, not 76.8; 0.30078125 gives 77",
    ),
    (
        "transformer_architecture: {vocab_size: 100, finetunable_token_ids: [7, 7]}",
        "transformer_architecture.finetunable_token_ids: has 7 more than once; name each once",
    ),
    (
        "transformer_architecture: {finetunable_token_ids: [-1]}",
        "transformer_architecture.finetunable_token_ids: has -1; tokens are numbered from 0",
    ),
    (
        "transformer_architecture: {vocab_size: 100, finetunable_token_ids: [7, 100]}",
        "transformer_architecture.finetunable_token_ids: has 100, outside the vocabulary (vocab_size 100); use 0 "
        "to 99, or raise vocab_size to have new tokens",
    ),
    (
        "transformer_architecture: {hidden_size: 32, num_layers: 1, lora_config: {parallel_modules: [head]}}",
        "transformer_architecture.lora_config.rank: is 64 for layers.3.embedding, but its matrix is vocab_size x "
        "32, of rank 32 at most; lower it, or give that module another in rank_pattern",
    ),
    (
        "transformer_architecture: {ia3_config: {parallel_modules: [key], input_modules: [dense]}}",
        "transformer_architecture.ia3_config.input_modules.0: is 'dense', which names no module in "
        "parallel_modules; the modules are key",
    ),
    (
        "transformer_architecture: {ia3_config: {input_modules: ['a(']}}",
        "transformer_architecture.ia3_config.input_modules.0: is 'a(', which is not a regular expression: missing"
        " ), unterminated subpattern at position 1",
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
