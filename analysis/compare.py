"""Checkpoints of one corpus side by side: evaluate.py --compare=out/a/ckpt.pt,out/b/ckpt.pt

One table: objective, size, steps, the bound with its standard error, the share of samples that are
right, network calls and tokens per second; and under it what each of the likelihoods is.
"""

import dataclasses
from typing import Any

import torch

import checkpoint
from checkpoint import Model
from configurator import PUZZLES, TASKS, UserError, room
from corpus import Corpus
from evaluate import (
    GIVEN_LENGTH,
    TEXTS,
    EvaluateConfig,
    bound,
    fitted,
    plus_minus,
    rows_scored,
    sampled,
    score_of,
    share_of,
    uncropped,
    wilson,
)
from sample import answer_defaults, settings, usual_sampler, with_sampler


def opened(path: str, cfg: EvaluateConfig, device: torch.device) -> tuple[Model, Corpus]:
    """A checkpoint, and the corpus that it was trained on, or --data."""
    model = uncropped(checkpoint.load(path, device, cfg.use_ema))
    corpus = Corpus(cfg.data or f"{model.config.data_dir}/{model.config.dataset}")
    corpus.require_like({**model.meta, "tokenizer": model.tokenizer.spec()})
    return model, corpus


def parameters(model: Model) -> int:
    return sum(p.numel() for p in model.net.parameters())


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of a Markdown table; a | in a cell does not end it."""
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *cells)]


# ---- how good samples are ----------------------------------------------------------------------


def quality(cfg: EvaluateConfig, model: Model, corpus: Corpus) -> dict[str, Any]:
    """Cost and score of samples: the share that is right, and its name; none for a corpus without
    right answers."""
    task = model.meta.get("task")
    if task == "diff":  # evaluate.py alone writes and applies patches
        return {"measure": "none", "score": None, "nfe": None, "tokens_per_second": None}
    usual = room(task).SAMPLES if task in TASKS else TEXTS
    texts = sampled(cfg, model, corpus, cfg.split, usual)
    name, score = score_of(model, texts)
    n, speed = len(texts.found), texts.speed
    limits = None if score is None else wilson(score, n)
    cost = {key: speed[key] for key in ("nfe", "tokens_per_second")}
    return {"measure": name, "score": score, "score_interval": limits, "samples": n, **cost}


# ---- checkpoints side by side ------------------------------------------------------------------


def greedy(cfg: EvaluateConfig, origins: dict[str, str], model: Model) -> EvaluateConfig:
    """`cfg` with the defaults for right answers: temperature 0, in confidence order where there is
    one. Temperature 1 on the uniform graph, where the most probable step changes nothing, and the
    most probable token in noise is no text."""
    if model.meta.get("task") not in ("chat", *PUZZLES):
        return fitted(cfg, origins, model)
    usual = answer_defaults(cfg, origins, model.objective.samplers)
    if "temperature" not in origins and getattr(model.objective, "graph", None) is not None:
        if not model.objective.graph.absorbing:
            usual = dataclasses.replace(usual, temperature=1.0)
    return fitted(usual, origins, model)


def measure(
    cfg: EvaluateConfig, origins: dict[str, str], name: str, model: Model, corpus: Corpus
) -> dict[str, Any]:
    """A row of the table of several checkpoints; flags that only the others read are left out."""
    cfg = greedy(cfg, origins, model)
    unread = usual_sampler(cfg, origins, model)[1]
    cfg = with_sampler(cfg, {k: v for k, v in origins.items() if k not in unread}, model)
    row: dict[str, Any] = {
        "name": name,
        "objective": model.config.objective,
        "parameters": parameters(model),
        "step": model.step,
        "bound": None,
        "settings": settings(cfg, model),
    }
    if model.objective.bounded and cfg.rows:
        row["bound"] = bound(cfg, model, corpus)
    none = {"measure": "none", "score": None, "nfe": None, "tokens_per_second": None}
    samples = cfg.samples is None or cfg.samples > 0
    return {**row, **(quality(cfg, model, corpus) if samples else none)}


def row_of(row: dict[str, Any]) -> list[str]:
    """The cells of a row; a dash for what was not measured."""

    def cell(number: float | None, text: str) -> str:
        return "-" if number is None else text.format(number)

    limit, how = row["bound"], row["settings"]
    nats, bits = "no bound", "-"
    if limit:
        sign = "" if limit["exact"] else "<= "
        nats = sign + plus_minus(limit["nats_per_token"], limit["nats_per_token_error"], 3)
        bits = f"{sign}{limit['bits_per_byte']:.3f}"
    score = "-" if row["score"] is None else share_of(row["score"], row["samples"])
    return [
        *(row["name"], row["objective"], f"{row['parameters']:,}", f"{row['step']:,}"),
        *(nats, bits, score, cell(row["nfe"], "{:.1f}")),
        *(cell(row["tokens_per_second"], "{:,.0f}"), f"{how['sampler']}, {how['temperature']:g}"),
    ]


def rows_table(rows: list[dict[str, Any]]) -> list[str]:
    head = "checkpoint, objective, parameters, steps, nats per token, bits per byte, SCORE, calls, "
    head += "tokens/s, sampler and temperature"
    measured = next((r["measure"] for r in rows if r["score"] is not None), "score")
    return table(head.replace("SCORE", measured).split(", "), [row_of(row) for row in rows])


def notes(rows: list[dict[str, Any]]) -> list[str]:
    """A line for each model on how its likelihood was computed."""
    notes = {}
    for row in rows:
        limit = row["bound"]
        if limit:
            padding = limit["positions"] - limit["tokens"]
            draws = "nothing drawn" if limit["exact"] else f"{limit['t_samples']} noise levels each"
            also = f", {padding:,} places of learnt padding in the sum" if padding > 0 else ""
            notes[row["name"]] = (
                f"{limit['estimator']}; {rows_scored(limit)}, {draws}, epsilon "
                f"{limit['epsilon']:g}; {limit['tokens']:,} tokens, EOS among them{also}"
                + f"; {GIVEN_LENGTH}"
                * limit["given_length"]
            )
        else:
            notes[row["name"]] = "no bound on the likelihood"
    return [f"- {name}: {text}" for name, text in notes.items()]


def same_corpus(paths: list[str], models: list[Model], cfg: EvaluateConfig) -> None:
    """Raise UserError for checkpoints of different corpora, unless --data names one for all."""
    for path, model in zip(paths, models, strict=True):
        other = model.meta.get("files") != models[0].meta.get("files")
        if not cfg.data and (other or not model.meta.get("files")):
            theirs, ours = model.config.dataset, models[0].config.dataset
            raise UserError(
                f"compare: the corpus of {path} ({theirs}) is not that of {paths[0]} ({ours}); "
                "numbers do not compare, unless --data names one corpus for all"
            )


def refuse_useless(cfg: EvaluateConfig, origins: dict[str, str], models: list[Model]) -> None:
    """Raise UserError for a flag of samplers that none of the models has a use for."""
    unread = [usual_sampler(greedy(cfg, origins, model), origins, model)[1] for model in models]
    for key in set.intersection(*map(set, unread)):
        raise UserError(f"{key} ({origins[key]}): none of the samplers has a use for it")


def compare(cfg: EvaluateConfig, origins: dict[str, str], device: torch.device) -> dict[str, Any]:
    """Print the table of the checkpoints in cfg.compare, comma-separated."""
    paths = [path.strip() for path in cfg.compare.split(",") if path.strip()]
    if len(paths) < 2:
        raise UserError(f"compare={cfg.compare}: write two checkpoints or more, commas between")
    pairs = [opened(path, cfg, device) for path in paths]
    same_corpus(paths, [model for model, _ in pairs], cfg)
    refuse_useless(cfg, origins, [model for model, _ in pairs])
    cfg = dataclasses.replace(cfg, split=pairs[0][1].split_named(cfg.split))  # of all, one corpus
    rows = []
    for path, (model, corpus) in zip(paths, pairs, strict=True):
        rows.append(measure(cfg, origins, path, model, corpus))
        if not rows[1:]:
            print(
                f"{corpus.folder}, {cfg.split} split; +- one standard error; shares: Wilson",
                flush=True,
            )
    print("\n".join([*rows_table(rows), "", *notes(rows)]), flush=True)
    return {"rows": rows}
