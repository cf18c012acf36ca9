"""The classes of Hugging Face that a config.json names: which of them generate text."""

from collections.abc import Mapping
from typing import Any

from lmcast.graphs.config.reading import ConfigError

GENERATORS = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")
# Endings of other names, longest first where one ends in another, and what such a model is.
OTHERS = {
    "ForSequenceClassification": "a classifier of texts (reward models and rerankers are such)",
    "ForTokenClassification": "a classifier of tokens",
    "ForQuestionAnswering": "a finder of answers in a text",
    "ForMultipleChoice": "a chooser among answers",
    "ForMaskedLM": "an encoder, which fills in masked tokens",
    "ForPreTraining": "a model with its heads of training",
    "ForRewardModel": "a reward model",
    "RewardModel": "a reward model",
    "Model": "a model without a language head, as encoders and embedding models are",
}


def require_generator(config: Mapping[str, Any]) -> None:
    """Raise ConfigError where a config.json says that it is of no decoder that generates text.

    Its `architectures` may be absent, null or empty, which says nothing.
    """
    at = "config.json: "
    names = config.get("architectures")
    names = [] if names is None else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{at}architectures is {names!r:.80}; accepted: a list of class names")
    accepted = "lmcast exports decoders that generate text: ...ForCausalLM, or the text model of a"
    accepted += " ...ForConditionalGeneration"
    for name in names:
        if not name.endswith(GENERATORS):
            kind = next((what for end, what in OTHERS.items() if name.endswith(end)), None)
            known = f"by its name {kind}" if kind else "none of the classes that generate text"
            raise ConfigError(f"{at}architectures has {name!r:.80}, {known}; {accepted}")
    if config.get("is_encoder_decoder") is True:
        named = f" ({names[0]:.80})" if names else ""
        raise ConfigError(
            f"{at}is_encoder_decoder is true{named}: a text is read by an encoder; {accepted}"
        )
