"""What can be wrong with the architecture, word for word."""

from __future__ import annotations

ARCHITECTURE_PROBLEMS = [
    # by itself
    (
        "transformer_architecture: {hidden_size: 250}",
        "transformer_architecture.hidden_size: is 250, but must be divisible by num_attention_heads (4); the nearest "
        "that is: 248; or give attention_head_size",
    ),
    (
        "transformer_architecture: {hidden_size: 100, mlp_factor: 4}",
        "transformer_architecture.rotary_percentage: is 1, which rotates 25 of the 25 dimensions of a head "
        "(hidden_size 100 / num_attention_heads 4), but rotation needs an even number of at least 2; change one of "
        "the three, or set relative_position_embedding_type to none",
    ),
    (
        "transformer_architecture: {rotary_percentage: 0.01}",
        "transformer_architecture.rotary_percentage: is 0.01, which rotates 0 of the 64 dimensions of a head "
        "(hidden_size 256 / num_attention_heads 4), but rotation needs an even number of at least 2; change one of "
        "the three, or set relative_position_embedding_type to none",
    ),
    (
        "transformer_architecture: {attention_num_kv_heads: 3, num_attention_heads: 8}",
        "transformer_architecture.attention_num_kv_heads: is 3, but must divide num_attention_heads (8); 1 does",
    ),
    (
        "transformer_architecture: {attention_num_kv_heads: 2, attention_qkv_in_one: true}",
        "transformer_architecture.attention_qkv_in_one: is true, but with attention_num_kv_heads (2) the weights have "
        "different sizes; set it to false",
    ),
    (
        "transformer_architecture: {mlp_factor: 2.7}",
        "transformer_architecture.mlp_factor: is 2.7, but times hidden_size (256) must be a whole number, not 691.2; "
        "2.69921875 gives 691",
    ),
    (
        "transformer_architecture: {attention_head_size: 9}",
        "transformer_architecture.rotary_percentage: is 1, which rotates 9 of the 9 dimensions of a head "
        "(attention_head_size), but rotation needs an even number of at least 2; change one of the two, or set "
        "relative_position_embedding_type to none",
    ),
    (
        "transformer_architecture: {attention_score_scale: 0.5, masked_softmax: {scale: 2}}",
        "transformer_architecture.attention_score_scale: is 0.5, and masked_softmax.scale (2) multiplies "
        "1 / sqrt(head size); use one of the two",
    ),
    (
        "transformer_architecture: {rotary: {type: longrope, short_factor: [1], long_factor: [2]}}",
        "transformer_architecture.rotary.short_factor: has 1 numbers, but 64 dimensions of a head are rotated, in 32 "
        "pairs; give one number for each",
    ),
    (
        "transformer_architecture: {rotary: {type: longrope, short_factor: [1], long_factor: [2, 3]}}",
        "transformer_architecture.rotary.long_factor: has 2 numbers, short_factor has 1; give each one number for each "
        "rotated pair",
    ),
    (
        "transformer_architecture: {rotary_percentage: 0.03125,"
        " rotary: {type: longrope, short_factor: [1], long_factor: [2], trained_length: 1}}",
        "transformer_architecture.rotary.attention_factor: is null, and then divided by the logarithm of "
        "trained_length, which of 1 is 0; give attention_factor, or a larger trained_length",
    ),
    (
        "transformer_architecture: {rotary: {type: longrope, short_factor: [0], long_factor: [1]}}",
        "transformer_architecture.rotary.short_factor.0: must be a number greater than 0, not 0",
    ),
    (
        "transformer_architecture: {rotary: {type: dynamic, factor: 1e300, trained_length: 1}}",
        "transformer_architecture.rotary.factor: must be a number of at least 1 and of at most 1000000, not 1e+300",
    ),
    (
        "transformer_architecture: {rotary: {type: yarn, factor: 2, beta_slow: 1e-320}}",
        "transformer_architecture.rotary.beta_slow: must be a number of at least 1e-06 and of at most 1000000, not "
        "1e-320",
    ),
    (
        "transformer_architecture: {attention_pattern: [a], attention_kinds: {a: {window: 0}}}",
        "transformer_architecture.attention_kinds.a.window: must be a whole number of at least 1, or null, not 0",
    ),
    (
        "transformer_architecture: {rotary: {factor: 8}}",
        "transformer_architecture.rotary.factor: unknown key for this kind; it belongs to linear, dynamic, yarn, "
        "llama3 or longrope",
    ),
    (
        "transformer_architecture: {attention_pattern: [a], attention_kinds: {a: null}}",
        "transformer_architecture.attention_kinds.a: must be a section (KEY: VALUE lines), not null",
    ),
    (
        "transformer_architecture: {attention_head_size: 9, attention_pattern: [a], attention_kinds: {a: {rotary:"
        " {type: longrope, short_factor: [1], long_factor: [1]}}}}",
        "transformer_architecture.rotary_percentage: is 1, which rotates 9 of the 9 dimensions of a head "
        "(attention_head_size), but rotation needs an even number of at least 2; change one of the two, or set "
        "relative_position_embedding_type to none",
    ),
    (
        "transformer_architecture: {attention_head_size: 2, rotary: {type: dynamic, factor: 2}}",
        "transformer_architecture.rotary.type: is dynamic, which changes the base, but of a head's dimensions 2 are "
        "rotated, in one pair, which does not depend on it; use another type",
    ),
    (
        "transformer_architecture: {rotary: {type: yarn, factor: 2, beta_fast: 1, beta_slow: 32}}",
        "transformer_architecture.rotary.beta_fast: is 1, below beta_slow (32); exchange them",
    ),
    (
        "transformer_architecture: {rotary: {type: llama3, factor: 8, high_freq_factor: 1}}",
        "transformer_architecture.rotary.high_freq_factor: is 1, but must be above low_freq_factor (1); raise it",
    ),
    (
        "transformer_architecture: {attention_pattern: [local, full], attention_kinds: {local: {window: 8}}}",
        "transformer_architecture.attention_pattern.1: is 'full', which attention_kinds does not have; there is local",
    ),
    (
        "transformer_architecture: {attention_kinds: {local: {window: 8}}}",
        "transformer_architecture.attention_kinds.local: is in no layer; name it in attention_pattern, or remove it "
        "from here",
    ),
    (
        "transformer_architecture: {attention_pattern: [a, b], attention_kinds: {a: {window: 8}, b: {}},"
        " num_layers: 100001}",
        "transformer_architecture.attention_pattern: is for at most 100000 layers, not 100001 (num_layers); remove one",
    ),
    (
        "transformer_architecture: {num_local_attention_heads: 5, local_attention_window_size: 8}",
        "transformer_architecture.num_local_attention_heads: is 5, but there are 4 heads (num_attention_heads); lower "
        "it",
    ),
    (
        "transformer_architecture: {num_local_attention_heads: 2}",
        "transformer_architecture.local_attention_window_size: is null, but 2 heads see a window only "
        "(num_local_attention_heads); say how many keys",
    ),
    (
        "transformer_architecture: {local_attention_window_size: 8}",
        "transformer_architecture.num_local_attention_heads: is 0, so no head has the window of 8 keys "
        "(local_attention_window_size); set it to 4 for all heads",
    ),
    (
        "transformer_architecture: {num_local_attention_heads: 2, local_attention_window_size: 8,"
        " attention_pattern: [a], attention_kinds: {a: {window: 8}}}",
        "transformer_architecture.num_local_attention_heads: is 2, but attention_kinds has windows as well; use one of "
        "the two",
    ),
    (
        "transformer_architecture: {causal: false, num_local_attention_heads: 4, local_attention_window_size: 8}",
        "transformer_architecture.causal: is false, but windows are for attention to earlier tokens only; remove the "
        "windows",
    ),
    (
        "transformer_architecture: {norm_type: rms, layernorm: {bias: true}}",
        "transformer_architecture.layernorm.bias: is true, but norm_type rms has no bias; remove it",
    ),
    (
        "transformer_architecture: {norm_type: rms, layernorm: {weight: false}}",
        "transformer_architecture.layernorm.weight: is false, but norm_type rms is not built without a weight; set it "
        "to true",
    ),
    (
        "transformer_architecture: {layernorm: {weight_offset: 1}}",
        "transformer_architecture.layernorm.weight_offset: is 1, but norm_type layernorm stores its weight as it is; "
        "set it to 0",
    ),
    (
        "transformer_architecture: {key_query_norm: all_heads}",
        "transformer_architecture.key_query_norm: is all_heads, which is built for norm_type rms only; use per_head",
    ),
    (
        "transformer_architecture: {parallel_residual: true, norm_placement: post}",
        "transformer_architecture.norm_placement: is post, but with parallel_residual norms stand before the branches; "
        "set it to pre",
    ),
    (
        "transformer_architecture: {parallel_residual_norms: 1}",
        "transformer_architecture.parallel_residual_norms: is 1, which is for parallel_residual only; set that to "
        "true, or remove this",
    ),
    (
        "transformer_architecture: {absolute_positions: 2047}",
        "transformer_architecture.absolute_positions: is 2047, fewer than the tokens of a sample (sequence_length "
        "2048); raise it, or lower sequence_length",
    ),
    (
        "{topology: {model_parallel_size: 4, pipe_parallel_size: 1, data_parallel_size: 1},"
        " transformer_architecture: {mlp_size: 258}}",
        "transformer_architecture.mlp_size: is 258, but must be divisible by "
        "topology.model_parallel_size (4); set topology.model_parallel_size to 1 or 2",
    ),
    (
        "{topology: {model_parallel_size: 4, pipe_parallel_size: 1, data_parallel_size: 1},"
        " transformer_architecture: {mlp_factor: 1, mlp_size_multiple_of: 129}}",
        "transformer_architecture.mlp_factor: is 1, but times hidden_size (256), rounded up, = 258 must be divisible "
        "by topology.model_parallel_size (4); set topology.model_parallel_size to 1 or 2",
    ),
]
