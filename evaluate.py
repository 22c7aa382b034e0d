"""Evaluate a checkpoint: python evaluate.py --ckpt=out/palindrome/ckpt.pt

Prints the bound on the likelihood of the validation split, in nats and bits per byte with its
standard error, and, for a corpus of palindromes, how many unconstrained samples are exact ones, in
random order (the law of the model) and in confidence order, and of the mirrored sampler.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from tqdm import tqdm

import checkpoint
import palindromes
from build import autocast, pick_device
from checkpoint import Model
from configurator import load, require, run
from corpus import Corpus, shuffled
from generate import generate
from objective import SampleOptions, generator
from sample import SampleConfig, canvases, watcher

EVALUATION = 4  # stream of randomness, as in train.py


@dataclass(frozen=True)
class EvaluateConfig:
    """Everything that `evaluate.py` can be told."""

    ckpt: str = "out/palindrome/ckpt.pt"  # a ckpt.pt, a folder with safetensors, or a hub id
    data: str = ""  # corpus folder; empty: the one that the checkpoint was trained on
    split: str = "val"  # train | val
    rows: int = 2000  # rows of the split, or all if it has fewer; 0 skips the bound
    t_samples: int = 4  # noise levels per row
    batch_size: int = 100  # rows at a time
    samples: int = 512  # texts for the report of palindromes; 0 skips it
    seed: int = 1337  # of the samples; the noise of the bound is fixed
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 on GPUs with it
    use_ema: bool = True  # the averaged weights, where the checkpoint has them
    show: bool = False  # animate the first samples in the terminal

    def __post_init__(self):
        for key in ("t_samples", "batch_size"):
            require(self, key, getattr(self, key) >= 1, "at least 1")
        for key in ("rows", "samples"):
            require(self, key, getattr(self, key) >= 0, "at least 0")
        require(self, "split", self.split in ("train", "val"), "train or val")


def bound(cfg: EvaluateConfig, model: Model, corpus: Corpus) -> dict[str, float]:
    """Totals over rows of the split: the bound with its standard error, and what it is per token
    (text and EOS; the cost of padding is in the sum) and per byte of text."""
    block = model.config.block_size
    corpus.require_block(block)
    count = min(cfg.rows, corpus.windows(cfg.split, block))
    rows = shuffled(np.arange(count), corpus.windows(cfg.split, block), 0)
    nats, tokens, size = [], [], []
    starts = range(0, count, cfg.batch_size)
    for number, first in enumerate(tqdm(starts, unit="batch", disable=None, leave=False)):
        batch = corpus.batch(cfg.split, rows[first : first + cfg.batch_size], block)
        rng = generator(EVALUATION, number)
        with autocast(cfg.dtype, model.net.head.weight.device):
            nats.append(model.objective.bound(model.net, batch, rng, cfg.t_samples))
        written = (torch.arange(block) < batch.length[:, None]) & ~batch.given
        tokens.append(written.sum(1).double())
        for ids, keep in zip(batch.ids, written, strict=True):
            size.append(len(model.tokenizer.decode(ids[keep].tolist()).encode()))
    each, length = torch.cat(nats), torch.cat(tokens)
    rate = float(each.sum() / length.sum())
    error = float((each - rate * length).square().sum().sqrt() / length.sum())  # of a ratio
    return {
        "rows": count,
        "t_samples": cfg.t_samples,
        "nats_per_row": float(each.mean()),
        "nats_per_token": rate,
        "nats_per_token_error": error,
        "bits_per_byte": float(each.sum()) / math.log(2) / max(sum(size), 1),
        "bits_per_byte_error": error * float(length.sum()) / math.log(2) / max(sum(size), 1),
        "tokens": int(length.sum()),
        "bytes": sum(size),
    }


def describe_bound(found: dict[str, float], split: str) -> str:
    token = f"{found['nats_per_token']:.4f} +- {found['nats_per_token_error']:.4f} nats per token"
    byte = f"{found['bits_per_byte']:.4f} +- {found['bits_per_byte_error']:.4f} bits per byte"
    return (
        f"{split}: at most {token}, {byte}, {found['nats_per_row']:.3f} nats per row\n"
        f"  (variational bound, {found['t_samples']} noise levels for each of {found['rows']} rows;"
        f" {found['tokens']:,} tokens, EOS among them; {found['bytes']:,} bytes of text; "
        "+- one standard error)"
    )


def palindrome_reports(cfg: EvaluateConfig, model: Model, seen: set[str]) -> None:
    """Report on samples in random order, in confidence order, and mirrored by construction."""
    runs = [("random order", "analytic", False), ("mirrored", "analytic", True)]
    if model.objective.mask_id is not None:
        orders = ("random", "first_hitting"), ("confidence", "confidence")
        runs = [(f"{name} order", sampler, False) for name, sampler in orders]
        runs.append(("mirrored", "first_hitting", True))
    for name, sampler, mirrored in runs:
        told = SampleConfig(num_samples=cfg.samples, palindrome=mirrored, show=cfg.show)
        options = SampleOptions(steps=told.steps, sampler=sampler)
        if cfg.show:
            print(f"\n{name}, as it is written:")
        begun, watch = canvases(told, model), watcher(told, model, [])
        made = generate(model, begun, options, cfg.seed, 128, watch, cfg.dtype)
        found = palindromes.report(made.texts, seen)
        print(f"{name} ({sampler}): {palindromes.describe(found)}", flush=True)


def main(argv: list[str]) -> None:
    cfg, _ = load(EvaluateConfig, argv)
    model = checkpoint.load(cfg.ckpt, pick_device(cfg.device), cfg.use_ema)
    folder = cfg.data or f"{model.config.data_dir}/{model.config.dataset}"
    corpus = Corpus(folder)
    corpus.require_like({**model.meta, "tokenizer": model.tokenizer.spec()})
    if cfg.rows:
        found = bound(cfg, model, corpus)
        print(describe_bound(found, cfg.split), flush=True)
    if cfg.samples and model.meta.get("task") == "palindrome":
        palindrome_reports(cfg, model, set(corpus.texts("train")))


if __name__ == "__main__":
    run(main)
