"""How many errors in a finished text a model repairs: python -m analysis.repair --ckpt=X

Of held-out texts a share of the letters is replaced by others, at least one in each, and the model
corrects them as drafts: uniform-state diffusion denoises them from --draft_time, a masked model
with --remask=edit masks and rewrites what is improbable, an insertion model deletes and inserts
with --delete=N. All options of sample.py's samplers count.

    restored       texts that are again as they were
    exact          of a corpus of palindromes: texts that are some palindrome
    wrong letters  those that are again what they were; of texts that kept their length
    right letters  those that were changed
    calls          of the network, per text

A palindrome with one wrong letter does not say which of the two mirrored letters was right: half of
its repairs give another palindrome. With --draft_time the rest may change as well.
"""

import dataclasses
from dataclasses import dataclass

import torch

import checkpoint
from checkpoint import Model
from configurator import UserError, load, require, run
from corpus import Corpus
from evaluate import rows_of, share_of
from model import pick_device
from objective import generator
from sample import SamplerConfig, draft_canvas, generate, sample_options, settings, with_sampler
from tasks.palindromes import is_exact


@dataclass(frozen=True)
class RepairConfig(SamplerConfig):
    """The options of `analysis/repair.py`."""

    draft: str = "val"  # the split whose texts are the drafts
    share: float = 0.05  # of the letters of each text that are replaced
    samples: int = 512  # texts
    batch_size: int = 64  # texts at a time
    threads: int = 0  # of torch; 0: its own choice

    def __post_init__(self):
        super().__post_init__()
        require(self, "share", 0 < self.share <= 1, "above 0 and at most 1")
        for key in ("samples", "batch_size"):
            require(self, key, getattr(self, key) >= 1, "at least 1")


def held_out_texts(cfg: RepairConfig, model: Model, corpus: Corpus) -> list[str]:
    """The texts of so many rows of the split, without BOS, EOS and padding."""
    split, block = corpus.split_named(cfg.draft), model.config.block_size
    batch = corpus.batch(split, rows_of(corpus, split, cfg.samples, block), block)
    special = torch.tensor(list(model.meta["specials"].values()))
    return [model.tokenizer.decode(ids[~torch.isin(ids, special)].tolist()) for ids in batch.ids]


def corrupted(texts: list[str], share: float, seed: int) -> list[str]:
    """Each text with that share of its letters replaced, at least one, by letters of these texts
    that are not the same."""
    rng, pool = generator(seed, 7), [letter for text in texts for letter in text]
    wrong = []
    for text in texts:
        letters = list(text)
        count = max(1, round(share * len(text)))
        for place in torch.randperm(len(text), generator=rng)[:count].tolist():
            while letters[place] == text[place]:
                letters[place] = pool[int(torch.randint(len(pool), (), generator=rng))]
        wrong.append("".join(letters))
    return wrong


def measure(texts: list[str], drafts: list[str], found: list[str]) -> dict[str, tuple[int, int]]:
    """Name of a count -> how many, of how many."""
    same = [t for t in zip(texts, drafts, found, strict=True) if len(t[0]) == len(t[2])]
    letters = [each for t in same for each in zip(*t, strict=True)]
    wrong = [(a, c) for a, b, c in letters if a != b]
    right = [(a, c) for a, b, c in letters if a == b]
    return {
        "restored": (sum(a == c for a, c in zip(texts, found, strict=True)), len(texts)),
        "wrong letters repaired": (sum(a == c for a, c in wrong), len(wrong)),
        "right letters changed": (sum(a != c for a, c in right), len(right)),
    }


def main(argv: list[str]) -> None:
    cfg, origins = load(RepairConfig, argv)
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    model = checkpoint.load(cfg.ckpt, pick_device(cfg.device), cfg.use_ema)
    cfg = with_sampler(cfg, origins, model)
    corpus = Corpus(f"{model.config.data_dir}/{model.config.dataset}")
    texts = held_out_texts(cfg, model, corpus)
    if len({letter for text in texts for letter in text}) < 2 or not all(texts):
        raise UserError(f"{cfg.ckpt}: its corpus has no texts of letters to corrupt")
    drafts = corrupted(texts, cfg.share, cfg.seed)
    canvases = [draft_canvas(model, text) for text in drafts]
    options = dataclasses.replace(sample_options(cfg, model), draft=True)
    samples = generate(model, canvases, options, cfg.seed, cfg.batch_size, dtype=cfg.dtype)
    for name, (count, of) in measure(texts, drafts, samples.texts).items():
        print(f"{name}: {share_of(count / max(1, of), of)} of {of:,}")
    if model.meta.get("task") == "palindrome":
        for name, some in (("before", drafts), ("after", samples.texts)):
            share = sum(map(is_exact, some)) / len(some)
            print(f"exact palindromes {name}: {share_of(share, len(some))} of {len(some):,}")
    how = " ".join(f"{key}={value}" for key, value in settings(cfg, model).items())
    print(f"{samples.rows / len(texts):.1f} network calls each, {samples.seconds:.1f} s; {how}")


if __name__ == "__main__":
    run(main)
