"""tasks/grammar.py against enumeration, and its corpus and its share of sentences."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from configurator import UserError
from corpus import Corpus
from tasks import grammar, stars
from tasks.grammar import DEPTH, RULES, WORDS, derived, is_sentence, scores, splits

KINDS = [k for k, rules in RULES.items() if all(r not in RULES and " " not in r for r in rules)]


def words(sentence: bytes) -> tuple[str, ...]:
    return tuple(WORDS[i] for i in sentence)


def naive(symbol: str, depth: int) -> int:
    """How many derivations, counted by the rules one by one."""
    if depth == 0:
        return 0
    if symbol not in RULES:
        return 1
    total = 0
    for rule in RULES[symbol]:
        ways = 1
        for part in rule.split():
            ways *= naive(part, depth - 1)
        total += ways
    return total


def test_sentences_by_depth():
    """Known numbers, and each sentence has one derivation only."""
    for depth, count in ((3, 0), (4, 96), (5, 682_080)):
        assert len(derived("S", depth)) == naive("S", depth) == count
    sentences = derived("S", DEPTH)
    assert len(set(sentences)) == len(sentences) and max(map(len, sentences)) == 13
    assert set(derived("S", 4)) < set(sentences)
    # "with" and "under" need one level more
    assert {WORDS[i] for i in set(b"".join(sentences))} == set(WORDS) - {"with", "under"}


def of_length(n: int) -> dict[str, set[tuple[str, ...]]]:
    """All strings of exactly 1..n kinds of words that each symbol derives, by growing sets until
    nothing is added: no recursion, no spans."""
    got: dict[str, set[tuple[str, ...]]] = {k: set() for k in RULES}
    got |= {k: {(k,)} for k in KINDS}
    while True:
        before = sum(map(len, got.values()))
        for symbol in set(RULES) - set(KINDS):
            for rule in RULES[symbol]:
                for parts in itertools.product(*(sorted(got[p]) for p in rule.split())):
                    text = tuple(itertools.chain(*parts))
                    if len(text) <= n:
                        got[symbol].add(text)
        if sum(map(len, got.values())) == before:
            return got


def test_membership_of_all_short_strings():
    """Every string of up to five kinds of words is a sentence if and only if it is enumerated."""
    known = of_length(5)["S"]
    assert {len(s) for s in known} == {2, 3, 4, 5}
    example = {k: RULES[k][0] for k in KINDS}
    for n in range(5):
        for kinds in itertools.product(KINDS, repeat=n):
            assert is_sentence(tuple(example[k] for k in kinds)) == (kinds in known), kinds
    assert all(is_sentence(tuple(example[k] for k in kinds)) for kinds in known)


def test_membership_of_the_language():
    """Its own sentences belong to it, deeper ones too; nonsense and kinds of words do not."""
    assert all(is_sentence(words(s)) for s in derived("S", DEPTH)[::1500])
    deep = "my small telescope `s the man thought that John said that Mary laughed with the man"
    assert is_sentence(tuple(deep.split()))
    for text in ("", "John", "laughed John", "the the man laughed", "NProp Vintr", "John laughs",
                 "John chased", "a man laughed", "John said that laughed"):  # fmt: skip
        assert not is_sentence(tuple(text.split())), text


def test_splits():
    parts = splits()
    assert {k: len(v) for k, v in parts.items()} == {"train": 477_456, "val": 68_208}
    assert not set(parts["train"]) & set(parts["val"])
    lengths = [sum(map(len, part)) / len(part) for part in parts.values()]
    assert abs(lengths[0] - lengths[1]) < 0.02  # shuffled
    assert parts == splits()


def test_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    few = {"train": list(derived("S", 4)[:60]), "val": list(derived("S", 4)[60:70])}
    monkeypatch.setattr(stars, "sentences", lambda: few)
    stars.main(["--task=grammar", f"--data_dir={tmp_path}"])
    corpus = Corpus(tmp_path / "grammar", verify=True)
    assert list(corpus.texts("val")) == [" ".join(words(s)) for s in few["val"]]
    batch = corpus.batch("val", stars.np.arange(10), 15)
    assert batch.prompt_mask.sum(1).tolist() == [1] * 10
    assert set(batch.ids[:, 0].tolist()) == {corpus.specials["bos"]}
    assert corpus.meta["task"] == "grammar" and corpus.vocab_size == len(WORDS) + 3
    with pytest.raises(UserError, match="exists already"):
        stars.main(["--task=grammar", f"--data_dir={tmp_path}"])


def test_scores():
    texts = [t.split() for t in ("John laughed", "John laughed", "Mary sneezed", "John", "")]
    got = scores(texts)
    assert got["sentences"] == 0.6 and got["different"] == pytest.approx(2 / 3)
    assert got["words"] == 7 / 5
    assert "60.00% of the texts are sentences" in grammar.describe(got)
    assert scores([[]])["different"] == 0


def test_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    """A model that was hardly trained: what it writes is counted, and almost nothing is right."""
    import evaluate
    import train

    few = {"train": list(derived("S", 4)), "val": list(derived("S", 4)[:10])}
    monkeypatch.setattr(stars, "sentences", lambda: few)
    monkeypatch.setattr(train, "gemm_peak", lambda *_: 1e12)
    stars.main(["--task=grammar", f"--data_dir={tmp_path}"])
    flags = {"data_dir": tmp_path, "dataset": "grammar", "out_dir": tmp_path / "out",
             "block_size": 15, "n_layer": 1, "n_head": 2, "n_embd": 16, "time_input": False,
             "max_iters": 2, "objective": "masked", "device": "cpu", "eval_iters": 1}  # fmt: skip
    train.main([f"--{k}={v}" for k, v in flags.items()])
    where = f"--ckpt={tmp_path / 'out' / 'ckpt.pt'}"
    evaluate.main([where, "--samples=20", "--rows=10", f"--json={tmp_path / 'e.json'}"])
    got = json.loads((tmp_path / "e.json").read_text())
    assert got["answers"]["rows"] == 20 and got["answers"]["sentences"] <= 0.5
    assert "sentences of the grammar" in capsys.readouterr().out and got["bound"]["rows"] == 10
