"""Rows of the palindrome demo: letters only, the first half from real English, then mirrored.

A text of k letters is its first ceil(k / 2), read from the prose that every Python carries from the
beginning of a word on, and their mirror image. What first halves a split may use is decided before
any row is drawn, so no validation text is a training text.
"""

import dataclasses
import re
from collections import Counter
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Iterable, NamedTuple

import numpy as np

from configurator import UserError
from prepare.byte_rows import BOS, EOS, Rows
from prepare.texts import python_prose

# ==================================================================================================
# What counts as a palindrome, and how many of a model's texts are one. Imports nothing of ours
#
# Two notions, never mixed: *exact* is the demo's, a string that equals its own mirror image byte
# for byte; *normalised* is the usual one for phrases, which looks only at letters and digits.
# ==================================================================================================


SAMPLES = 512  # that evaluate.py scores, by default
SHORTEST = 3  # characters; shorter texts mirror themselves too easily to count


def normalise(text: str) -> str:
    """Only the ASCII letters and digits of `text`, in lower case; other letters are deleted."""
    return re.sub("[^A-Za-z0-9]", "", text).lower()


def is_palindrome(text: str) -> bool:
    """Is `text` its own mirror image when normalised? Never true of a text without letters."""
    kept = normalise(text)
    return bool(kept) and kept == kept[::-1]


def counted_valid(text: str) -> bool:
    """A palindrome of at least 3 raw characters, the white space around it not counted."""
    return is_palindrome(text) and len(text.strip()) >= SHORTEST


def is_exact(text: str) -> bool:
    """At least 3 characters, all of them a-z or 0-9, and equal to their reverse as they stand."""
    return bool(re.fullmatch(f"[a-z0-9]{{{SHORTEST},}}", text)) and text == text[::-1]


def report(texts: Iterable[str], seen: set[str] | None = None) -> dict[str, Any]:
    """Texts of a model -> counts and shares (0..1) as plain data.

    `exact` and `normalised` are shares of all samples; `distinct` and `new` (not in `seen`, the
    training texts; None if those are not given) are shares of the exact ones; `length` is their
    mean number of characters; `frequent` the five most frequent with their counts.
    """
    texts = list(texts)
    exact = [t for t in texts if is_exact(t)]
    counts = Counter(exact)

    def share(count: int, whole: int) -> float:
        return count / whole if whole else 0.0

    return {
        "samples": len(texts),
        "exact": share(len(exact), len(texts)),
        "normalised": share(sum(map(counted_valid, texts)), len(texts)),
        "distinct": share(len(counts), len(exact)),
        "new": None if seen is None else share(sum(t not in seen for t in exact), len(exact)),
        "length": share(sum(map(len, exact)), len(exact)),
        # ties by alphabet, so that the same samples in another order give the same report
        "frequent": sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:5],
    }


def describe(counts: dict[str, Any]) -> str:
    """Two lines for the terminal from what `report` returned."""
    parts = [
        f"{counts['samples']} samples",
        f"exact palindromes {counts['exact']:.1%}",
        f"ignoring case, spaces and punctuation {counts['normalised']:.1%}",
    ]
    if not counts["frequent"]:
        return ", ".join(parts)
    of_exact = [f"distinct {counts['distinct']:.1%}"]
    if counts["new"] is not None:
        of_exact.append(f"not in the training set {counts['new']:.1%}")
    of_exact.append(f"mean length {counts['length']:.1f} characters")
    frequent = ", ".join(f"{text} ({count})" for text, count in counts["frequent"])
    return (
        f"{', '.join(parts)}\nof the exact ones: {', '.join(of_exact)}; most frequent: {frequent}"
    )


def score(model: Any, texts: Any) -> tuple[str, float]:
    """What is counted of samples (evaluate.Texts), and its share of them."""
    return "exact palindromes", report(map(model.tokenizer.decode, texts.found))["exact"]


def evaluate(cfg: Any, model: Any, corpus: Any) -> dict[str, Any]:
    """Report on samples by the default sampler, in confidence order, and mirrored by construction;
    or, of the one sampler that was asked for. `cfg` is that of evaluate.py."""
    from evaluate import count  # preparing a corpus must not import torch
    from objective import choose_sampler
    from sample import SampleConfig, canvases, generate, sample_options, watcher

    seen = set(corpus.texts("train"))
    usual = cfg.sampler == "auto"
    name = "random order" if usual and model.objective.mask_id is not None else "samples"
    runs = [(name, cfg.sampler, False), ("mirrored", cfg.sampler, True)]
    if usual and model.objective.mask_id is not None:
        runs.insert(1, ("confidence order", "confidence", False))
    if model.objective.inserts:  # no place is the mirror image of another before the text is whole
        runs = [("samples", cfg.sampler, False)]
    reports = {}
    for name, sampler, mirrored in runs:
        options = {"palindrome": mirrored, "max_length": cfg.max_length, "show": cfg.show}
        sample_cfg = SampleConfig(num_samples=count(cfg, SAMPLES), **options)
        options = sample_options(dataclasses.replace(cfg, sampler=sampler), model)
        sampler = choose_sampler(model.objective, options).sampler
        if cfg.show:
            print(f"\n{name}, as it is written:")
        begun, watch = canvases(sample_cfg, model), watcher(sample_cfg, model, [])
        how = (options, cfg.seed, 128, watch, cfg.dtype)
        made = generate(model, begun, *how, quiet=cfg.show)
        counts = report(made.texts, seen)
        print(f"{name} ({sampler}): {describe(counts)}", flush=True)
        reports[name] = {"sampler": sampler, **counts}
    return {"palindromes": reports}


# ==================================================================================================
# Rows of the demo
# ==================================================================================================


class Pool(NamedTuple):
    """Where in the letters the first halves begin that a split may use for one length."""

    prose: np.ndarray
    listed: np.ndarray


@dataclass
class LetterRows:
    """Palindromes of `lengths` letters; `phrases` are words and phrases to mix in."""

    phrases: list[str]
    lengths: range
    val_share: float  # of the different first halves of each length
    listed_share: float  # of the rows of each length, from `phrases`
    max_repeats: int  # of one text among the training rows
    seed: int
    counts: Counter  # what was used, by name
    dropped: Counter  # what was not, by reason

    def __post_init__(self):
        """The letters (M,) uint8 and, for each split, {length: Pool}."""
        letters, starts = letter_stream(python_prose(), (max(self.lengths) + 1) // 2)
        halves = self.listed_halves()
        flat = [h for k in halves for h in halves[k]]
        ends = len(letters) + np.cumsum([0, *map(len, flat)])
        self.letters = np.concatenate([letters, np.frombuffer("".join(flat).encode(), np.uint8)])
        self.pools: dict[str, dict[int, Pool]] = {"train": {}, "val": {}}
        used = 0
        for k, listed in halves.items():
            every = np.concatenate([starts, ends[used : used + len(listed)]])
            used += len(listed)
            val = held_out(self.half(every, k), self.val_share, self.seed)
            self.dropped["word starts held out from training, over all lengths"] += int(val.sum())
            prose = np.arange(len(every)) < len(starts)
            for split, side in (("train", ~val), ("val", val)):
                self.pools[split][k] = Pool(every[side & prose], every[side & ~prose])
                if not len(self.pools[split][k].prose):
                    share = f"val_split_ratio={self.val_share}"
                    raise UserError(f"{share} leaves no {split} text of {k} letters")
        self.counts["words of prose"] = len(starts)

    def listed_halves(self) -> dict[int, list[str]]:
        """Length -> first halves of the phrases that have it; the rest is counted."""
        halves: dict[int, list[str]] = {k: [] for k in self.lengths}
        for text in map(normalise, self.phrases):
            if not text.isalpha():
                self.dropped["listed phrase with digits"] += 1
            elif len(text) not in halves:
                self.dropped["listed phrase too short or long"] += 1
            else:
                halves[len(text)].append(text[: (len(text) + 1) // 2])
        return halves

    def half(self, start: np.ndarray, k: int) -> np.ndarray:
        """First halves (S, ceil(k / 2)) of texts of k letters that begin at `start` (S,)."""
        return self.letters[start[:, None] + np.arange((k + 1) // 2)]

    def draw(self, split: str, size: int) -> Rows:
        """`size` rows with uniform lengths, less those of train whose text has come max_repeats
        times: there are few short texts, and they would crowd. Splits are drawn independently."""
        stream = 1 if split == "train" else 2
        rng = np.random.default_rng([self.seed, stream])
        sizes = rng.integers(min(self.lengths), max(self.lengths) + 1, size)
        start, before = np.empty_like(sizes), np.empty_like(sizes)
        for k, pool in self.pools[split].items():
            here = np.flatnonzero(sizes == k)
            start[here] = self.pick(pool, len(here), rng)
            before[here] = repeats(self.half(start[here], k))
        keep = before < (self.max_repeats if split == "train" else size)
        self.dropped[f"{split} rows beyond max_repeats"] += int((~keep).sum())
        listed = np.concatenate([p.listed for p in self.pools[split].values()])
        used = int(np.isin(start[keep], listed).sum())
        self.counts[f"{split} rows from the list"] = used
        return self.mirrored(start[keep], sizes[keep])

    def pick(self, pool: Pool, size: int, rng: np.random.Generator) -> np.ndarray:
        """Where `size` texts begin, a share of them in the listed ones if there are any."""
        start = pool.prose[rng.integers(len(pool.prose), size=size)]
        listed = (rng.random(size) < self.listed_share) & (len(pool.listed) > 0)
        if listed.any():
            start[listed] = pool.listed[rng.integers(len(pool.listed), size=listed.sum())]
        return start

    def mirrored(self, start: np.ndarray, sizes: np.ndarray) -> Rows:
        """Rows [BOS] text [EOS] of `sizes` (N,) letters, from where their halves begin (N,)."""
        lengths = sizes + 2
        opening = np.cumsum(lengths) - lengths
        ids = np.empty(lengths.sum(), np.uint16)
        ids[opening], ids[opening + lengths - 1] = BOS, EOS
        for k in np.unique(sizes):
            here, place = sizes == k, np.arange(k)
            mirror = np.minimum(place, k - 1 - place)  # 0 1 2 1 0: the middle letter is shared
            text = self.letters[start[here, None] + mirror]  # (rows, k)
            ids[opening[here, None] + 1 + place] = text
        return Rows(ids, lengths, np.ones_like(lengths))


def letter_stream(texts: Iterable[str], half: int) -> tuple[np.ndarray, np.ndarray]:
    """Texts -> their letters without spaces, uint8 (M,), and the places (S,) where a word begins
    and at least `half` letters of the same text follow."""
    pieces, starts, offset = [], [], 0
    for text in texts:
        words = re.findall("[a-z]+", text.lower().replace("'", ""))  # "don't" is one word
        begins = [0, *accumulate(map(len, words))]
        starts.extend(offset + b for b in begins if b + half <= begins[-1])
        pieces.extend(words)
        offset += begins[-1]
    return np.frombuffer("".join(pieces).encode(), np.uint8), np.array(starts, np.int64)


def held_out(halves: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Which first halves (S, half) belong to validation (S,): a `share` of the different ones, told
    by a hash (the xor of a random number for every letter at every place), so that the same letters
    are always on the same side."""
    table = np.random.default_rng([seed, 0]).integers(0, 1 << 62, (halves.shape[1], 26))
    hashes = np.bitwise_xor.reduce(table[np.arange(halves.shape[1]), halves - 97], axis=1)
    return hashes <= max(share * (1 << 62), hashes.min())


def repeats(halves: np.ndarray) -> np.ndarray:
    """How many equal rows of (N, half) come before each (N,)."""
    order = np.lexsort(halves.T)  # stable: equal ones stay in their order
    same = np.r_[False, (halves[order][1:] == halves[order][:-1]).all(1)]
    place = np.arange(len(order))
    first = np.maximum.accumulate(np.where(same[: len(order)], 0, place))
    rank = np.empty_like(place)
    rank[order] = place - first
    return rank
