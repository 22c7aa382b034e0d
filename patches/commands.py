"""What sample.py and evaluate.py do with a model of patches.

    python sample.py --ckpt=CKPT --file=f.py --message="rename x to y"            # prints the patch
    python sample.py --ckpt=CKPT --file=f.py --message="rename x to y" --write    # and applies it
    python evaluate.py --ckpt=CKPT                              # how many patches parse, apply, fit

A patch changes the named file and no other one, in those lines that the model was shown.
"""

import dataclasses
from itertools import islice
from pathlib import Path
from typing import Any, Callable, Iterator, NamedTuple

import numpy as np

from checkpoint import Model
from configurator import UserError
from corpus import Corpus, shuffled
from evaluate import TEXTS, EvaluateConfig, closed, count
from objective import SampleOptions
from patches.patch import (
    Applied,
    Refused,
    Seen,
    apply_patch,
    kept_ends,
    read_file,
    renumber,
    require_writable,
    write_file,
)
from patches.rows import (
    HUNKS,
    PatchPrompt,
    Sample,
    judge_patch,
    nearest_patch,
    prompt_ids,
    rates,
    split_sample,
)
from sample import (
    Prompt,
    SampleConfig,
    SamplerConfig,
    answer_canvas,
    generate,
    sample_options,
    settings,
    watcher,
    written_ids,
)

KNOWN = 2000  # training patches among which the nearest one is looked for

# ---- writing patches ---------------------------------------------------------------------------


class Written(NamedTuple):
    """Patches of a model, and the speed of sampling."""

    texts: list[str]  # as they were written, marker included
    ended: list[bool]  # by the model, not by the end of its room
    speed: dict[str, float]


def patch_options(cfg: SamplerConfig, model: Model) -> SampleOptions:
    """The options of the sampler: a patch ends with EOS, or where nothing more is inserted."""
    stop = None if model.objective.inserts else model.meta["specials"].get("eos")
    return dataclasses.replace(sample_options(cfg, model), stop=stop)


def patch_canvas(cfg: SamplerConfig, model: Model, ids: list[int]) -> Prompt:
    """The ids of a prompt with room for a patch."""
    block, needed = model.config.block_size, max(1, cfg.max_length)
    if len(ids) + needed > block:
        raise UserError(
            f"{len(ids)} tokens of file and message and {needed} of patch do not fit the block of "
            f"{block}; show a part of the file: --lines=1:20"
        )
    return answer_canvas(model, ids, cfg.max_length)


def write_patches(
    cfg: SamplerConfig, model: Model, prompts: list[list[int]], size: int, watch: Callable
) -> Written:
    """A patch for each prompt, given as ids; `size` of them at a time."""
    begun = [patch_canvas(cfg, model, ids) for ids in prompts]
    how = (patch_options(cfg, model), cfg.seed, size, watch, cfg.dtype)
    made = generate(model, begun, *how, quiet=cfg.show)
    eos, answers = (
        model.meta["specials"].get("eos"),
        closed(model, written_ids(model, made.ids, begun)),
    )
    tokens = sum(map(len, answers)) / made.seconds
    speed = {"seconds": made.seconds, "tokens_per_second": tokens, "nfe": made.rows / len(begun)}
    return Written([*map(model.tokenizer.decode, answers)], [eos in ids for ids in answers], speed)


# ---- a patch of a file -------------------------------------------------------------------------


class Excerpt(NamedTuple):
    """The part of a file that the model sees, in whole lines."""

    text: str | None  # None: there is no such file yet
    above: int  # lines that it is not shown
    below: int


def excerpt(whole: str | None, lines: str) -> Excerpt:
    """The lines FIRST:LAST, counted from 1; all of them without such a range."""
    if not lines:
        return Excerpt(whole, 0, 0)
    first, last = map(int, lines.split(":"))
    every = kept_ends(whole or "")
    if last > len(every):
        raise UserError(f"lines={lines}: the file has {len(every)} lines")
    return Excerpt("".join(every[first - 1 : last]), first - 1, len(every) - last)


def applied(whole: str | None, shown: Excerpt, patch: str) -> Applied:
    """The result of applying a patch of an excerpt to the whole file; a patch that changes lines
    outside of the excerpt does not fit."""
    before = whole or ""
    result = apply_patch(before, patch, lenient=True)
    a, b = kept_ends(before), kept_ends(result.text)
    rest = len(a) - shown.below, len(b) - shown.below
    kept = a[: shown.above] == b[: shown.above] and a[rest[0] :] == b[rest[1] :]
    if not kept or rest[1] < shown.above:
        return Applied("no_match", before, "it changes lines that the model was not shown")
    return result


def file_prompt(cfg: SampleConfig, model: Model, shown: Excerpt) -> list[int]:
    """The prompt as ids."""
    if not cfg.message.strip():
        raise UserError("message: say what the patch is to do")
    prompt = PatchPrompt(Path(cfg.file).name, shown.text, cfg.message.strip())
    return prompt_ids(model.tokenizer, prompt)


def patch_file(cfg: SampleConfig, model: Model) -> None:
    """Print cfg.num_samples patches of a file and whether they apply; with --write apply it."""
    if model.meta.get("task", "diff") != "diff":
        raise UserError("file: the checkpoint was not trained on patches")
    if cfg.write and cfg.num_samples != 1:
        raise UserError(f"write: one patch can be applied, not num_samples={cfg.num_samples}")
    try:
        seen = read_file(cfg.file)
        if cfg.write:  # before any time is spent
            require_writable(cfg.file, seen)
        shown = excerpt(seen.text, cfg.lines)
        prompts = [file_prompt(cfg, model, shown)] * cfg.num_samples
        made = write_patches(cfg, model, prompts, cfg.batch_size, watcher(cfg, model, []))
        for text, ended in zip(made.texts, made.ended, strict=True):
            patch = renumber(text.removeprefix(HUNKS), shown.above)
            result = applied(seen.text, shown, patch)
            why = f" ({result.why})" if result.why else ""
            print(patch, end="" if patch.endswith("\n") else "\n")
            print(f"{cfg.file}: {result.state}{why}{'' if ended else '; not complete'}", flush=True)
        if cfg.write:
            write_result(cfg, seen, result, ended)
    except Refused as e:
        raise UserError(str(e)) from e


def write_result(cfg: SampleConfig, seen: Seen, result: Applied, ended: bool) -> None:
    if result.state not in ("ok", "ok_fuzzy"):
        raise UserError(f"{cfg.file} is not written: the patch does not apply ({result.state})")
    if not ended:
        raise UserError(f"{cfg.file} is not written: the patch has no end; try --max_length=0")
    write_file(cfg.file, result.text, seen)
    print(f"wrote {cfg.file}")


# ---- how good patches are ----------------------------------------------------------------------


def samples(corpus: Corpus, split: str, block: int) -> Iterator[Sample]:
    """The samples of a split in a shuffled order of its rows, packed ones one by one. Parts of
    samples that were cut are left out."""
    eos, total = corpus.specials["eos"], corpus.rows(split)
    for row in shuffled(np.arange(total), total, 0):
        batch = corpus.batch(split, np.array([row]), block)
        ids = batch.ids[0, : int(batch.length)].tolist()
        ends = [i + 1 for i, token in enumerate(ids) if token == eos]
        for first, last in zip([0, *ends], ends, strict=False):
            try:
                sample = split_sample(corpus.tokenizer.decode(ids[first:last]))
            except Refused:
                continue
            if apply_patch(sample.prompt.before or "", sample.hunks).state == "ok":
                yield sample


def baselines(samples: list[Sample], train: list[Sample]) -> dict[str, list[str]]:
    """Patches without a model: that of the commit, an empty one, and that of the most similar
    prompt among the samples `train`, other than the sample itself."""
    others = ([one for one in train if one != sample] for sample in samples)
    pairs = zip(samples, others, strict=True)
    return {
        "gold": [sample.hunks for sample in samples],
        "empty": [""] * len(samples),
        "nearest": [nearest_patch(sample.prompt, rest) if rest else "" for sample, rest in pairs],
    }


def evaluate(cfg: EvaluateConfig, model: Model, corpus: Corpus) -> dict[str, Any]:
    """Patches for some samples of each split, with their scores and those of `baselines`."""
    limit = count(cfg, TEXTS)
    block = model.config.block_size
    train = list(islice(samples(corpus, "train", block), KNOWN))
    report: dict[str, Any] = {"settings": settings(cfg, model), "known": len(train)}
    for split in ("train", "val"):
        targets = list(islice(samples(corpus, split, block), limit))
        if not targets:
            continue
        prompts = [prompt_ids(model.tokenizer, sample.prompt) for sample in targets]
        watch = watcher(SampleConfig(show=cfg.show), model, [])
        made = write_patches(cfg, model, prompts, cfg.batch_size, watch)
        table = {
            name: rates(
                judge_patch(s.prompt, s.hunks, p) for s, p in zip(targets, texts, strict=True)
            )
            for name, texts in {"model": made.texts, **baselines(targets, train)}.items()
        }
        table["model"]["ended"] = sum(made.ended) / len(targets)
        report[split] = {**table, "speed": made.speed}
        print(describe_patches(table, split), flush=True)
    print("  " + " ".join(f"{k}={v}" for k, v in report["settings"].items()), flush=True)
    return {"patches": report}


COLUMNS = ("parse", "apply", "apply_lenient", "exact", "gain", "python")


def describe_patches(table: dict[str, dict[str, float]], split: str) -> str:
    """A line for the model and for each baseline."""
    rates = table["model"]
    lines = [f"{split}: {rates['rows']} patches, {rates['ended']:.0%} of the model's complete"]
    lines.append(" " * 9 + "".join(f"{name:>14}" for name in COLUMNS))
    for name, row in table.items():
        shares = {k: f"{row[k]:.1%}" for k in COLUMNS} | {"gain": f"{row['gain']:+.3f}"}
        if not row["python_rows"]:
            shares["python"] = "-"
        lines.append(f"  {name:<7}" + "".join(f"{shares[k]:>14}" for k in COLUMNS))
    return "\n".join(lines)
