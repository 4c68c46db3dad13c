"""Load the weights of a pretrained model, and see that they are those of its configuration."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from peft_bidora.errors import ModelError

logger = logging.getLogger(__name__)

LARGEST_NEW_SHARE = 0.1  # of the parameters of the base model: a pooler, not an encoder
SHOWN_NAMES = 5


def load_weights(
    source: str,
    auto_class: Any,
    tokenizer: Any,
    label_names: Sequence[str] | None = None,
    **config: Any,
) -> Any:
    """Return the pretrained model in float32; a head that its weights lack starts at random values.

    So does a small part of the base model that they lack as a whole, a pooler say; its name is in the model's
    `new_modules`, and it has to be trained and saved like the head.

    Args:
        source: a folder or a hub name.
        auto_class: the transformers class that builds it.
        tokenizer: whose padding token the model must know.
        label_names: the classes, in the order of the outputs; None where there are none.
        **config: what else is changed in the model's configuration, or told to `from_pretrained`.

    Raises:
        ModelError: the weights cannot be loaded, or are not those of the model's configuration.
    """
    import torch

    if label_names is not None:
        config["id2label"] = dict(enumerate(label_names))
        config["label2id"] = {name: index for index, name in enumerate(label_names)}
    try:
        with _quiet():
            model, report = auto_class.from_pretrained(
                source,
                dtype=torch.float32,
                pad_token_id=tokenizer.pad_token_id,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **config,
            )
    except Exception as error:  # safetensors, torch and transformers each raise types of their own
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"The weights of {source} cannot be loaded ({type(error).__name__}: {reason}).") from error
    base = f"{model.base_model_prefix}."
    other = sorted(str(key[0]) for key in report["mismatched_keys"] if str(key[0]).startswith(base))
    if other:
        raise ModelError(
            f"The weights of {source} have other shapes than its config.json says: {_some(other)}."
            " Save the model again."
        )
    model.new_modules = _new_modules(model, source, set(report["missing_keys"]))
    return model


def _new_modules(model: Any, source: str, missing: set[str]) -> list[str]:
    """Return the parts of the base model that its weights lack as a whole.

    Args:
        model: as it was loaded.
        source: where from.
        missing: names of what its weights lack, of the head too.

    Raises:
        ModelError: the weights lack something else of the base model.
    """
    base = getattr(model, model.base_model_prefix, None)
    if base is None:
        return []
    sizes = {f"{model.base_model_prefix}.{name}": value.numel() for name, value in base.named_parameters()}
    missing = missing & sizes.keys()
    parts: dict[str, set[str]] = {}
    for key in sizes:
        parts.setdefault(".".join(key.split(".")[:2]), set()).add(key)
    new = [name for name, keys in parts.items() if keys <= missing]
    rest = missing.difference(*(parts[name] for name in new))
    if rest or sum(sizes[key] for key in missing) > LARGEST_NEW_SHARE * sum(sizes.values()):
        raise ModelError(
            f"{source} has no weights for {len(missing)} tensors of its base model: {_some(sorted(missing))}. They"
            " would be random. Name a model that was saved whole, of the architecture in its config.json."
        )
    if new:
        logger.warning("%s has no weights for %s: new ones are trained and saved with the head.", source, _some(new))
    return new


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(names[:SHOWN_NAMES]) + more


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the expected report of a newly initialised head, and the bar of loading it, off the screen."""
    from transformers.utils import logging as noise

    verbosity, bars = noise.get_verbosity(), noise.is_progress_bar_enabled()
    noise.set_verbosity_error()
    noise.disable_progress_bar()
    try:
        yield
    finally:
        noise.set_verbosity(verbosity)
        if bars:
            noise.enable_progress_bar()
