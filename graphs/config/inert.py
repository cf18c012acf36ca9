"""Keys of config.json that change no logit, whatever the architecture."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

# A key, or the path of a nested one, -> the type of the values at which it changes nothing.
Inert = Mapping[str, Any]
NONE: Inert = {}


def at_any_value(keys: Iterable[str]) -> dict[str, Any]:
    """Return keys that change nothing, whatever their values."""
    return dict.fromkeys(keys, Any)


# Keys of config.json across the ecosystem, in groups by the reason why they change no logit.
_NOTES = """
_attn_implementation _attn_implementation_autoset _commit_hash _flash_attn_2_enabled _name_or_path
architectures attn_implementation auto_map dtype internal_version is_llama_config model_name
model_type torch_dtype torchscript transformers.js_config transformers_version unsloth_fixed
unsloth_version use_bfloat16 use_grouped_mm
"""  # of the tool that wrote the file: names, versions, code, formats, kernels
_TRAINING = """
altup_coef_clip altup_lr_multiplier attention_dropout aux_loss_alpha embd_pdrop ep_size
gradient_checkpointing group_size_ratio hidden_dropout hidden_dropout_prob initializer_range
load_balance_coeff loss_type output_router_logits pretraining_tp resid_pdrop router_aux_loss_coef
router_jitter_noise seq_aux
"""  # losses, noise, first values, memory; group_size_ratio: LLaMA-Factory's shifted groups
_GENERATION = """
bad_words_ids begin_suppress_tokens cache_implementation decoder_start_token_id diversity_penalty
do_sample early_stopping encoder_no_repeat_ngram_size exponential_decay_length_penalty
forced_bos_token_id forced_eos_token_id length_penalty max_length min_length no_repeat_ngram_size
num_beam_groups num_beams num_return_sequences output_attentions output_hidden_states output_scores
prefix remove_invalid_values repetition_penalty return_dict return_dict_in_generate suppress_tokens
temperature top_k top_p typical_p use_cache
"""  # what is made of logits, and what is returned beside them
_TEXTS = """
bos_token_id eos_token_id max_sequence_length model_max_length pad_token_id sep_token_id
tokenizer_class tokenizer_model_max_length tokenizer_padding_side unk_token_id
"""  # of tokenizers, which have files of their own, and where prompts were cut
_OTHER_HEADS = """
classifier_dropout finetuning_task id2label label2id mtp_transformer_layers num_labels
num_mtp_modules problem_type task_specific_params use_mtp
"""  # classifiers, further predictors: the language head has its own tensors
_UNUSED = """
_sliding_window_pattern add_cross_attention chunk_size_feed_forward cross_attention_hidden_size
is_decoder pruned_heads tf_legacy_loss tie_encoder_decoder
"""  # of every config class of transformers once; no class of the catalogue reads them
GROUPS = (_NOTES, _TRAINING, _GENERATION, _TEXTS, _OTHER_HEADS, _UNUSED)
INERT: Inert = {
    **at_any_value(" ".join(GROUPS).split()),
    "is_causal": Literal[True],  # null is not silence: to Hugging Face it means false
    "is_encoder_decoder": Literal[False],
}
