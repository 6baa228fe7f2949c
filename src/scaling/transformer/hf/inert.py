"""Fields that may be in any config.json: those that change nothing, and those that must have one value."""

from __future__ import annotations

from typing import Any, Final

from scaling.transformer.hf.fields import Only

_ABOUT_THE_FILE: Final = """
    _name_or_path name_or_path _model_name_or_path _commit_hash transformers_version transformers.js_config
    transformers_weights _attn_implementation _attn_implementation_autoset _attn_implementation_internal
    attn_implementation _flash_attn_2_enabled _experts_implementation experts_implementation unsloth_fixed
    unsloth_version custom_pipelines
"""

_ABOUT_TRAINING_AND_OUTPUT: Final = """
    use_cache pretraining_tp initializer_range output_attentions output_hidden_states return_dict id2label label2id
    num_labels _num_labels problem_type finetuning_task task_specific_params tokenizer_class prefix
    chunk_size_feed_forward cache_implementation tie_last_hidden_states is_llama_config torchscript tf_legacy_loss
    use_bfloat16 is_decoder gradient_checkpointing bos_token_id eos_token_id pad_token_id sep_token_id unk_token_id
    cls_token_id mask_token_id decoder_start_token_id output_past model_max_length max_sequence_length
    tokenizer_model_max_length tokenizer_padding_side
"""

_ABOUT_GENERATION: Final = """
    assistant_confidence_threshold assistant_early_exit assistant_ensemble_weight assistant_lookbehind bad_words_ids
    begin_suppress_tokens cache_config compile_config constraints disable_compile diversity_penalty do_sample
    dola_layers early_stopping encoder_no_repeat_ngram_size encoder_repetition_penalty epsilon_cutoff eta_cutoff
    exponential_decay_length_penalty force_words_ids forced_bos_token_id forced_decoder_ids forced_eos_token_id
    generation_kwargs guidance_scale is_assistant length_penalty low_memory max_cache_len max_length
    max_matching_ngram_size max_new_tokens max_time min_length min_new_tokens min_p no_repeat_ngram_size
    num_assistant_tokens num_assistant_tokens_schedule num_beam_groups num_beams num_return_sequences output_logits
    output_scores penalty_alpha prefill_chunk_size prompt_lookup_num_tokens remove_invalid_values renormalize_logits
    repetition_penalty return_dict_in_generate sequence_bias stop_strings suppress_tokens target_lookbehind temperature
    token_healing top_h top_k top_p typical_p watermarking_config
"""

_NOTHING: Final[tuple[Any, ...]] = (None, False, {}, [])

NOT_BUILT: Final = "this is not built, so the model cannot be read"

REFUSED: Final = (
    Only(
        "quantization_config",
        _NOTHING,
        "the weights are quantized; load the model with transformers, dequantize it, and save it without this field",
    ),
    Only("per_layer_config", _NOTHING, f"layers differ in ways that are not read; {NOT_BUILT}"),
    Only("pruned_heads", _NOTHING, f"some heads were removed; {NOT_BUILT}"),
    Only("is_encoder_decoder", _NOTHING, f"the model is no decoder alone; {NOT_BUILT}"),
    Only("tie_encoder_decoder", _NOTHING, f"the model is no decoder alone; {NOT_BUILT}"),
    Only("add_cross_attention", _NOTHING, f"the model attends to an encoder; {NOT_BUILT}"),
    Only("cross_attention_hidden_size", _NOTHING, f"the model attends to an encoder; {NOT_BUILT}"),
    Only("rope_interleaved", _NOTHING, f"neighbouring features are rotated together; {NOT_BUILT}"),
    Only("alibi", _NOTHING, f"positions are biases of the scores; {NOT_BUILT}"),
    Only("use_bidirectional_attention", _NOTHING, f"tokens see those after them; {NOT_BUILT}"),
    Only("is_causal", (None, True), f"tokens see those after them; {NOT_BUILT}"),
    Only("attention_bias", _NOTHING, f"models of this type have no such switch of biases; {NOT_BUILT}"),
    Only("mlp_bias", _NOTHING, f"models of this type have no such switch of biases; {NOT_BUILT}"),
    Only("lm_head_bias", _NOTHING, f"models of this type have no bias of the head; {NOT_BUILT}"),
    Only("use_sliding_window", _NOTHING, f"models of this type have no such windows; {NOT_BUILT}"),
    Only("partial_rotary_factor", (None, 1.0), f"models of this type rotate all features; {NOT_BUILT}"),
    Only("use_mrope", _NOTHING, f"positions have several axes; {NOT_BUILT}"),
    Only("dual_chunk_attention_config", _NOTHING, f"attention goes by chunks of the text; {NOT_BUILT}"),
)
"""Fields that are refused unless they are switched off; where a family reads one of them, its own table decides."""

_NAMES: Final = " ".join((_ABOUT_THE_FILE, _ABOUT_TRAINING_AND_OUTPUT, _ABOUT_GENERATION))

INERT: Final = frozenset((*_NAMES.split(), *(only.name for only in REFUSED)))
