"""Any checkpoint in EleutherAI's lm-eval harness.

    python -m analysis.harness --ckpt=CKPT --tasks=arc_easy

loglikelihood(model, [(prompt, answer), ...]) and generate_texts(model, [prompt, ...]) are plain
functions; `adapter` hands them to the harness. What the nats of an answer are:

    ar, xlnet   log p(answer | prompt) itself, from left to right
    others      a lower bound on it, estimated at so many `maskings` (Insertion Transformer: none)

An answer is what stands behind the prompt in a training row. Where rows are texts with an end, EOS
is part of it, and padding too if it is learnt; in windows of a stream it is the answer alone.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterable, Literal

import checkpoint
from checkpoint import Model
from configurator import PUZZLES, UserError, load, optional, require, run, save_json
from evaluate import (
    COPIES,
    Row,
    answer_row,
    are_greedy,
    ended,
    greedy_options,
    likelihoods,
    uncropped,
)
from model import pick_device
from objective import SampleOptions
from sample import (
    Prompt,
    canvas,
    chat_canvas,
    generate,
    has_bos_eos,
    require_writable,
    written_ids,
)
from tokenizer import USER

LENGTH = 256  # tokens to write where a task does not say how many; the harness's own


# ---- how likely --------------------------------------------------------------------------------


def meaning(model: Model, maskings: int) -> str:
    """Description of the nats of this model."""
    objective = model.objective
    if objective.exact:
        return f"log p itself, {objective.estimator}"
    return f"lower bounds on log p, {objective.estimator}, {maskings} draws of the noise for each"


def loglikelihood(
    model: Model,
    pairs: Iterable[tuple[str, str]],
    chat: bool = False,
    maskings: int = 128,
    batch_size: int = 64,
    dtype: str = "auto",
) -> list[tuple[float, bool | None]]:
    """For each (prompt, answer): log p(answer | prompt) or a lower bound on it (`meaning`), in
    nats, and whether greedy sampling writes that answer, or None for objectives without it.
    maskings: a multiple of COPIES. Raises UserError for rows longer than the block."""
    rows = [answer_row(model, prompt, answer, chat) for prompt, answer in pairs]
    ends = ended(model, chat)
    nats = likelihoods(model, rows, ends, maskings, batch_size, dtype)
    greedy = are_greedy(model, rows, ends, batch_size, dtype)
    return [(one, same) for (one, _), same in zip(nats, greedy, strict=True)]


def windows(ids: list[int], size: int) -> list[Row]:
    """A long text in rows of at most `size` ids: every id is scored once, and the last row has as
    much context as fits (the rolling windows of lm-eval, with one id of context)."""
    rows = [(ids[:size], 0)] if ids else []
    for at in range(size, len(ids), max(1, size - 1)):
        end = min(at + max(1, size - 1), len(ids))
        rows.append((ids[end - size : end], at - (end - size)))
    return rows


def rolling(
    model: Model, texts: Iterable[str], maskings: int = 128, batch_size: int = 64, dtype="auto"
) -> list[float]:
    """Nats of whole texts. Texts longer than the block are scored in `windows` if the model was
    trained on a stream. Raises UserError for other models with such texts, and for models of
    questions."""
    if model.meta.get("task") in ("chat", "diff", *PUZZLES):
        raise UserError(f"a model of task={model.meta['task']} knows answers, not whole texts")
    totals = []
    for text in texts:
        rows = windows(model.tokenizer.encode(text), model.config.block_size)
        if has_bos_eos(model):
            rows = [answer_row(model, "", text, False)]
        scores = likelihoods(model, rows, has_bos_eos(model), maskings, batch_size, dtype)
        totals.append(sum(nats for nats, _ in scores))
    return totals


# ---- writing -----------------------------------------------------------------------------------


def generate_texts(
    model: Model,
    prompts: Iterable[str],
    length: int = 0,
    options: SampleOptions | None = None,
    until: tuple[str, ...] = (),
    chat: bool = False,
    seed: int = 0,
    batch_size: int = 64,
    dtype: str = "auto",
) -> list[str]:
    """The continuation of each prompt: at most `length` tokens (0: to the end of the block), up to
    EOS and to the first of the texts `until`. options: None is greedy, or temperature 0 for
    objectives without greedy options. Raises UserError for prompts longer than the block."""
    begun = [_prompt_canvas(model, prompt, length, chat) for prompt in prompts]
    if not begun:
        return []
    stop = model.meta["specials"].get("eos") if ended(model, chat) else None
    how = options or greedy_options(model, stop) or SampleOptions(temperature=0.0)
    made = generate(model, begun, how, seed, batch_size, dtype=dtype)
    texts = map(model.tokenizer.decode, written_ids(model, made.ids, begun))
    return [_before(text.removeprefix("\n") if chat else text, until) for text in texts]


def _prompt_canvas(model: Model, prompt: str, length: int, chat: bool) -> Prompt:
    if chat:
        return chat_canvas(model, [(USER, prompt)], length)
    if length and model.meta.get("task") not in PUZZLES:
        length += len(model.tokenizer.encode(prompt))
    return canvas(model, prompt, max_length=length)


def _before(text: str, until: Iterable[str]) -> str:
    return text[: min((text.find(word) for word in until if word in text), default=len(text))]


def shortened(model: Model, prompt: str, room: int) -> str:
    """The end of a prompt that leaves `room` tokens in the block, or all of it if it fits."""
    limit = model.config.block_size - 2 * has_bos_eos(model) - room
    ids = model.tokenizer.encode(prompt)
    if len(ids) <= limit:
        return prompt
    for first in range(len(ids) - max(limit, 0), len(ids)):
        text = model.tokenizer.decode(ids[first:])
        if len(model.tokenizer.encode(text)) <= limit:  # pieces may merge anew
            return text
    return ""


# ---- the harness -------------------------------------------------------------------------------


def adapter(model: Model, cfg: "HarnessConfig") -> Any:
    """The model as an lm_eval.api.model.LM. Its `shortened` counts the prompts that were cut from
    the left, as the harness expects, to fit the block."""
    base = optional("lm_eval.api.model", "lm_eval").LM
    how = {"batch_size": cfg.batch_size, "dtype": cfg.dtype}

    class AnyOrder(base):
        def __init__(self) -> None:
            super().__init__()
            self.shortened = 0

        def fit(self, prompt: str, room: int) -> str:
            if cfg.chat or model.meta.get("task") in PUZZLES:
                return prompt  # half of a question is another question
            kept = shortened(model, prompt, room)
            self.shortened += kept != prompt
            return kept

        def loglikelihood(self, requests: list, disable_tqdm: bool = False) -> list:
            pairs = [request.args for request in requests]
            pairs = [(self.fit(p, len(model.tokenizer.encode(a)) + 1), a) for p, a in pairs]
            scores = loglikelihood(model, pairs, cfg.chat, cfg.maskings, **how)
            return [(nats, bool(greedy)) for nats, greedy in scores]

        def loglikelihood_rolling(self, requests: list, disable_tqdm: bool = False) -> list:
            return rolling(model, [r.args[0] for r in requests], cfg.maskings, **how)

        def generate_until(self, requests: list, disable_tqdm: bool = False) -> list:
            answers = [""] * len(requests)
            for arguments, places in _alike(request.args[1] for request in requests):
                length, until, options = _options(model, dict(arguments))
                prompts = [self.fit(requests[i].args[0], length) for i in places]
                shared = {"options": options, "until": until, "chat": cfg.chat, "seed": cfg.seed}
                texts = generate_texts(model, prompts, length, **shared, **how)
                for i, text in zip(places, texts, strict=True):
                    answers[i] = text
            return answers

    return AnyOrder()


def _alike(arguments: Iterable[dict]) -> list[tuple[tuple, list[int]]]:
    """Arguments of requests -> each different one, with the indices of its requests."""
    groups: dict[tuple, list[int]] = {}
    for place, one in enumerate(arguments):
        plain = {k: tuple(v) if isinstance(v, list) else v for k, v in one.items()}
        groups.setdefault(tuple(sorted(plain.items())), []).append(place)
    return [*groups.items()]


def _options(model: Model, arguments: dict) -> tuple[int, tuple[str, ...], SampleOptions | None]:
    """gen_kwargs of a task -> (tokens to write, stop texts, options; None is greedy). At most half
    of the block is written, so that a prompt has room. Raises UserError for other settings."""
    until = arguments.pop("until", None) or ()
    until = (until,) if isinstance(until, str) else tuple(until)
    length = min(arguments.pop("max_gen_toks", LENGTH), max(1, model.config.block_size // 2))
    drawn = arguments.pop("do_sample", arguments.get("temperature", 0.0) > 0)
    shape = {k: arguments.pop(k) for k in ("temperature", "top_k", "top_p") if k in arguments}
    if arguments:
        raise UserError(f"a task asks for {', '.join(arguments)}, which this project does not know")
    return length, until, SampleOptions(**shape) if drawn else None


@dataclass(frozen=True)
class HarnessConfig:
    """The options of `analysis/harness.py`."""

    ckpt: str = "out/palindrome/ckpt.pt"  # folder of a run or of safetensors, ckpt.pt, hub id
    tasks: str = ""  # of lm-eval, commas between them
    include_path: str = ""  # folder with tasks of your own, as YAML
    num_fewshot: int | None = None  # examples before each question; None: as the task has it
    limit: int = 0  # questions of each task; 0: all
    maskings: int = 128  # of each answer, where its likelihood is a bound
    chat: bool = False  # a prompt is a question, an answer what the assistant says
    batch_size: int = 64  # answers at a time
    seed: int = 1337  # of sampled texts
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 on GPUs with it
    use_ema: bool = True  # the averaged weights, where the checkpoint has them
    json: str = ""  # write all results to this file

    def __post_init__(self):
        require(self, "tasks", bool(self.tasks.strip(" ,")), "the names of tasks, as arc_easy")
        require(self, "batch_size", self.batch_size >= 1, "at least 1")
        require(self, "limit", self.limit >= 0, "at least 0")
        good = self.maskings > 0 and self.maskings % COPIES == 0
        require(self, "maskings", good, f"a multiple of {COPIES}")
        there = not self.json or Path(self.json).parent.is_dir()
        require(self, "json", there, "a file in a folder that exists")


def describe(results: dict[str, dict[str, Any]]) -> str:
    """A line for each task: its numbers, with standard errors where it has them."""
    lines = []
    for task, values in results.items():
        text_lines = []
        for key, value in values.items():
            name, _, kind = key.partition(",")
            if not kind or not isinstance(value, int | float) or "_stderr" in name:
                continue
            error = values.get(f"{name}_stderr,{kind}")
            plus = f" +- {error:.4f}" if isinstance(error, float) else ""
            text_lines.append(f"{name} {value:.4f}{plus}")
        lines.append(f"{task}: {', '.join(text_lines)}")
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    cfg, _ = load(HarnessConfig, argv)
    require_writable(cfg, "json")
    lm_eval = optional("lm_eval.evaluator", "lm_eval")
    manager = optional("lm_eval.tasks", "lm_eval").TaskManager
    model = uncropped(checkpoint.load(cfg.ckpt, pick_device(cfg.device), cfg.use_ema))
    lm = adapter(model, cfg)
    tasks = [name.strip() for name in cfg.tasks.split(",") if name.strip()]
    limits = {"num_fewshot": cfg.num_fewshot, "limit": cfg.limit or None}
    limits["task_manager"] = manager(include_path=cfg.include_path or None)
    try:
        results = lm_eval.simple_evaluate(model=lm, tasks=tasks, **limits)["results"]
    except (OSError, KeyError, ValueError) as e:  # an unknown task, a hub out of reach
        raise UserError(f"tasks={cfg.tasks}: {type(e).__name__}: {e}"[:300]) from e
    print(describe(results))
    print(f"  (likelihoods: {meaning(model, cfg.maskings)}; texts: greedy unless a task says)")
    if lm.shortened:
        print(f"warning: {lm.shortened} prompts were cut from the left", file=sys.stderr)
    if cfg.json:
        save_json({"config": vars(cfg), "step": model.step, "results": results}, Path(cfg.json))
        print(f"wrote all results to {cfg.json}")


if __name__ == "__main__":
    run(main)
