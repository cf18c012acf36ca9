"""Keys of config.json that change no logit, whatever the architecture."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

# A key, or the path of a nested one, -> the type of the values at which it changes nothing.
Inert = Mapping[str, Any]
NONE: Inert = {}


def at_any_value(keys: Iterable[str]) -> dict[str, Any]:
    """Return keys that change nothing, whatever their values."""
    return dict.fromkeys(keys, Any)


# Keys of config.json across the ecosystem: training, bookkeeping, text generation.
_INERT = """
_attn_implementation _attn_implementation_autoset _commit_hash _name_or_path _sliding_window_pattern
add_cross_attention altup_coef_clip altup_lr_multiplier architectures attention_dropout
attn_implementation auto_map aux_loss_alpha bad_words_ids begin_suppress_tokens bos_token_id
cache_implementation chunk_size_feed_forward cross_attention_hidden_size decoder_start_token_id
diversity_penalty do_sample dtype early_stopping embd_pdrop encoder_no_repeat_ngram_size
eos_token_id ep_size exponential_decay_length_penalty finetuning_task forced_bos_token_id
forced_eos_token_id hidden_dropout hidden_dropout_prob id2label initializer_range is_decoder
is_encoder_decoder is_llama_config label2id length_penalty load_balance_coeff max_length min_length
model_type mtp_transformer_layers no_repeat_ngram_size num_beam_groups num_beams num_mtp_modules
num_return_sequences output_attentions output_hidden_states output_router_logits output_scores
pad_token_id prefix pretraining_tp problem_type pruned_heads remove_invalid_values
repetition_penalty resid_pdrop return_dict return_dict_in_generate router_aux_loss_coef
router_jitter_noise sep_token_id seq_aux suppress_tokens task_specific_params temperature
tf_legacy_loss tie_encoder_decoder tokenizer_class top_k top_p torch_dtype torchscript
transformers.js_config transformers_version typical_p unsloth_fixed unsloth_version use_bfloat16
use_cache use_grouped_mm use_mtp
"""
INERT: Inert = {
    **at_any_value(_INERT.split()),
    "is_causal": Literal[True],  # null is not silence: to Hugging Face it means false
}
