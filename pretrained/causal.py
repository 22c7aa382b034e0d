"""Networks of transformers that read in an order: causal language models, and XLNet. Causal ones
that are made to read in both directions.

python -m pretrained.causal --codegen=FOLDER --out=FOLDER   CodeGen's weights in the layout of GPT-J
python -m pretrained.causal --nanogpt=FILE --out=FOLDER     a ckpt.pt of nanoGPT as a GPT-2
python -m pretrained.causal --gguf=FILE --out=FOLDER        a GGUF file as float32, read faster
"""

import inspect
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configurator import Config, UserError, load, optional, require, run, save_json
from model import Cache, to_device
from pretrained import gguf
from pretrained.files import bare, read_json, read_tensors
from pretrained.masked import MaskedLM
from pretrained.published import CAUSAL, CONSTANTS

LINEAR = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # transposed in transformers' GPT-2
NANOGPT = (50304, 50257)  # rows of nanoGPT's embedding for GPT-2's tokens, and how many those are
# row blocks of qkv_proj in CodeGen: four parts, one for each TPU core, of query, value and key
TOGETHER = (0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11)


class Kept:
    """A `model.Cache` with the interface that attention layers of transformers expect, from the
    oldest to the newest version that requirements-full.txt allows: the names of arguments are
    theirs, and what else a version passes is of no use here."""

    is_compileable = False

    def __init__(self, cache: Cache):
        self.cache = cache

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        return self.cache.store(layer_idx, key_states, value_states)

    def get_seq_length(self, *_: Any, **__: Any) -> int:
        return self.cache.at.start


class CausalLM(MaskedLM):
    """A *ForCausalLM of transformers, of a kind in `published.CAUSAL`, with the interface of
    `Transformer`, its cache of keys and values included."""

    causal = True

    def __init__(self, network: nn.Module, tokens: int | None = None):
        super().__init__(network, tokens)
        cfg = network.config
        local = cfg.model_type == "mistral" or self.window
        if local and cfg.sliding_window:  # a mask of ours would replace it; so far it hides nothing
            self.longest = min(self.longest, cfg.sliding_window)
        known = inspect.signature(network.forward).parameters
        # the argument's name since transformers 5.24, and before
        self.cache_name = "cache" if "cache" in known else "past_key_values"

    def features(
        self,
        ids: Tensor,
        time: Tensor | None = None,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """As `Transformer.features`; raises UserError for positions that the model does not have.
        No query sees more than `sees` says, whatever the mask."""
        assert time is None, "built without time"
        B, T = ids.shape
        first, keys = (0, T) if cache is None else (cache.at.start, cache.visible)
        places = torch.arange(first, first + T, device=ids.device)
        longest = first + T if positions is None else int(positions.max()) + 1
        if longest > self.longest:
            raise UserError(f"{longest} positions, but this backbone has {self.longest}")
        seen = None
        if mask is not None or cache is not None or not self.causal:
            sees = self.sees(places, keys)
            sees = (sees if mask is None else mask & sees).expand(B, T, keys)[:, None]
            seen = self.head.weight.new_zeros(sees.shape).masked_fill(~sees, -torch.inf)
        out = self.network(
            ids,
            attention_mask=seen,
            position_ids=(places[None] if positions is None else positions).expand(B, T),
            use_cache=False,
            **{} if cache is None else {self.cache_name: Kept(cache)},
        )
        return out.logits.float()

    def sees(self, places: Tensor, keys: int) -> Tensor:
        """(T, keys) bool: may queries at places (T,) see these columns? Those up to their own."""
        return torch.arange(keys, device=places.device) <= places[:, None]

    def flops_per_token(self, T: int) -> int:
        """As `Transformer.flops_per_token`."""
        body = sum(p.numel() for p in self.matrices()) + self.vocab_size * self.n_embd
        return 6 * body + 12 * self.n_layer * self.n_embd * T


class AnyOrderLM(CausalLM):
    """A causal language model that reads in both directions, for masked diffusion (Gong et al.
    2024, DiffuLLaMA, arXiv 2410.17891): a mask of its own takes the place of the causal one.

    shift: the output at place i - 1 predicts token i, as in the causal model (their section 3.2),
    so features are moved by a place; the first token, which none precedes, is predicted by its own
    place (as in Dream, Ye et al. 2025, arXiv 2508.15487)."""

    causal = False
    later: Tensor | None = None  # (S, S) bool: which later columns training shows; None: all

    def __init__(self, network: nn.Module, tokens: int | None = None, shift: bool = True):
        super().__init__(network, tokens)
        self.shift = shift

    def sees(self, places: Tensor, keys: int) -> Tensor:
        """(T, keys) bool: every query sees every column, but while training is annealed."""
        if self.later is None or not self.training:
            return torch.ones(len(places), keys, dtype=torch.bool, device=places.device)
        return super().sees(places, keys) | self.later[: len(places), :keys]

    def features(self, *inputs: Any, **more: Any) -> Tensor:
        """As CausalLM's, moved by a place with `shift`."""
        h = super().features(*inputs, **more)
        return torch.cat([h[:, :1], h[:, :-1]], 1) if self.shift else h

    def anneal(self, share: float, T: int, rng: torch.Generator) -> None:
        """Until the next call, training on up to T places shows each later one to each query with
        probability `share` (annealing of the causal mask); evaluation always shows all."""
        later = None if share >= 1 else torch.rand(T, T, generator=rng) < share
        self.later = later if later is None else to_device(later, self.head.weight.device)


class QueryStream(MaskedLM):
    """XLNetLMHeadModel whose features are those of the query stream. Segments are not used, so
    XLNet's parameters for them are neither trained nor saved."""

    def __init__(self, network: nn.Module):
        super().__init__(network)
        for layer in self.blocks:
            for name in ("r_s_bias", "seg_embed"):
                value = getattr(layer.rel_attn, name).detach()
                delattr(layer.rel_attn, name)
                layer.rel_attn.register_buffer(name, value, persistent=False)

    def features(self, ids: Tensor, time: None, mask: Tensor, columns: Tensor) -> Tensor:
        """ids (B, T) int64, mask (B, T, T) bool: may a query at this place see that key (every
        one must see some); columns (B, M) int64: the places of the queries -> (B, M, C) float32."""
        assert time is None, "built without time"
        out = self.network(
            ids,
            perm_mask=(~mask).float(),
            target_mapping=F.one_hot(columns, ids.shape[1]).float(),
            use_mems=False,
        )
        return out.logits.float()


def build_xlnet(cfg: Config, vocab_size: int) -> QueryStream:
    """XLNet with the sizes of the config, freshly initialised. Its positions are relative, for rows
    of any length."""
    if cfg.backbone:
        raise UserError("objective=xlnet has a network of its own: leave --backbone out")
    transformers = optional("transformers")
    config = transformers.XLNetConfig(
        vocab_size=vocab_size,
        d_model=cfg.n_embd,
        n_layer=cfg.n_layer,
        n_head=cfg.n_head,
        d_inner=4 * cfg.n_embd,
        ff_activation="gelu",
        dropout=cfg.dropout,
    )
    return QueryStream(transformers.XLNetLMHeadModel(config))


# ---- CodeGen as GPT-J --------------------------------------------------------------------------


def gptj_from_codegen(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """CodeGen's weights under GPT-J's names. They differ in queries, keys and values: one matrix (3
    C, C) of twelve row blocks there, three matrices (C, C) here."""
    renamed = {}
    for name, value in weights.items():
        if name.endswith("attn.qkv_proj.weight"):
            blocks = value.chunk(12)
            stem = name.removesuffix("qkv_proj.weight")
            q, v, k = torch.cat([blocks[i] for i in TOGETHER]).chunk(3)
            parts = {"q": q, "k": k, "v": v}
            renamed |= {f"{stem}{part}_proj.weight": w.clone() for part, w in parts.items()}
        elif not CONSTANTS.search(name):
            renamed[name] = value
    return renamed


def convert(source: Path, out: Path) -> None:
    """Convert a folder with CodeGen's config.json and model.safetensors to GPT-J, which
    transformers and --init_from read; files of the tokenizer are copied."""
    files, config = optional("safetensors.torch", "safetensors"), read_json(source / "config.json")
    if config.get("model_type") != "codegen" or not (source / "model.safetensors").is_file():
        raise UserError(f"codegen={source}: needs config.json of CodeGen and model.safetensors")
    if config["n_head"] % 4:
        raise UserError(f"codegen={source}: n_head={config['n_head']} is no multiple of 4")
    weights = gptj_from_codegen(files.load_file(source / "model.safetensors"))
    _make(out)
    for path in source.iterdir():
        if path.suffix in (".json", ".txt") and path.name != "config.json":
            shutil.copy(path, out / path.name)
    files.save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    config |= {"model_type": "gptj", "architectures": ["GPTJForCausalLM"]}
    save_json(config, out / "config.json")


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True)
    except OSError as e:
        raise UserError(f"out={out} cannot be made: {e.strerror}") from e


# ---- nanoGPT as GPT-2 --------------------------------------------------------------------------


def gpt2_from_nanogpt(
    state: dict[str, Any], path: Path
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The content of a ckpt.pt of nanoGPT -> weights under GPT-2's names and its config.json. The
    rows that it adds to GPT-2's 50,257 are left out; biases that it was trained without are 0."""
    given, weights = state["model_args"], bare(state["model"], path)
    sizes = {"n_layer": int, "n_head": int, "n_embd": int, "block_size": int, "vocab_size": int}
    if bad := [k for k, kind in sizes.items() if not isinstance(given.get(k), kind)]:
        raise UserError(f"{path}: model_args has no {bad[0]}")
    weights = {k: v for k, v in weights.items() if k != "lm_head.weight"}  # tied
    weights = {k: v for k, v in weights.items() if not CONSTANTS.search(k)}
    weights = {k: v.t().contiguous() if k.endswith(LINEAR) else v for k, v in weights.items()}
    for name in [k for k in weights if k.endswith((*LINEAR, "ln_1.weight", "ln_2.weight"))]:
        bias = name.removesuffix("weight") + "bias"
        weights.setdefault(bias, torch.zeros(weights[name].shape[-1]))
    weights.setdefault("transformer.ln_f.bias", torch.zeros(given["n_embd"]))
    if "transformer.wte.weight" not in weights:
        raise UserError(f"{path}: transformer.wte.weight is missing, so this is no nanoGPT")
    rows = given["vocab_size"]
    if rows == NANOGPT[0]:
        rows = NANOGPT[1]
        weights["transformer.wte.weight"] = weights["transformer.wte.weight"][:rows].clone()
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": rows}
    config |= {k: given[k] for k in ("n_layer", "n_head", "n_embd")}
    config |= {"n_positions": given["block_size"], "activation_function": "gelu"}
    return weights, config


def convert_nanogpt(source: Path, out: Path) -> None:
    """Write a ckpt.pt of nanoGPT as a folder of GPT-2."""
    files, state = optional("safetensors.torch", "safetensors"), read_tensors(source)
    if not isinstance(state, dict) or not {"model_args", "model"} <= state.keys():
        raise UserError(f"nanogpt={source}: no model_args and model, which nanoGPT's have")
    weights, config = gpt2_from_nanogpt(state, source)
    _make(out)
    files.save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    save_json(config, out / "config.json")


def convert_gguf(source: Path, out: Path) -> None:
    """Write a GGUF file as a folder with config.json, model.safetensors and tokenizer.json."""
    files = optional("safetensors.torch", "safetensors")
    config, weights = gguf.read_model(source)
    if config["model_type"] not in CAUSAL:
        raise UserError(f"gguf={source}: {config['model_type']} is not among {', '.join(CAUSAL)}")
    if config["tie_word_embeddings"]:
        weights.pop("lm_head.weight")  # the embedding, which a file has once
    text = gguf.tokenizer_json(source)
    _make(out)
    files.save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    (out / "tokenizer.json").write_text(text, encoding="utf-8")
    save_json(config, out / "config.json")


@dataclass(frozen=True)
class ConvertConfig:
    """The options of this command."""

    codegen: str = ""  # folder with config.json and model.safetensors
    nanogpt: str = ""  # or a ckpt.pt of nanoGPT
    gguf: str = ""  # or a GGUF file
    out: str = ""  # folder to make

    def __post_init__(self):
        require(self, "out", bool(self.out), "the name of a folder")
        one = sum(map(bool, (self.codegen, self.nanogpt, self.gguf))) == 1
        require(self, "codegen", one, "the name of a folder, or nanogpt or gguf that of a file")


def main(argv: list[str]) -> None:
    cfg, _ = load(ConvertConfig, argv)
    if cfg.gguf:
        convert_gguf(Path(cfg.gguf), Path(cfg.out))
        print(f"wrote {cfg.out}: {cfg.gguf} as float32")
    elif cfg.nanogpt:
        convert_nanogpt(Path(cfg.nanogpt), Path(cfg.out))
        print(f"wrote {cfg.out}: {cfg.nanogpt} as a GPT-2")
    else:
        convert(Path(cfg.codegen), Path(cfg.out))
        print(f"wrote {cfg.out}: {cfg.codegen} in the layout of GPT-J")


if __name__ == "__main__":
    run(main)
