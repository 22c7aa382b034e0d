"""Causal language models in a GGUF file, the format of llama.cpp, read by transformers.

Quantized weights become float32, as accurate as they are in the file, and the tokenizer becomes a
tokenizer.json. Both need the packages gguf and accelerate.
"""

import logging
from pathlib import Path
from typing import Any

from configurator import UserError, optional

SUFFIX = ".gguf"
MAGIC = b"GGUF"  # how such a file begins
# entries of the configuration that are about the file, not the network
OF_THE_FILE = ("quantization_config", "_model_name_or_path")


def read_model(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The content of a config.json and the weights, float32, by transformers' names. Raises
    UserError for a file that transformers cannot read, and if a weight is missing."""
    network = _network(path)
    config = {k: v for k, v in network.config.to_dict().items() if k not in OF_THE_FILE}
    return config, network.state_dict()


def read_network(path: Path) -> tuple[Any, Any]:
    """Network, float32, and tokenizer, as transformers has them. Raises as `read_model`."""
    return _network(path), _tokenizer(path)


def tokenizer_json(path: Path) -> str:
    """The tokenizer as the text of a tokenizer.json."""
    return _tokenizer(path).backend_tokenizer.to_str()


def _network(path: Path) -> Any:
    how = {"dtype": "float32", "output_loading_info": True}
    network, info = _opened(path, "AutoModelForCausalLM", **how)
    if missing := info["missing_keys"]:
        raise UserError(f"{path}: lacks {len(missing)} weights, {min(missing)} among them")
    return network


def _tokenizer(path: Path) -> Any:
    """Of the general class: that of Llama has more ids than the file in old versions."""
    return _opened(path, "PreTrainedTokenizerFast")


def _opened(path: Path, factory: str, **how: Any) -> Any:
    """What a class of transformers reads from the file."""
    refuse_other_files(path)
    transformers = optional("transformers")
    for package in ("gguf", "accelerate"):
        optional(package)
    transformers.utils.logging.disable_progress_bar()
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # that the weights are made float32, which is meant
    try:
        return getattr(transformers, factory).from_pretrained(
            str(path.parent), gguf_file=path.name, **how
        )
    except Exception as e:  # transformers and gguf raise many types
        reason = " ".join(str(e).split()).partition(". ")[0]
        raise UserError(f"{path} could not be read ({type(e).__name__}): {reason:.160}") from e
    finally:
        logging.disable(before)


def refuse_other_files(path: Path) -> None:
    """Raise UserError for a file that is not there or does not begin as one of GGUF."""
    if not path.is_file():
        raise UserError(f"no file {path}")
    with open(path, "rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise UserError(f"{path}: no GGUF file (a pointer of Git LFS? run git lfs pull)")
