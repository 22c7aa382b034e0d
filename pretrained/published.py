"""Weights that others published, under our names: read strictly and exactly, never unpickled.

The kind of weights follows from config.json or the suffix of the file:

    SEDD          folder or hub id with config.json and model.safetensors; a .pth of its training
    MDLM          the same; a .ckpt of its training, by Lightning (both: the averaged weights)
    ILM           the same (dhruveshpatel/ilm-owt); --n_head if no config.json tells it
    transformers  folder or hub id of a masked language model (ModernBERT, BERT, RoBERTa, ...) or
                  a causal one (CAUSAL), or the model.safetensors of accelerate.save_state with
                  --backbone for its sizes
    GGUF          a .gguf file of a causal one
    ours          what `sample.py --export=DIR` wrote
"""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from configurator import UserError, optional
from pretrained import files, gguf
from pretrained.files import bare, read_json, read_tensors
from pretrained.ilm import EMBEDDING, from_ilm
from tokenizer import GPT2, HF, Bytes, Tokenizer, tokenizer_from, tokenizer_json, vocabulary

BACKBONE = "network."  # in front of transformers' names in `adapters.MaskedLM`
# of other heads that BERT and RoBERTa are published with, and a constant of old versions
UNUSED = re.compile(r"(pooler|seq_relationship)\.|embeddings\.position_ids$")
CAUSAL = ("codegen", "gpt2", "gptj", "llama", "mistral", "qwen2", "qwen3")  # left to right
# what old versions of transformers saved of them, and newer ones compute
CONSTANTS = re.compile(r"\.attn(ention)?\.(bias|masked_bias|causal_mask)$|rotary_emb\.inv_freq$")
TOKENS = re.compile(r"(tok_embeddings|word_embeddings|wte|embed_tokens)\.weight$")
# a head that the networks of the published cascade have and never use
UNTRAINED = {f"prediction_head.{name}" for name in ("0.weight", "1.weight", "1.bias")}
TINY = {  # modernbert-tiny: 2.2 M parameters in the blocks, for two CPU cores
    "model_type": "modernbert",
    "hidden_size": 256,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}
# of a folder with weights, which may be in parts
FILES = ("config.json", *files.WEIGHTS, *(f"{name}.index.json" for name in files.WEIGHTS))
FETCHED = ("config.json", "tokenizer.json", "model.safetensors", "model.safetensors.index.json")
FETCHED += ("model-*-of-*.safetensors",)
BIN = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin")
OTHERS = (".h5", ".msgpack", ".onnx", ".bin", ".pt", ".pth", ".ckpt", ".safetensors")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class Published(NamedTuple):
    """Weights under our names, with tokenizer, config and meta.json where they have any."""

    weights: dict[str, Tensor]
    config: dict[str, Any]  # the fields of Config that they fix
    tokens: int | None  # size of the vocabulary without MASK, if known
    tokenizer: Tokenizer | None = None
    meta: dict[str, Any] | None = None  # of the corpus, if it was exported by us


def read(source: str, backbone: str = "") -> Published:
    """Read any of the above; `backbone` (JSON) is for weights without a config.json. Raises
    UserError if the format is none of them, or if a name is missing or unexpected."""
    path = Path(source)
    if path.suffix == ".pth" and not backbone:
        return _from_pth(path)
    if path.suffix == ".ckpt" and not backbone:
        return _from_lightning(path)
    if path.suffix == gguf.SUFFIX:
        return _from_transformers(*gguf.read_model(path), path)
    file = path
    if path.suffix not in (".safetensors", ".bin", ".pt", ".pth", ".ckpt"):
        path = path if path.is_dir() else download(source)
        file = files.weights_file(path) or path / files.WEIGHTS[0]
    if not file.is_file():
        others = [p.name for p in sorted(file.parent.glob("*")) if p.suffix in OTHERS]
        hint = f"; {others[0]} is not read" if others else ""
        raise UserError(f"{file.parent}: {file.name} is missing{hint}")
    folder = file.parent
    if not (folder / "config.json").is_file() and not backbone:
        more = "for weights of a transformers model, add --backbone=its hub id or folder"
        raise UserError(f"{folder}: config.json is missing; {more}")
    given = (folder / "config.json").is_file()
    config = read_json(folder / "config.json") if given else json.loads(backbone)
    weights = files.read_weights(file)
    try:
        return _interpret(config, weights, folder)
    except KeyError as e:
        raise UserError(f"{folder}: {e.args[0]} is missing, so this is no such model") from None
    except (TypeError, AttributeError):
        raise UserError(f"{folder / 'config.json'}: not the configuration of a model") from None


def _interpret(raw: dict[str, Any], weights: dict[str, Tensor], folder: Path) -> Published:
    """Read weights by the kind of their config.json. Raises KeyError and TypeError for an unknown
    kind."""
    if "anyorder" in raw:
        config, meta, files = (raw["anyorder"][k] for k in ("config", "meta", "files"))
        tokenizer = tokenizer_from(meta["tokenizer"], files)
        if config.get("backbone"):
            weights = {BACKBONE + name: w for name, w in weights.items()}
        return Published(weights, config, tokenizer.vocab_size, tokenizer, meta)
    if EMBEDDING in weights and raw.get("model_type") not in CAUSAL:
        return _from_insertion(weights, raw)
    if "n_blocks" in raw:
        return Published(
            _only_ids(from_sedd(_bare(weights)), raw["vocab_size"]), *_from_mdlm_config(raw)
        )
    if "model_type" in raw:
        return _from_transformers(raw, weights, folder)
    config, tokens = _from_sedd_config(raw)
    rows = tokens + (config["graph"] == "absorb")
    return Published(_only_ids(from_sedd(weights), rows), config, tokens)


def download(source: str, *names: str) -> Path:
    """Folder of a hub repository's files: by default its configuration, weights and tokenizer."""
    if not HUB_ID.fullmatch(source):
        raise UserError(f"no checkpoint, folder or hub id: {source}")
    absent = f"{source} is no file or folder here, and as a hub id"
    try:
        hub = optional("huggingface_hub")
        folder = Path(hub.snapshot_download(source, allow_patterns=list(names or FETCHED)))
        if not names and files.weights_file(folder) is None:  # published before safetensors
            folder = Path(hub.snapshot_download(source, allow_patterns=[*FETCHED, *BIN]))
        return folder
    except UserError as e:
        raise UserError(f"{absent} it cannot be fetched: {e}") from None
    except Exception as e:  # the hub's errors are many; none of them is ours to interpret
        raise UserError(
            f"{absent} it could not be fetched ({type(e).__name__}); download it elsewhere and "
            "pass the folder with config.json and model.safetensors"
        ) from e


def usual_tokenizer(tokens: int, source: str) -> Tokenizer:
    """The tokenizer of published models with this number of tokens: bytes, GPT-2, or ILM's."""
    if tokens == Bytes.vocab_size:
        return Bytes()
    if tokens == GPT2.vocab_size:
        return GPT2.create()
    if tokens == GPT2.vocab_size + len(GPT2.row_specials):  # ILM's
        return GPT2(GPT2.create().files["gpt2.tiktoken"], has_bos_eos=True)
    raise UserError(f"{source}: {tokens} tokens belong to neither the bytes nor the gpt2 tokenizer")


# ---- SEDD and MDLM -----------------------------------------------------------------------------


def _from_sedd_config(raw: dict[str, Any]) -> tuple[dict[str, Any], int]:
    model, graph, noise = raw["model"], raw["graph"]["type"], raw["noise"]
    config = {
        "objective": "sedd",
        "graph": graph,
        "noise": noise["type"],
        "scale_by_sigma": bool(model["scale_by_sigma"]),
        "n_embd": model["hidden_size"],
        "cond_dim": model["cond_dim"],
        "n_head": model["n_heads"],
        "n_layer": model["n_blocks"],
        "block_size": model["length"],
    }
    if noise["type"] == "geometric":
        config |= {"sigma_min": noise["sigma_min"], "sigma_max": noise["sigma_max"]}
    return config, raw["tokens"]


def _mdlm(conditioned: bool) -> dict[str, Any]:
    """Config of MDLM. Without time conditioning it keeps the time input, and its value is 0."""
    fixed = {"objective": "masked", "noise": "loglinear", "time_input": True}
    return {**fixed, "zero_time": not conditioned}


def _from_mdlm_config(raw: dict[str, Any]) -> tuple[dict[str, Any], int]:
    if raw.get("model_type", "mdlm") != "mdlm":
        raise UserError(f"model_type {raw['model_type']!r} is not read; mdlm is")
    config = _mdlm(raw["time_conditioning"]) | {
        "n_embd": raw["hidden_dim"],
        "cond_dim": raw["cond_dim"],
        "n_head": raw["n_heads"],
        "n_layer": raw["n_blocks"],
        "block_size": raw["model_length"],
    }
    return config, raw["vocab_size"] - 1  # the last one is MASK


def _only_ids(weights: dict[str, Tensor], rows: int) -> dict[str, Tensor]:
    """The weights without rows of the embedding and the output layer that are no ids, as where
    their number is rounded up; it is told."""
    names = [k for k in ("embed.weight", "head.weight", "head.bias") if len(weights[k]) > rows]
    if names:
        print(f"not used, no ids of {rows}: the rows behind them of {', '.join(names)}")
    return weights | {k: weights[k][:rows].clone() for k in names}


def _bare(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("backbone."): w for name, w in weights.items()}


def _from_pth(path: Path) -> Published:
    """SEDD's training checkpoint."""
    state = _require(path, "model", "SEDD")
    return Published(*_averaged(path, bare(state["model"], path), state.get("ema")), None)


def _from_lightning(path: Path) -> Published:
    """Training checkpoint of MDLM, or of ILM. MDLM's last token is MASK. The tensors do not say
    whether MDLM was trained with time conditioning: an entry time_conditioning may, by default it
    is off as in MDLM."""
    state = _require(path, "state_dict", "MDLM")
    raw = bare(state["state_dict"], path)
    if EMBEDDING in raw:
        return _from_insertion(raw, {})
    weights, config = _averaged(path, _bare(raw), state.get("ema"))
    config |= _mdlm(bool(state.get("time_conditioning", False)))
    return Published(weights, config, len(weights["embed.weight"]) - 1)


def _from_insertion(weights: dict[str, Tensor], raw: dict[str, Any]) -> Published:
    """Weights of ILM; `raw` may have the number of heads and the longest row."""
    renamed, config = from_ilm(weights)
    names = {"n_head": ("n_head", "nhead", "num_attention_heads"), "block_size": ("max_length",)}
    for key, theirs in names.items():
        numbers = [raw[name] for name in theirs if type(raw.get(name)) is int]
        if numbers:
            config[key] = numbers[0]
    return Published(renamed, config, len(renamed["embed.weight"]))


def _require(path: Path, entry: str, whose: str) -> dict[str, Any]:
    state = read_tensors(path)
    if not isinstance(state, dict) or not isinstance(state.get(entry), dict):
        found = files.described(state, path)
        raise UserError(f"{path}: not of {whose}'s training: no entry {entry}, but {found}")
    return state


def _averaged(
    path: Path, raw: dict[str, Tensor], ema: dict[str, Any] | None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Averaged weights under our names, and the sizes that follow from them. The EMA is a list in
    the order of the parameters, which is that of the state dict without its only buffer."""
    names = [n for n in raw if n != "rotary_emb.inv_freq"]
    averaged = (ema or {}).get("shadow_params", [])
    if averaged and len(averaged) != len(names):
        raise UserError(f"{path}: the EMA has {len(averaged)} tensors, the model {len(names)}")
    weights = dict(zip(names, averaged, strict=True)) if averaged else raw
    try:
        width = raw["vocab_embed.embedding"].shape[1]
        config = {
            "n_embd": width,
            "cond_dim": raw["sigma_map.mlp.0.weight"].shape[0],
            "n_head": width // (2 * len(raw["rotary_emb.inv_freq"])),
            "n_layer": sum(n.endswith(".attn_qkv.weight") for n in names),
        }
        return from_sedd(weights), config
    except KeyError as e:
        what = files.described(raw, path)
        raise UserError(
            f"{path}: {e.args[0]} is missing, so this is no SEDD or MDLM, but {what}"
        ) from None


def _names(n_layer: int) -> dict[str, str]:
    """SEDD's name -> ours, for all parameters that correspond one to one."""
    pairs = {
        "vocab_embed.embedding": "embed.weight",
        "output_layer.norm_final.weight": "norm.weight",
    }
    for end in ("weight", "bias"):
        pairs[f"sigma_map.mlp.0.{end}"] = f"time.fc.{end}"
        pairs[f"sigma_map.mlp.2.{end}"] = f"time.proj.{end}"
        pairs[f"output_layer.linear.{end}"] = f"head.{end}"
    for i in range(n_layer):
        theirs, ours = f"blocks.{i}.", f"blocks.{i}."
        pairs[theirs + "norm1.weight"] = ours + "norm1.weight"
        pairs[theirs + "norm2.weight"] = ours + "norm2.weight"
        pairs[theirs + "attn_qkv.weight"] = ours + "attn.qkv.weight"
        pairs[theirs + "attn_out.weight"] = ours + "attn.proj.weight"
        for end in ("weight", "bias"):
            pairs[f"{theirs}mlp.0.{end}"] = f"{ours}mlp.fc.{end}"
            pairs[f"{theirs}mlp.2.{end}"] = f"{ours}mlp.proj.{end}"
    return pairs


def _modulations(n_layer: int, end: str) -> list[str]:
    """Names of SEDD's modulations, one per block and one for the output, in the order in which ours
    are stacked."""
    blocks = [f"blocks.{i}.adaLN_modulation.{end}" for i in range(n_layer)]
    return [*blocks, f"output_layer.adaLN_modulation.{end}"]


def from_sedd(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict under SEDD's (and MDLM's) names -> ours. Raises KeyError for a missing name and
    UserError for an unexpected one."""
    n_layer = sum(name.endswith(".attn_qkv.weight") for name in state)
    pairs = _names(n_layer)
    result = {ours: state[theirs] for theirs, ours in pairs.items()}
    expected = {*pairs, "rotary_emb.inv_freq"}  # a constant, recomputed
    if lacking := (UNTRAINED & state.keys()) and UNTRAINED - state.keys():
        raise KeyError(min(lacking))
    expected |= UNTRAINED
    for end in ("weight", "bias"):
        stack = _modulations(n_layer, end)
        result[f"modulation.{end}"] = torch.cat([state[name] for name in stack])
        expected |= set(stack)
    excess = [name for name in state if name not in expected]
    if excess:
        raise UserError(f"weights do not fit: unexpected {'; '.join(excess[:6])}")
    return result


def to_sedd(state: dict[str, Tensor], n_layer: int) -> dict[str, Tensor]:
    """The inverse of `from_sedd`, without the constant buffer."""
    result = {theirs: state[ours] for theirs, ours in _names(n_layer).items()}
    for end in ("weight", "bias"):
        width = state["modulation." + end].shape[0] // (6 * n_layer + 2)
        parts = state["modulation." + end].split([6 * width] * n_layer + [2 * width])
        names = _modulations(n_layer, end)
        result |= {name: part.clone() for name, part in zip(names, parts, strict=True)}
    return result


# ---- transformers ------------------------------------------------------------------------------


def resolve_backbone(source: str, vocab_size: int, specials: dict[str, int]) -> str:
    """`modernbert-tiny`, a folder, a hub id, or JSON -> JSON of the network's configuration for
    `vocab_size` rows, MASK included; it is enough to rebuild the network. A causal model keeps its
    number of rows, which may exceed that of its tokenizer."""
    if source.startswith("{"):
        try:
            config = json.loads(source)
        except ValueError as e:
            raise UserError(f"backbone: not readable as JSON: {e}") from None
    elif source == "modernbert-tiny":
        names = {"pad": "pad", "bos": "bos", "eos": "eos", "cls": "bos", "sep": "eos"}
        config = TINY | {f"{theirs}_token_id": specials.get(k) for theirs, k in names.items()}
    else:
        folder = Path(source) if Path(source).is_dir() else download(source, "config.json")
        config = read_json(folder / "config.json")
    return backbone_json(config, vocab_size)


def backbone_json(fields: dict[str, Any], vocab_size: int) -> str:
    """A config.json of transformers -> the same for another vocabulary size, in a canonical
    form."""
    transformers, causal = optional("transformers"), fields.get("model_type") in CAUSAL
    if causal:
        vocab_size = max(vocab_size, fields.get("vocab_size", 0))
    drop = "anyorder architectures _name_or_path transformers_version torch_dtype dtype".split()
    kept = {k: v for k, v in fields.items() if k not in (*drop, "gradient_checkpointing")}
    try:
        config = transformers.AutoConfig.for_model(**kept | {"vocab_size": vocab_size})
        supported = causal or type(config) in transformers.AutoModelForMaskedLM._model_mapping
    except Exception as e:  # transformers validates by exceptions of many types
        raise UserError(f"backbone: {str(e).splitlines()[0][:200]}") from e
    if not supported:
        kinds = f"a masked language model nor among {', '.join(CAUSAL)}"
        raise UserError(f"backbone: {fields['model_type']} is neither {kinds}")
    full = config.to_diff_dict()
    return json.dumps({k: v for k, v in full.items() if k not in drop}, sort_keys=True)


def _from_transformers(raw: dict[str, Any], weights: dict[str, Tensor], where: Path) -> Published:
    """Weights of a language model of transformers under the names of its class. where: the folder
    with its tokenizer, or the GGUF file."""
    causal = raw["model_type"] in CAUSAL
    constants = CONSTANTS if causal else re.compile(r"(?!)")
    kept = {n: w for n, w in weights.items() if not constants.search(n)}
    ends = {".gamma": ".weight", ".beta": ".bias"}  # of BERT's norms, from an older framework
    old = re.compile(r"\.(gamma|beta)$")
    kept = {old.sub(lambda m: ends[m[0]], n): w for n, w in kept.items()}
    embedding = [w for n, w in kept.items() if TOKENS.search(n)]
    rows = len(embedding[0]) if embedding else raw["vocab_size"]
    text = backbone_json(raw, rows)
    kept = _under_own_names(kept, _blank(text), raw.get("architectures") or [], where)
    kept = {BACKBONE + n: w for n, w in kept.items()}
    found = tokenizer_json(where)
    tokenizer = None if not found else HF(found) if causal else masked_tokenizer(found, rows)
    tokens = tokenizer.vocab_size if tokenizer else rows  # embeddings are often rounded up
    return Published(kept, {"backbone": text}, tokens, tokenizer)


def masked_tokenizer(text: str, rows: int) -> HF:
    """The tokenizer.json of a masked language model whose embedding has so many rows. One with all
    tokens of a chat is that of the ModernBERT diffusion model, whose EOS pads. So is one without
    some of them if the rows are exactly as many more: its training adds them, in this order, but
    not to the tokenizer of the folder. It is told."""
    plain = HF(text)
    lacking = [token for token in HF.chat if token not in vocabulary(plain)]
    if lacking and plain.vocab_size + len(lacking) != rows:
        return plain
    if lacking:
        print(f"the last {len(lacking)} of {rows} rows are read as {' '.join(lacking)}")
    return HF.with_chat(text)


def read_apart(file: str, source: str) -> Published:
    """Weights alone, such as the model.safetensors of accelerate.save_state or the folder with it,
    for the config.json and the tokenizer of `source`, a folder or hub id of transformers. Raises
    UserError unless the embedding has the rows of that config, or one for each id of that tokenizer
    with the tokens of a chat, and then perhaps more, as where their number is rounded up."""
    path = Path(source)
    if not path.is_dir():
        path = download(source, "config.json", "tokenizer.json")
    raw = read_json(path / "config.json")
    if not isinstance(raw, dict) or "model_type" not in raw:
        raise UserError(f"hf_model_name={source}: its config.json is not of a transformers model")
    weights = Path(file)
    weights = (files.weights_file(weights) or weights) if weights.is_dir() else weights
    try:
        got = _from_transformers(raw, files.read_weights(weights), path)
    except KeyError as e:
        raise UserError(f"{path / 'config.json'}: {e.args[0]} is missing") from None
    if got.tokenizer is None:
        raise UserError(f"hf_model_name={source}: the folder has no tokenizer.json")
    rows, ids = json.loads(got.config["backbone"])["vocab_size"], got.tokenizer.vocab_size
    lacking = [token for token in HF.chat if token not in vocabulary(got.tokenizer)]
    if rows != raw.get("vocab_size") and (lacking or rows < ids):
        more = f", {ids + len(lacking)} with {' '.join(lacking)}" if lacking else ""
        raise UserError(
            f"{file} has rows for {rows} tokens, the tokenizer of hf_model_name={source} {ids} "
            f"ids{more}: name the folder with the tokenizer that it was trained with"
        )
    return got


def _blank(backbone: str) -> Any:
    """The network of transformers that this JSON describes, without memory for its weights."""
    transformers, fields = optional("transformers"), json.loads(backbone)
    causal = fields["model_type"] in CAUSAL
    factory = transformers.AutoModelForCausalLM if causal else transformers.AutoModelForMaskedLM
    try:
        with torch.device("meta"):
            return factory.from_config(transformers.AutoConfig.for_model(**fields))
    except Exception as e:  # transformers validates by exceptions of many types
        raise UserError(f"backbone: {str(e).splitlines()[0][:200]}") from e


def _under_own_names(
    weights: dict[str, Tensor], network: Any, architectures: list[str], where: Path
) -> dict[str, Tensor]:
    """The weights under the names of `network`, which has its encoder under a prefix such as
    `bert.`: it may have been saved alone, without that prefix, or inside another module. What is
    left out, of the heads of other classes, is told; so is another prefix. Raises UserError for two
    encoders, and for one without the layers that predict tokens."""
    names, own = network.state_dict(keep_vars=True), network.base_model_prefix + "."
    embedding = network.get_input_embeddings().weight
    anchor = next(n for n, v in names.items() if v is embedding).removeprefix(own)
    prefixes = {n.removesuffix(anchor) for n in weights if f".{n}".endswith("." + anchor)}
    if len(prefixes) > 1:
        both = " and ".join(repr(p) for p in sorted(prefixes)[:2])
        raise UserError(f"{where}: holds two models, under the prefixes {both}: save one of them")
    prefix = next(iter(prefixes), own)
    outer = prefix.removesuffix(own)

    def renamed(name: str) -> str:
        rest = name.removeprefix(outer)
        return next((n for n in (own + rest, rest) if n in names or UNUSED.search(n)), name)

    if prefix != own:
        print(f"the weights have {repr(prefix) if prefix else 'no prefix'}, read as {own!r}")
        named = {renamed(n): w for n, w in weights.items()}
        if len(named) < len(weights):
            raise UserError(f"{where}: two tensors are the same of {own!r}: save one model")
        weights = named
    body = {id(v) for n, v in names.items() if n.startswith(own)}
    heads = [n for n, v in names.items() if not n.startswith(own) and id(v) not in body]
    kind = type(network).__name__
    if prefixes and heads and not any(n in weights for n in heads):
        raise UserError(
            f"{where}: an encoder without the layers of {kind} that predict tokens ({heads[0]} "
            f"and so on): take a checkpoint of {kind}"
        )
    others = [n for n in weights if n not in names and not n.startswith(own)]
    unused = [n for n in weights if UNUSED.search(n)]
    if architectures and kind not in architectures:  # saved by a class with more heads
        unused = [n for n in weights if n in unused or n in others]
    if unused:
        print(f"not used, of other heads: {', '.join(unused)}")
    # the output layer adds the bias of its decoder; where that is not tied, the head has another
    twins = {n: n.removesuffix("bias") + "decoder.bias" for n in heads if n.endswith(".bias")}
    twins = {n: twin for n, twin in twins.items() if {n, twin} <= weights.keys() & names.keys()}
    if idle := {n: weights[twin] for n, twin in twins.items() if names[n] is not names[twin]}:
        print(f"not used, without effect: {', '.join(idle)}")
    return {n: w for n, w in (weights | idle).items() if n not in unused}


def require_extension(release: Published, tokenizer: Tokenizer, source: str) -> None:
    """Raise UserError unless the vocabulary of the corpus is that of a published masked LM, perhaps
    with more ids."""
    assert release.tokens is not None, source
    if tokenizer.vocab_size < release.tokens:
        fix = "prepare it with the tokenizer of that model"
        if release.tokenizer is None:
            fix += "; if it was, put its tokenizer.json beside the weights, to tell rows of padding"
        raise UserError(
            f"{source} has {release.tokens} tokens, the corpus {tokenizer.vocab_size}: {fix}"
        )
    if release.tokenizer is None:
        print(f"{source} has no tokenizer.json: that the ids mean the same there is not checked")
        return
    theirs = release.tokenizer.codec.get_vocab(with_added_tokens=True)
    ours = vocabulary(tokenizer)
    other = [t for t, i in sorted(theirs.items(), key=lambda pair: pair[1]) if ours.get(t) != i]
    if other:
        raise UserError(
            f"{source}: {other[0]!r} is id {theirs[other[0]]} there and {ours.get(other[0])} in "
            "the corpus: prepare it with the tokenizer of that model"
        )
