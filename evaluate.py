"""Evaluate a checkpoint: python evaluate.py --ckpt=out/palindrome/ckpt.pt

The bound on the likelihood of the validation split, in nats per token and bits per byte with their
standard error, of what the model writes: in a corpus of questions, the answers. Then, by corpus:

    palindromes   how many samples are exact ones
    questions     how many sampled answers are the wanted ones, in both splits
    star graphs   exact match and token accuracy of sampled answers; zebra puzzles, countdown
    grammar       how many samples are sentences of it
    patches       how many parse, apply and are right, in both splits, beside what needs no model
    --judge=gpt2  any corpus: generative perplexity of samples, with entropy, settings and reference

--prompt="2+2=" --answer="4"    how likely an answer is, and whether it is the one that is written
--answers=FILE.jsonl            the same for each {"prompt", "answer"}; with --chat, as a chat
--report=FOLDER                 all of it as one page with figures: where does the model fail?
--compare=A,B                   checkpoints of one corpus side by side in a table
"""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

import checkpoint
import grammar
import palindromes
import puzzles
from answers import COPIES, closed, compare, describe_answers, describe_scores, score_answers
from build import autocast, build_objective, pick_device
from checkpoint import Model
from configurator import UserError, load, require, run, save_json
from corpus import Batch, Corpus
from diff_commands import diff_report
from generate import answer_canvas, generate, read_prompt, written_ids
from judge import Judge, describe_judged, judged, ratio, text_bytes, written_text
from objective import choose_sampler, generator
from prepare_sft import records
from reader import shuffled
from sample import (
    SampleConfig,
    SamplerConfig,
    answer_defaults,
    canvases,
    sample_options,
    settings,
    watcher,
)

EVALUATION = 4  # stream of randomness, as in train.py
TEXTS = 100  # samples, unless told otherwise
PALINDROMES = 512
ANSWERS = 500  # of puzzles, and sentences of the grammar


@dataclass(frozen=True)
class EvaluateConfig(SamplerConfig):
    """Everything that `evaluate.py` can be told."""

    data: str = ""  # corpus folder; empty: the one that the checkpoint was trained on
    split: str = "val"  # train | val
    rows: int = 2000  # rows of the split, or all if it has fewer; 0 skips the bound
    t_samples: int = 4  # noise levels per row
    discrete_steps: int = 0  # also the bound for a sampler of so many steps; 0 skips it
    batch_size: int = 100  # rows, answers or texts at a time
    samples: int | None = None  # 0 skips; None: 512 palindromes, 500 puzzles, or 100 texts
    judge: str = ""  # causal language model of transformers: a folder or hub id
    answer: str = ""  # score this text, given --prompt, and nothing else
    answers: str = ""  # score those of a FILE.jsonl, and nothing else
    maskings: int = 128  # of each answer
    json: str = ""  # write all numbers and settings to this file
    report: str = ""  # write a page with figures about the checkpoint to this new folder
    compare: str = ""  # checkpoints with commas between them, side by side, and nothing else

    def __post_init__(self):
        super().__post_init__()
        for key in ("t_samples", "batch_size"):
            require(self, key, getattr(self, key) >= 1, "at least 1")
        for key in ("rows", "discrete_steps"):
            require(self, key, getattr(self, key) >= 0, "at least 0")
        require(self, "samples", self.samples is None or self.samples >= 0, "at least 0")
        require(self, "split", self.split in ("train", "val"), "train or val")
        good = self.maskings > 0 and self.maskings % COPIES == 0
        require(self, "maskings", good, f"a multiple of {COPIES}")
        require(self, "answers", not (self.answers and self.answer), "left out with --answer")
        require(self, "report", not self.report or not self.compare, "left out with --compare")
        require(self, "report", not (self.report and Path(self.report).exists()), "a new folder")
        there = not self.json or Path(self.json).parent.is_dir()
        require(self, "json", there, "a file in a folder that exists")


# ---- the bound ---------------------------------------------------------------------------------


def uncropped(model: Model) -> Model:
    """Where training crops batches to their longest row: all canvases as long as the longest of the
    corpus, so that no row depends on its neighbours, and none is longer than what was trained."""
    longest = max((s.get("longest", 0) for s in model.meta.get("splits", {}).values()), default=0)
    if getattr(model.objective, "padding", "learn") != "crop" or not longest:
        return model
    size = min(model.config.block_size, longest)
    config = dataclasses.replace(model.config, padding="learn", block_size=size)
    return model._replace(config=config, objective=build_objective(config, model.meta))


def batches(cfg: EvaluateConfig, model: Model, corpus: Corpus) -> Iterator[Batch]:
    """The first `rows` of the split's shuffled rows or windows."""
    block = model.config.block_size
    total = corpus.windows(cfg.split, block)
    rows = shuffled(np.arange(min(cfg.rows, total)), total, 0)
    for first in range(0, len(rows), cfg.batch_size):
        yield corpus.batch(cfg.split, rows[first : first + cfg.batch_size], block)


def bound(cfg: EvaluateConfig, model: Model, corpus: Corpus) -> dict[str, Any]:
    """Totals over rows of the split: the bound with its standard error, and what it is per token
    and per byte of the text that the model writes (given text is neither scored nor counted; EOS
    is a token; what padding costs, where it is learnt, is in the sum)."""
    corpus.require_block(model.config.block_size)
    nats, discrete, tokens, size, positions = [], [], [], [], 0
    told = tqdm(batches(cfg, model, corpus), unit="batch", disable=None, leave=False)
    for number, batch in enumerate(told):
        rng, other = generator(EVALUATION, number), generator(EVALUATION, number, 1)
        with autocast(cfg.dtype, model.net.head.weight.device):
            nats.append(model.objective.bound(model.net, batch, rng, cfg.t_samples))
            if cfg.discrete_steps:
                more = (other, cfg.discrete_steps, cfg.t_samples)
                discrete.append(model.objective.discrete_bound(model.net, batch, *more))
        positions += int(model.objective.written(batch).sum())
        texts = written_text(batch)
        tokens += map(len, texts)
        size += [text_bytes(model.tokenizer, ids) for ids in texts]
    each, length = torch.cat(nats), torch.tensor(tokens, dtype=torch.float64)
    found = {"rows": len(each), "t_samples": cfg.t_samples, "nats_per_row": float(each.mean())}
    found["nats_per_token"], found["nats_per_token_error"] = ratio(each, length)
    byte, error = ratio(each, torch.tensor(size, dtype=torch.float64))
    found |= {"bits_per_byte": byte / math.log(2), "bits_per_byte_error": error / math.log(2)}
    if discrete:
        rate, error = ratio(torch.cat(discrete), length)
        found |= {"discrete_nats_per_token": rate, "discrete_nats_per_token_error": error}
    told = {key: getattr(model.objective, key) for key in ("exact", "estimator", "epsilon")}
    return {**found, **told, "tokens": sum(tokens), "bytes": sum(size), "positions": positions}


def describe_bound(found: dict[str, Any], cfg: EvaluateConfig) -> str:
    """The numbers, then what they are: of what, by which estimator, over which positions."""
    token = f"{found['nats_per_token']:.4f} +- {found['nats_per_token_error']:.4f} nats per token"
    byte = f"{found['bits_per_byte']:.4f} +- {found['bits_per_byte_error']:.4f} bits per byte"
    most, levels, source = "at most ", f"{found['t_samples']} noise levels for", "rows and noise"
    if found["exact"]:
        most, levels, source = "", "no noise, the whole sum for", "the rows, nothing else is drawn"
    padding = found["positions"] - found["tokens"]
    also = f", and {padding:,} of learnt padding, whose cost is in the sum" if padding > 0 else ""
    text = (
        f"{cfg.split}: {most}{token}, {byte}, {found['nats_per_row']:.3f} nats per row\n"
        f"  ({found['estimator']}, {levels} each of {found['rows']} rows, epsilon "
        f"{found['epsilon']:g}; {found['tokens']:,} tokens, EOS among them; {found['bytes']:,} "
        f"bytes of decoded text; scored: what the model writes{also}, and nothing given; "
        f"+- one standard error, of {source})"
    )
    if cfg.discrete_steps:
        rate, error = (found[f"discrete_nats_per_token{k}"] for k in ("", "_error"))
        text += f"\n  in {cfg.discrete_steps} steps: {rate:.4f} +- {error:.4f} nats per token"
    return text


def clip_report(cfg: EvaluateConfig, model: Model, corpus: Corpus) -> dict[str, float]:
    """Block diffusion: the range of noise levels in which the loss has the least spread."""
    some = (batch for batch, _ in zip(batches(cfg, model, corpus), range(100), strict=False))
    ranges = model.objective.clip_search(model.net, some, generator(EVALUATION, 0, 2))
    spread, low, high = ranges[0]
    whole = next(s for s, a, b in ranges if b - a > 0.95)
    print(
        f"  least spread of a block's loss: --t_low={low:g} --t_high={high:g}, "
        f"variance {spread:.3f} instead of {whole:.3f}"
    )
    return {"t_low": low, "t_high": high, "variance": spread, "variance_of_all": whole}


# ---- answers and samples -----------------------------------------------------------------------


def answers_report(cfg: EvaluateConfig, model: Model) -> dict[str, Any]:
    """How likely the answers are that were asked about, one line for each."""
    pairs = [(read_prompt(cfg.prompt), read_prompt(cfg.answer))]
    if cfg.answers:
        pairs = [(row.get("prompt"), row.get("answer")) for row in records(Path(cfg.answers))]
    if not pairs or not all(isinstance(text, str) for pair in pairs for text in pair):
        raise UserError(f"answers={cfg.answers}: every line needs a prompt and an answer")
    each = score_answers(cfg, model, pairs, cfg.maskings, cfg.batch_size)
    tokens, nats = (sum(one[key] for one in each) for key in ("tokens", "nats"))
    error = math.sqrt(sum(one["nats_error"] ** 2 for one in each))
    found = {"each": each, "nats": nats, "nats_error": error, "tokens": tokens}
    print(describe_scores(found, cfg.maskings, model.objective))
    return found


def palindrome_reports(cfg: EvaluateConfig, model: Model, seen: set[str]) -> dict[str, Any]:
    """Report on samples in random order, in confidence order, and mirrored by construction; or, of
    the one sampler that was asked for."""
    law = "auto" if model.objective.mask_id is None else "first_hitting"
    runs = [("random order", law, False), ("mirrored", law, True)]
    if model.objective.mask_id is not None:
        runs.insert(1, ("confidence order", "confidence", False))
    if cfg.sampler != "auto":
        runs = [("samples", cfg.sampler, False), ("mirrored", cfg.sampler, True)]
    if model.objective.grows:  # no place is the mirror image of another before the text is whole
        runs = [("samples", cfg.sampler, False)]
    reports = {}
    for name, sampler, mirrored in runs:
        told = {"palindrome": mirrored, "max_length": cfg.max_length, "show": cfg.show}
        told = SampleConfig(num_samples=count(cfg, PALINDROMES), **told)
        options = sample_options(dataclasses.replace(cfg, sampler=sampler), model)
        sampler = choose_sampler(model.objective, options).sampler
        if cfg.show:
            print(f"\n{name}, as it is written:")
        begun, watch = canvases(told, model), watcher(told, model, [])
        made = generate(model, begun, options, cfg.seed, 128, watch, cfg.dtype)
        found = palindromes.report(made.texts, seen)
        print(f"{name} ({sampler}): {palindromes.describe(found)}", flush=True)
        reports[name] = {"sampler": sampler, **found}
    return reports


def count(cfg: EvaluateConfig, usual: int) -> int:
    return usual if cfg.samples is None else cfg.samples


class Texts(NamedTuple):
    """Samples and as many texts of the corpus, as ids, and what the samples took."""

    prompts: list[list[int]]  # what the rows of the corpus are given
    found: list[list[int]]
    wanted: list[list[int]]
    speed: dict[str, float]


def sampled(cfg: EvaluateConfig, model: Model, corpus: Corpus, split: str, usual: int) -> Texts:
    """Texts from nothing but --prompt; for a corpus of questions or of stages of a cascade, what
    is written after what the rows of the split are given."""
    block, total = model.config.block_size, corpus.windows(split, model.config.block_size)
    rows = shuffled(np.arange(min(count(cfg, usual), total)), total, 0)
    batch = corpus.batch(split, rows, block)
    asked = SampleConfig(
        num_samples=count(cfg, usual), prompt=cfg.prompt, max_length=cfg.max_length, show=cfg.show
    )
    prompts = [i[given].tolist() for i, given in zip(batch.ids, batch.given, strict=True)]
    if cfg.chat or model.meta.get("task") in ("stage", *puzzles.TASKS):
        most = cfg.max_length or room(model)
        begun = [answer_canvas(model, p, min(most, block - len(p))) for p in prompts]
    else:
        begun = canvases(asked, model)
    how, watch = sample_options(cfg, model), watcher(asked, model, [])
    made = generate(model, begun, how, cfg.seed, cfg.batch_size, watch, cfg.dtype)
    found = closed(model, written_ids(model, made.ids, begun))
    rate = sum(map(len, found)) / made.seconds
    speed = {"seconds": made.seconds, "tokens_per_second": rate, "calls": made.rows / len(begun)}
    return Texts(prompts, found, written_text(batch), speed)


def room(model: Model) -> int:
    """Places of an answer: those of the longest one where a canvas is no more than room to grow;
    else 0, the rest of the block, as in training."""
    return model.meta.get("longest_answer", 0) if model.objective.grows else 0


def puzzle_report(cfg: EvaluateConfig, model: Model, corpus: Corpus) -> dict[str, Any]:
    """How right the sampled answers to puzzles are; or, of the grammar, how many sampled texts are
    sentences of it."""
    task, eos = model.meta["task"], model.meta["specials"]["eos"]
    texts = sampled(cfg, model, corpus, cfg.split, ANSWERS)
    if task == "grammar":
        ended = (ids[:-1] if ids[-1:] == [eos] else [] for ids in texts.found)
        found = grammar.scores([[model.tokenizer.decode([i]) for i in ids] for ids in ended])
        print(grammar.describe(found))
    else:
        answers = [*map(puzzles.Pair, texts.prompts, texts.found, texts.wanted)]
        found = puzzles.scores(task, model.tokenizer, answers)
        print(puzzles.describe(found, cfg.split, len(answers)))
    how = settings(cfg, model)
    describe_cost(texts.speed, how)
    return {"rows": len(texts.found), **found, "speed": texts.speed, "settings": how}


def describe_cost(speed: dict[str, float], told: dict[str, Any] | None = None) -> None:
    """What samples took, and, if told, how they were made."""
    rate, calls = speed["tokens_per_second"], speed["calls"]
    print(f"  {rate:,.0f} tokens/s written, up to EOS; {calls:.1f} network calls per sample")
    if told:
        print("  " + " ".join(f"{k}={v}" for k, v in told.items()), flush=True)


def sample_report(cfg: EvaluateConfig, model: Model, corpus: Corpus, judge: Judge | None) -> dict:
    """What samples are worth, beside texts of the corpus, and how they were made."""
    found: dict[str, Any] = {"settings": settings(cfg, model)}
    for split in ("train", "val") if cfg.chat else (cfg.split,):
        texts = sampled(cfg, model, corpus, split, TEXTS)
        told = found[split] = {"speed": texts.speed}
        if cfg.chat:
            same = compare(texts.found, texts.wanted, model.meta["specials"]["eos"])
            told["answers"] = same._asdict()
            print(describe_answers(same, split))
        for name, ids in (("samples", texts.found), ("corpus", texts.wanted)):
            told[name] = judged(ids, model.tokenizer, judge)
            if judge or not cfg.chat:
                print(describe_judged(told[name], f"  {name}", judge))
        describe_cost(texts.speed)
    print("  " + " ".join(f"{k}={v}" for k, v in found["settings"].items()), flush=True)
    return found


# ---- the command -------------------------------------------------------------------------------


def fitted(cfg: EvaluateConfig, origins: dict[str, str], model: Model) -> EvaluateConfig:
    """The settings, where the corpus decides those that were not given."""
    if model.meta.get("task") in ("chat", "diff"):
        cfg = answer_defaults(cfg, origins, model.objective.samplers)
    if model.meta.get("task") == "chat":
        cfg = dataclasses.replace(cfg, chat=True)
    elif cfg.chat and not (cfg.answer or cfg.answers):
        raise UserError("chat: the checkpoint was not trained on questions; name an --answer")
    return cfg


def corpus_report(cfg: EvaluateConfig, model: Model, asked: bool, judge: Judge | None) -> dict:
    """The bound, then the samples."""
    corpus = Corpus(cfg.data or f"{model.config.data_dir}/{model.config.dataset}")
    corpus.require_like({**model.meta, "tokenizer": model.tokenizer.spec()})
    found, task = {}, model.meta.get("task")
    if cfg.rows and not model.objective.bounded:
        print(f"objective={model.config.objective}: no bound on the likelihood, so none is told")
    elif cfg.rows:
        found["bound"] = bound(cfg, model, corpus)
        print(describe_bound(found["bound"], cfg), flush=True)
        if hasattr(model.objective, "clip_search") and model.objective.length != 1:
            found["clip"] = clip_report(cfg, model, corpus)
    if task == "palindrome" and count(cfg, PALINDROMES):
        found["palindromes"] = palindrome_reports(cfg, model, set(corpus.texts("train")))
    if task == "diff" and count(cfg, TEXTS):
        found["patches"] = diff_report(cfg, model, corpus, count(cfg, TEXTS))
    own = ("palindrome", "diff", "grammar", *puzzles.TASKS)  # tasks with a report of their own
    if task in own[2:] and count(cfg, ANSWERS):
        found["answers"] = puzzle_report(cfg, model, corpus)
    if count(cfg, TEXTS) and (task == "chat" or judge or (asked and task not in own)):
        found["samples"] = sample_report(cfg, model, corpus, judge)
    return found


def main(argv: list[str]) -> None:
    cfg, origins = load(EvaluateConfig, argv)
    device = pick_device(cfg.device)
    if cfg.report or cfg.compare:
        from compare import compare as side_by_side  # these build on this file
        from report import write

        make = write if cfg.report else side_by_side
        found = make(cfg, origins, device)
        if cfg.json:
            save_json({"config": dataclasses.asdict(cfg), **found}, Path(cfg.json))
        return
    model = uncropped(checkpoint.load(cfg.ckpt, device, cfg.use_ema))
    cfg = fitted(cfg, origins, model)
    if cfg.discrete_steps and not hasattr(model.objective, "discrete_bound"):
        raise UserError(f"discrete_steps: objective={model.config.objective} has no such bound")
    if cfg.answer or cfg.answers:
        found = {"likelihood": answers_report(cfg, model)}
    else:
        judge = Judge(cfg.judge, device, cfg.dtype) if cfg.judge else None
        found = corpus_report(cfg, model, "samples" in origins, judge)
    if cfg.json:
        about = {"objective": model.config.objective, "step": model.step}
        told = {"config": dataclasses.asdict(cfg), "checkpoint": about, **found}
        save_json(told, Path(cfg.json))


if __name__ == "__main__":
    run(main)
