"""A small grammar of English: all of its sentences up to a depth, and whether words are a sentence.

682,080 sentences, all of them different, have trees of at most 5 levels, the words being the last
one: a language that is known to the last word, so that what a model writes that was trained on a
part of it can be judged exactly (the grammar of the ILM paper, arXiv 2505.05755).
"""

import functools
import random
from typing import Any

RULES: dict[str, tuple[str, ...]] = {
    "S": ("NP VP", "NP Vindirect C S"),
    "NP": ("NProp", "Det N", "Det A N", "NP PP", "NP Poss NP"),
    "PP": ("P NP",),
    "VP": ("Vintr", "Vtr NP", "VP PP"),
    "A": ("big", "small", "happy", "sad"),
    "C": ("that",),
    "Det": ("the", "my", "your"),
    "N": ("man", "telescope", "elephant"),
    "NProp": ("John", "Mary", "Alice"),
    "Vintr": ("sneezed", "laughed"),
    "Vtr": ("chased", "bought"),
    "Vindirect": ("said", "thought"),
    "P": ("with", "under"),
    "Poss": ("`s",),
}
WORDS = sorted({w for rules in RULES.values() for rule in rules for w in rule.split()} - {*RULES})
DEPTH = 5
PERCENT = {"train": 70, "val": 10}  # of the shuffled sentences; the rest is a test set, unused
SEED = 42  # of the shuffle
SAMPLES = 500  # default number of samples of evaluate.py


@functools.lru_cache(None)
def derived(symbol: str, depth: int) -> tuple[bytes, ...]:
    """All that the symbol derives by a tree of at most `depth` levels, symbols and words; each text
    once per derivation, as the numbers of its words in WORDS."""
    if depth == 0:
        return ()
    if symbol not in RULES:
        return (bytes([WORDS.index(symbol)]),)
    sentences: list[bytes] = []
    for rule in RULES[symbol]:
        begun = [b""]
        for part in rule.split():
            begun = [a + b for a in begun for b in derived(part, depth - 1)]
        sentences += begun
    return tuple(sentences)


def splits() -> dict[str, list[bytes]]:
    """Training and validation sentences of depth 5, shuffled; none is in both."""
    sentences = list(derived("S", DEPTH))
    random.Random(SEED).shuffle(sentences)
    parts, start = {}, 0
    for split, percent in PERCENT.items():
        end = start + percent * len(sentences) // 100
        parts[split] = sentences[start:end]
        start = end
    return parts


def is_sentence(words: tuple[str, ...]) -> bool:
    """Does the grammar derive these words, at any depth?"""

    @functools.lru_cache(None)
    def derives(parts: tuple[str, ...], i: int, j: int) -> bool:
        """Do the parts derive words[i:j]? Each of them derives at least one word, so that rules
        that begin with their own symbol end."""
        head, rest = parts[0], parts[1:]
        if j - i < len(parts):
            return False
        if rest:
            cuts = range(i + 1, j - len(rest) + 1)
            return any(derives((head,), i, k) and derives(rest, k, j) for k in cuts)
        if head not in RULES:
            return words[i:j] == (head,)
        return any(derives(tuple(rule.split()), i, j) for rule in RULES[head])

    return derives(("S",), 0, len(words))


def scores(texts: list[list[str]]) -> dict[str, float]:
    """Of N >= 1 texts as words, shares: those that are sentences, and how many of these are
    different from all others; and words per text."""
    good = [tuple(text) for text in texts if is_sentence(tuple(text))]
    return {
        "sentences": len(good) / len(texts),
        "different": len(set(good)) / max(1, len(good)),
        "words": sum(map(len, texts)) / len(texts),
    }


def describe(scores: dict[str, float]) -> str:
    return (
        f"{scores['sentences']:.2%} of the texts are sentences of the grammar, "
        f"{scores['different']:.1%} of these are different; {scores['words']:.1f} words per text"
    )


def scores_of(model: Any, texts: Any) -> dict[str, float]:
    """`scores` of the texts that a model has sampled (evaluate.Texts); one without EOS counts as
    empty."""
    eos, decode = model.meta["specials"]["eos"], model.tokenizer.decode
    ended = (ids[:-1] if ids[-1:] == [eos] else [] for ids in texts.found)
    return scores([[decode([i]) for i in ids] for ids in ended])


def score(model: Any, texts: Any) -> tuple[str, float]:
    """Name of the score, and its value for samples (evaluate.Texts)."""
    return "sentences", scores_of(model, texts)["sentences"]


def evaluate(cfg: Any, model: Any, corpus: Any) -> dict[str, Any]:
    """How many sampled texts are sentences of the grammar; `cfg` is that of evaluate.py."""
    from evaluate import describe_cost, sampled  # preparing a corpus must not import torch
    from sample import settings

    texts = sampled(cfg, model, corpus, cfg.split, SAMPLES)
    scores = scores_of(model, texts)
    print(describe(scores))
    how = settings(cfg, model)
    describe_cost(texts.speed, how)
    scores = {"rows": len(texts.found), **scores, "speed": texts.speed, "settings": how}
    return {"answers": scores}
