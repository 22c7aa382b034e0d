"""How far to trust the error bars: python -m analysis.coverage

For every objective and each of its noise schedules, `repeats` evaluations at the default settings
of `evaluate.py`, each of fresh texts and fresh noise: the share of them that lies within two of its
own reported standard errors of the mean of all. 95 % is right; an estimate whose spread is decided
by rare large values, which most evaluations do not see, has less. Once with a network of random
weights, and once with one that was trained for `steps`.

Texts are 2 to 5 letters of a chain, and EOS. The table is printed as Markdown. --json=FILE keeps
each line as it is measured, so that the command, if interrupted, goes on where it stopped.
"""

import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from analysis.compare import table
from checkpoint import OBJECTIVES, build_network, build_objective
from configurator import Config, UserError, load, require, run, save_json
from corpus import Batch
from diffusion import NOISES
from evaluate import EvaluateConfig, ratio
from objective import Objective, generator
from sample import require_writable

LETTERS, BLOCK = 4, 7
SPECIALS = {"pad": 4, "bos": 5, "eos": 6}
VOCAB = 7
SIZE = {"block_size": BLOCK, "n_layer": 1, "n_head": 1, "n_embd": 8, "cond_dim": 4}
OPTIONS: dict[str, list[dict[str, Any]]] = {  # what decides the law of the bound, beside the noise
    "sedd": [{"graph": "absorb"}, {"graph": "uniform"}],
    "bd3": [{"block_length": 4}, {"block_length": 1}],
}
UNTOLD = ({"objective": "mlm"}, {"block_length": 1})  # no network is told a noise level there


@dataclass(frozen=True)
class CoverageConfig:
    """The options of `analysis/coverage.py`."""

    repeats: int = 200  # evaluations of each line
    steps: int = 400  # of training of the second network
    objectives: str = ""  # names with commas between them; empty: all
    json: str = ""  # keep the lines in this file, and measure none that it has
    threads: int = 1  # of torch

    def __post_init__(self):
        for key, least in (("repeats", 2), ("steps", 1), ("threads", 1)):
            require(self, key, getattr(self, key) >= least, f"at least {least}")
        known = all(name in OBJECTIVES for name in chosen(self))
        require(self, "objectives", known, "names of " + ", ".join(OBJECTIVES))


def chosen(cfg: CoverageConfig) -> list[str]:
    return [name.strip() for name in cfg.objectives.split(",") if name.strip()] or [*OBJECTIVES]


def texts(count: int, rng: torch.Generator) -> Batch:
    """Rows BOS, letters, EOS, padding: each letter is the one before plus one, or any."""
    last = torch.randint(LETTERS, (count,), generator=rng)
    letters = [last]
    for _ in range(BLOCK - 3):
        anew = torch.rand(count, generator=rng) < 0.2
        other = torch.randint(LETTERS, (count,), generator=rng)
        letters.append(torch.where(anew, other, (letters[-1] + 1) % LETTERS))
    length = torch.randint(4, BLOCK + 1, (count,), generator=rng)  # BOS and EOS among them
    bos = torch.full((count, 1), SPECIALS["bos"])
    ids = torch.cat([bos, torch.stack(letters, 1), bos], 1)
    place = torch.arange(BLOCK)
    ids = ids.where(place < length[:, None] - 1, torch.tensor(SPECIALS["eos"]))
    ids = ids.where(place < length[:, None], torch.tensor(SPECIALS["pad"]))
    return Batch(ids, (place < 1).expand_as(ids), length)


def cases(cfg: CoverageConfig) -> list[dict[str, Any]]:
    """Fields of Config of every objective that has a bound, with each noise that it takes."""
    found = []
    for name in chosen(cfg):
        for options, noise in itertools.product(OPTIONS.get(name, [{}]), NOISES):
            fields = {"objective": name, **options, "noise": noise}
            try:
                objective = build_objective(Config(**SIZE, **fields), meta())
            except UserError:  # no noise of this objective
                continue
            told = "noise" in (objective.config_fields or ())
            if not told or any(one.items() <= fields.items() for one in UNTOLD):
                del fields["noise"]
            if objective.bounded and fields not in found:
                found.append(fields)
    return found


def meta() -> dict[str, Any]:
    return {"vocab_size": VOCAB, "specials": SPECIALS}


def network(fields: dict[str, Any], steps: int) -> tuple[Objective, Any]:
    """The objective, and a network of random weights, or trained for `steps`."""
    config = Config(**SIZE, **fields)
    torch.manual_seed(1)
    objective = build_objective(config, meta())
    net = build_network(config, objective)
    if not steps:
        for p in net.parameters():
            torch.nn.init.normal_(p, std=0.3)
        return objective, net.eval()
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for step in range(steps):
        rng = generator(1, step)
        total, count, _ = objective.loss(net, objective.corrupt(texts(128, rng), rng))
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return objective, net.eval()


def estimates(objective: Objective, net: Any, repeats: int) -> tuple[Tensor, Tensor]:
    """(repeats,) nats per token, and the standard errors that are reported with them."""
    usual, found = EvaluateConfig(), []
    for k in range(repeats):
        rng, nats, tokens = generator(2, k), [], []
        for _ in range(0, usual.rows, usual.batch_size * 20):
            batch = texts(usual.batch_size * 20, rng)
            nats.append(objective.bound(net, batch, rng, usual.t_samples))
            tokens.append((batch.length - 1).double())
        found.append(ratio(torch.cat(nats), torch.cat(tokens)))
    rates, errors = torch.tensor(found, dtype=torch.float64).T
    return rates, errors


def measured(fields: dict[str, Any], steps: int, repeats: int) -> dict[str, Any]:
    rates, errors = estimates(*network(fields, steps), repeats)
    inside = float(((rates - rates.mean()).abs() <= 2 * errors).double().mean())
    numbers = {"mean": float(rates.mean()), "spread": float(rates.std())}
    return {"fields": fields, "steps": steps, "repeats": repeats, **numbers} | {
        "reported": float(errors.square().mean().sqrt()),
        "share": inside,
    }


def lines(results: list[dict[str, Any]]) -> list[str]:
    """The table, the random network and the trained one side by side."""
    both: dict[str, dict[bool, dict[str, Any]]] = {}
    for one in results:
        name = ", ".join(str(v) for v in one["fields"].values())
        both.setdefault(name, {})[one["steps"] > 0] = one
    head = ["objective, noise", *(2 * ["nats per token", "spread", "reported", "within 2"])]
    rows = []
    for name, pair in both.items():
        cells = [name]
        for one in (pair.get(False), pair.get(True)):
            numbers = (one[key] for key in ("mean", "spread", "reported")) if one else ()
            cells += [f"{x:.4g}" for x in numbers] + [f"{one['share']:.1%}"] if one else 4 * ["-"]
        rows.append(cells)
    return table(head, rows)


def main(argv: list[str]) -> None:
    cfg, _ = load(CoverageConfig, argv)
    require_writable(cfg, "json")
    torch.set_num_threads(cfg.threads)
    path = Path(cfg.json) if cfg.json else None
    done = json.loads(path.read_text()) if path and path.is_file() else []
    wanted = [(fields, steps) for fields in cases(cfg) for steps in (0, cfg.steps)]
    results = []
    for fields, steps in tqdm(wanted, unit="line", disable=None):
        key = {"fields": fields, "steps": steps, "repeats": cfg.repeats}
        one = next((d for d in done if key.items() <= d.items()), None)
        if one is None:
            one = measured(fields, steps, cfg.repeats)
            done.append(one)
            if path:
                save_json(done, path)
        results.append(one)
    print("\n".join(lines(results)))
    outside = sum(not 0.9 <= one["share"] <= 0.98 for one in results)
    chance = 2 * math.sqrt(0.954 * 0.046 / cfg.repeats)
    print(f"\n{outside} of {len(results)} shares are outside 90 to 98 %;", end=" ")
    print(f"a share of {cfg.repeats} evaluations is known to {chance:.1%} (two standard errors)")


if __name__ == "__main__":
    run(main)
