"""What a masked model writes into a hole of the wrong length: python -m analysis.holes --ckpt=X

Each line of --texts has a part in brackets, which is taken out. The hole that stays is as long as
that part, or shorter and longer by what --longer says, and is filled by each order of --orders:

    as in the text   1 less the edit distance between filling and part, over the longer of both
    nats             -ln p of each token of the filling where it alone is masked, their mean
    stutter          share of neighbours in the filling that are equal tokens

docs/antibodies.md has what comes out for loops of antibodies.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import checkpoint
from analysis.compare import table
from checkpoint import Model
from configurator import UserError, load, require, run
from diffusion import ORDERS
from objective import SampleOptions
from prepare.files import read_text
from sample import canvas, generate, written_ids

PART = re.compile(r"([^\[\]]*)\[([^\[\]]+)\]([^\[\]]*)")


@dataclass(frozen=True)
class HolesConfig:
    """The options of `analysis/holes.py`."""

    ckpt: str = ""  # a masked model, such as AntiBERTy
    texts: str = "data/antibodies.txt"  # a text a line; what follows # is a remark
    longer: str = "-4,-2,0,2,4"  # lengths of holes beyond that of the part
    orders: str = "confidence,random"  # samplers
    samples: int = 4  # fillings of each hole
    temperature: float = 1.0  # 0 takes the most probable token
    seed: int = 0
    threads: int = 0  # of torch; 0: its own choice

    def __post_init__(self):
        require(self, "ckpt", bool(self.ckpt), "the checkpoint of a masked model")
        require(self, "samples", self.samples >= 1, "at least 1")
        whole = re.fullmatch(r"-?\d+(,-?\d+)*", self.longer)
        require(self, "longer", whole, "whole numbers with commas between them")


class Holed(NamedTuple):
    """A text with a part taken out."""

    before: str
    part: str
    after: str


class Filled(NamedTuple):
    """What is told of a filling."""

    agreement: float
    nats: float
    stutter: float


def read(path: str) -> list[Holed]:
    """Raises UserError for a line without one part in brackets, and for a file without lines."""
    lines = (line.partition("#")[0].strip() for line in read_text(Path(path)).splitlines())
    found = {line: PART.fullmatch(line) for line in lines if line}
    if bad := [line for line, match in found.items() if not match]:
        raise UserError(f"texts={path}: not one part in brackets: {bad[0]:.60}")
    if not found:
        raise UserError(f"texts={path} holds no text")
    return [Holed(*match.groups()) for match in found.values()]


def distance(a: list[int], b: list[int]) -> int:
    """The least number of tokens to insert, leave out or replace, to make a out of b."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(last[j] + 1, row[-1] + 1, last[j - 1] + (x != y)))
    return row[-1]


def stutter(ids: list[int]) -> float:
    """The share of neighbours that are equal; 0 for a single token."""
    return sum(map(int.__eq__, ids, ids[1:])) / max(1, len(ids) - 1)


@torch.no_grad()
def nats(model: Model, ids: Tensor, places: Tensor) -> float:
    """Mean -ln p of the tokens of ids (T,) at places (n,), each masked alone."""
    one_masked = ids.repeat(len(places), 1)  # (n, T)
    rows = torch.arange(len(places))
    one_masked[rows, places] = model.objective.mask_id
    z = model.net.logits(model.net.features(one_masked)[rows, places])  # (n, V)
    z[:, model.objective.mask_id] = -torch.inf
    return float(-z.log_softmax(-1)[rows, ids[places]].mean())


def judged(model: Model, part: str, ids: Tensor, places: Tensor) -> Filled:
    """A whole text ids (T,), of which the tokens at places (n,) are the filling."""
    filling, true = ids[places].tolist(), model.tokenizer.encode(part)
    agreement = 1 - distance(filling, true) / max(len(filling), len(true))
    return Filled(agreement, nats(model, ids, places), stutter(filling))


def fill(model: Model, text: Holed, size: int, cfg: HolesConfig, order: str) -> list[Filled]:
    """Fillings of a hole of `size` tokens."""
    begun = [canvas(model, infill=f"{text.before}[{size}]{text.after}")] * cfg.samples
    options = SampleOptions(sampler=order, temperature=cfg.temperature)
    got = generate(model, begun, options, seed=cfg.seed, quiet=True)
    places = (~begun[0].prompt_mask).nonzero().flatten()
    assert all(len(ids) == size for ids in written_ids(model, got.ids, begun))
    return [judged(model, text.part, row, places) for row in got.ids]


def as_it_was(model: Model, text: Holed) -> Filled:
    """The same of the part itself."""
    whole = canvas(model, infill=text.before + text.part + text.after)
    first = len(model.tokenizer.encode(text.before))
    places = torch.arange(first, first + len(model.tokenizer.encode(text.part)))
    return judged(model, text.part, whole.ids, places)


def mean(found: list[Filled]) -> list[str]:
    """Cells of the table."""
    a, n, s = (sum(column) / len(found) for column in zip(*found, strict=True))
    return [f"{a:.0%}", f"{n:.2f}", f"{s:.1%}"]


def measure(model: Model, texts: list[Holed], cfg: HolesConfig) -> list[list[str]]:
    """Rows of the table, first that of the texts themselves. What is nearest in nats per token to a
    choice of the length is told beside it: the share of texts for which it is the least."""
    rows = [["the text itself", "0", *mean([as_it_was(model, text) for text in texts]), ""]]
    sizes = list(map(int, cfg.longer.split(",")))
    for order in cfg.orders.split(","):
        found = {}  # by length, in each text
        for more in sizes:
            lengths = [len(model.tokenizer.encode(text.part)) + more for text in texts]
            whole = [(t, n) for t, n in zip(texts, lengths, strict=True) if n >= 1]
            found[more] = {text: fill(model, text, n, cfg, order) for text, n in whole}
        least = {
            text: min(sizes, key=lambda more, t=text: mean_nats(found[more].get(t, [])))
            for text in texts
        }
        for more, of in found.items():
            every = [one for fillings in of.values() for one in fillings]
            best = sum(chosen == more for chosen in least.values())
            rows.append([order, f"{more:+d}", *mean(every), f"{best} of {len(texts)}"])
    return rows


def mean_nats(found: list[Filled]) -> float:
    """Infinite for none."""
    return sum(one.nats for one in found) / len(found) if found else torch.inf


def main(argv: list[str]) -> None:
    cfg, _ = load(HolesConfig, argv)
    for order in cfg.orders.split(","):
        require(cfg, "orders", order in ORDERS, "names of " + ", ".join(ORDERS))
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    model = checkpoint.load(cfg.ckpt)
    if model.objective.mask_id is None or model.objective.inserts:
        raise UserError(f"ckpt={cfg.ckpt} is no masked model")
    texts = read(cfg.texts)
    heads = ["order", "longer by", "as in the text", "nats", "stutter", "fewest nats"]
    print("\n".join(table(heads, measure(model, texts, cfg))))


if __name__ == "__main__":
    run(main)
