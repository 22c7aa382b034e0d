"""analysis/holes.py: its three numbers by closed forms, with a network that predicts the same
wherever it is asked."""

import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import checkpoint
from analysis import holes
from checkpoint import build_objective
from configurator import Config, UserError
from tokenizer import Symbols

LETTERS = "abcd"
TEXT = holes.Holed("ab", "ccd", "ba")


class Fixed(torch.nn.Module):
    """Predicts the same everywhere: c with probability 1/2, the other letters with 1/6, no other
    token; counts the tokens that are MASK in each call."""

    causal, time = False, None

    def __init__(self, rows: int, mask: int, prob: dict[int, float]):
        super().__init__()
        p = torch.zeros(rows)
        for i, x in prob.items():
            p[i] = x
        self.head = SimpleNamespace(weight=torch.eye(rows), bias=torch.zeros(rows))
        self.z, self.mask, self.masked = torch.nn.Parameter(p.log().clamp_min(-1e4)), mask, []

    def features(self, ids: Any, *_: Any, **__: Any) -> Any:
        self.masked += (ids == self.mask).sum(1).tolist()
        return self.z.expand(*ids.shape, -1)

    def logits(self, h: Any) -> Any:
        return h


@pytest.fixture
def model() -> checkpoint.Model:
    tokenizer = Symbols(list(LETTERS))
    meta = {"vocab_size": tokenizer.vocab_size, "specials": tokenizer.specials}
    cfg = Config(objective="masked", time_input=False, block_size=16)
    objective = build_objective(cfg, meta)
    a, b, c, d = tokenizer.encode(LETTERS)
    prob = {a: 1 / 6, b: 1 / 6, c: 1 / 2, d: 1 / 6}
    net = Fixed(objective.network_kwargs["vocab_size"], objective.mask_id, prob)
    return checkpoint.Model(net, objective, tokenizer, cfg, meta, 0)


@pytest.mark.parametrize(
    "a, b, want",
    [
        ("", "abc", 3),
        ("abc", "abc", 0),
        ("abc", "axc", 1),
        ("kitten", "sitting", 3),
        ("ab", "ba", 2),
    ],
)
def test_distance(a: str, b: str, want: int):
    assert holes.distance([*map(ord, a)], [*map(ord, b)]) == want
    assert holes.distance([*map(ord, b)], [*map(ord, a)]) == want


@pytest.mark.parametrize("ids, want", [([1], 0), ([1, 1], 1), ([1, 1, 2, 2, 2], 0.75), ([1, 2], 0)])
def test_stutter(ids: list[int], want: float):
    assert holes.stutter(ids) == want


def test_the_text_itself(model: checkpoint.Model):
    """Nothing is masked but one token at a time, and only within the part."""
    got = holes.as_it_was(model, TEXT)
    assert got.agreement == 1 and got.stutter == 0.5
    assert abs(got.nats - (2 * math.log(2) + math.log(6)) / 3) < 1e-6
    assert model.net.masked == [1, 1, 1]


@pytest.mark.parametrize("size", [1, 3, 6])
def test_greedy_fillings(model: checkpoint.Model, size: int):
    """All c: 2 of 3 are right, and those of another length cost what is missing or too much."""
    cfg = holes.HolesConfig(ckpt="x", samples=2, temperature=0)
    for got in holes.fill(model, TEXT, size, cfg, "confidence"):
        assert got.agreement == pytest.approx({1: 1 / 3, 3: 2 / 3, 6: 1 / 3}[size])
        assert got.stutter == (size > 1) and abs(got.nats - math.log(2)) < 1e-6


def test_draws_have_their_law(model: checkpoint.Model):
    """Of independent tokens: a stutter of 1/4 + 3/36, and so many nats as the entropy."""
    cfg = holes.HolesConfig(ckpt="x", samples=300)
    got = holes.fill(model, TEXT, 8, cfg, "random")
    stutter, nats = (sum(x) / len(got) for x in list(zip(*got, strict=True))[:0:-1])
    assert abs(stutter - 1 / 3) < 0.04
    assert abs(nats - (math.log(2) + math.log(6)) / 2) < 0.04


def test_holes_that_would_be_empty_are_left_out(model: checkpoint.Model):
    cfg = holes.HolesConfig(ckpt="x", longer="-3,-2,0", orders="random", samples=3)
    texts = [TEXT, holes.Holed("", "abcd", "")]
    first, *rows = holes.measure(model, texts, cfg)
    assert first[0] == "the text itself" and [row[1] for row in rows] == ["-3", "-2", "+0"]
    assert sum(int(row[-1].split()[0]) for row in rows) == 2


@pytest.mark.parametrize("content, words", [("abc\n", "not one part"), ("# a\n\n", "no text")])
def test_bad_texts(tmp_path: Path, content: str, words: str):
    (tmp_path / "t.txt").write_text(content)
    with pytest.raises(UserError, match=words):
        holes.read(str(tmp_path / "t.txt"))


def test_the_antibodies_are_read():
    """Ten chains of twenty letters, each loop between C and W."""
    texts = holes.read(str(Path(holes.__file__).parents[1] / "data/antibodies.txt"))
    assert len(texts) == len(set(texts)) == 10
    for before, part, after in texts:
        assert before.endswith("C") and re.match(r"WG[QA]G", after) and 6 <= len(part) <= 16
        assert set(before + part + after) <= set("ACDEFGHIKLMNPQRSTVWY")


def test_command(tmp_path: Path, run_cli: Any, assert_refused: Any):
    assert_refused(run_cli("analysis.holes"), "ckpt")
    assert_refused(run_cli("analysis.holes", "--ckpt=x", "--orders=best"), "orders")
    assert_refused(run_cli("analysis.holes", f"--ckpt={tmp_path / 'no.pt'}"), "no checkpoint")
