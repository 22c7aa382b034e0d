"""Evaluate a checkpoint: python evaluate.py --ckpt=out/palindrome/ckpt.pt

The bound on the likelihood of the validation split, in nats per token and bits per byte with their
standard error, of what the model writes: in a corpus of questions, the answers. Then, by corpus:

    palindromes   how many samples are exact ones
    questions     how many sampled answers are the wanted ones, in both splits
    star graphs   exact match and token accuracy of sampled answers; zebra puzzles, countdown,
                  sudoku, addition
    grammar       how many samples are sentences of it
    patches       how many parse, apply and are right, in both splits, beside what needs no model
    --judge=gpt2  any corpus: generative perplexity of samples, with entropy, settings and reference

--order=left_to_right           masked text: also -log p under the sampler of this order
--prompt="2+2=" --answer="4"    how likely an answer is, and whether it is the one that is written
--answers=FILE.jsonl            the same for each {"prompt", "answer"}; with --chat, as a chat
--report=FOLDER                 all of it as one page with figures: where does the model fail?
--compare=A,B                   checkpoints of one corpus side by side in a table
"""

import dataclasses
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterable, Iterator, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

import checkpoint
from checkpoint import Model, build_objective
from configurator import PUZZLES, TASKS, UserError, load, optional, require, room, run, save_json
from corpus import Batch, Corpus, shuffled
from diffusion import ORDERS, Guided, order_nats, written_in_order
from model import autocast, pick_device
from objective import Objective, SampleOptions, generator, require_finite
from prepare_sft import records
from pretrained import gguf
from sample import (
    SETTINGS,
    Prompt,
    SampleConfig,
    SamplerConfig,
    answer_canvas,
    answer_defaults,
    canvases,
    generate,
    has_bos_eos,
    read_prompt,
    require_writable,
    sample_options,
    settings,
    watcher,
    with_sampler,
    written_ids,
)
from tokenizer import ASSISTANT, USER, Tokenizer, Unencodable, chat_rows

# ==================================================================================================
# Quality of samples: their perplexity under another model, and their entropy
#
# Generative perplexity is exp of the mean nats per token of samples under a causal language model,
# the judge: how plausible the samples are, not how well the sampled model predicts text. Repetitive
# text scores well, so it is reported together with the unigram entropy of the samples, the settings
# of their sampler, and both numbers for as many texts of the corpus.
#
#     Zheng et al. 2024, arXiv 2409.02908: low perplexities that were nothing but low entropy
#     Sahoo et al. 2024, arXiv 2406.07524: which tokens count (MDLM)
# ==================================================================================================


AT_ONCE = 4  # texts per batch: 1024 tokens of each are 0.8 GB of logits with GPT-2's vocabulary


# ---- texts -------------------------------------------------------------------------------------


def documents(tokenizer: Tokenizer, ids: list[int]) -> list[tuple[str, bool]]:
    """Ids -> (text, is it followed by EOS?) of each part between two EOS."""
    eos, parts, start = tokenizer.specials.get("eos", -1), [], 0
    ends = [i for i, token in enumerate(ids) if token == eos]
    for end in ends:
        parts.append((tokenizer.decode(ids[start:end]), True))
        start = end + 1
    return [*parts, (tokenizer.decode(ids[start:]), False)] if start < len(ids) else parts


def written_text(batch: Batch) -> list[list[int]]:
    """Of each row the ids that are neither prompt nor padding."""
    inside = torch.arange(batch.ids.shape[1]) < batch.length[:, None]
    rows = zip(batch.ids, inside & ~batch.prompt_mask, strict=True)
    return [ids[keep].tolist() for ids, keep in rows]


def text_bytes(tokenizer: Tokenizer, ids: list[int]) -> int:
    """Bytes of text in the ids. A window may begin inside a character, which `decode` drops."""
    if tokenizer.kind == "bytes":
        return sum(i < 256 for i in ids)
    return sum(len(text.encode()) for text, _ in documents(tokenizer, ids))


def unigram_entropy(ids: list[int]) -> float:
    """Nats; log of the number of different tokens at most. 0 for no token."""
    count = np.unique(ids, return_counts=True)[1] / max(len(ids), 1)
    return float(-(count * np.log(count)).sum())


def distinct(texts: list[list[int]], n: int) -> float:
    """Number of different n-grams in the texts over their total number (distinct-n, Li et al. 2016,
    arXiv 1510.03055); it falls with the number of tokens. 0 if there are none."""
    ngrams = [tuple(ids[k : k + n]) for ids in texts for k in range(len(ids) - n + 1)]
    return len(set(ngrams)) / max(len(ngrams), 1)


def ratio(nats: Tensor, size: Tensor, unit: Tensor | None = None) -> tuple[float, float]:
    """Sums over texts of nats (N,) and tokens (N,) -> nats per token and its standard error. Texts
    with the same integer of `unit` (N,), such as parts of one document, are not independent: they
    count as one. The error is NaN if there is only one."""
    total = size.sum().clamp(min=1)
    rate = nats.sum() / total
    excess = nats - rate * size
    if unit is not None:
        _, which = unit.unique(return_inverse=True)
        excess = torch.zeros(int(which.max()) + 1).to(excess).index_add_(0, which, excess)
    n = len(excess)
    square = excess.square().sum() * n / (n - 1) if n > 1 else torch.tensor(torch.nan)
    return float(rate), float(square.sqrt() / total)


def plus_minus(value: float, error: float, digits: int = 4) -> str:
    """A number and its standard error; NaN is one that a single text cannot tell."""
    return f"{value:.{digits}f} +- " + ("unknown" if error != error else f"{error:.{digits}f}")


# ---- the judge ---------------------------------------------------------------------------------


class Judge:
    """A causal language model of transformers, from a folder or the hub, with its tokenizer.

    A text is decoded, encoded with the judge's tokenizer with its EOS in place of ours, and cut to
    its longest input. The judge's BOS comes first if its tokenizer adds one; without one the first
    token is not scored. All other tokens count, but of EOS only the first. Raises UserError for a
    model that cannot be read, lacks weights, or is not causal.
    """

    def __init__(self, name: str, device: torch.device, dtype: str = "auto"):
        self.name, self.device, self.dtype = name, device, dtype
        self.net, self.tokenizer = _read(name)
        self.net = self.net.to(device).eval()
        self.eos: int | None = self.tokenizer.eos_token_id
        self.tokens = len(self.tokenizer)  # embeddings are often rounded up: the rest are no ids
        first = self.tokenizer("a").input_ids[:1]
        self.start = first if first == [self.tokenizer.bos_token_id] else []
        config = self.net.config
        limits = (getattr(config, k, None) for k in ("max_position_embeddings", "n_positions"))
        self.longest = min(filter(None, (*limits, self.tokenizer.model_max_length)))
        self._require_causal()

    @torch.no_grad()
    def _require_causal(self) -> None:
        ids = torch.arange(8, device=self.device)[None] % self.net.config.vocab_size
        other = ids.clone()
        other[0, -1] = ids[0, 1]
        a, b = (self.net(x).logits[0, :-1].float() for x in (ids, other))
        if float((a - b).abs().max()) > 1e-3 * float(a.std()):
            raise UserError(f"judge={self.name} looks ahead: it is not a causal language model")

    def encode(self, parts: list[tuple[str, bool]]) -> list[int]:
        """Documents -> ids, not cut."""
        ids = list(self.start)
        for text, ended in parts:
            ids += self.tokenizer(text, add_special_tokens=False).input_ids
            ids += [self.eos] if ended and self.eos is not None else []
        return ids

    @torch.no_grad()
    def nats(self, texts: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Ids of N texts -> their nats, and the number of scored tokens: (N,) float64 each."""
        cost, count = torch.zeros(2, len(texts), dtype=torch.float64)
        for first in range(0, len(texts), AT_ONCE):
            part = [torch.tensor(ids) for ids in texts[first : first + AT_ONCE]]
            width = max(2, *(len(ids) for ids in part))
            ids, seen = (
                torch.stack([F.pad(x, (0, width - len(x))) for x in rows]).to(self.device)
                for rows in (part, [torch.ones_like(x) for x in part])
            )
            with autocast(self.dtype, self.device):
                logits = self.net(ids.long(), attention_mask=seen).logits
            logits = logits[..., : self.tokens]  # (b, T, V)
            for k, row in enumerate(part):
                counts, row = self._counts(row.to(self.device)), row.to(self.device)
                z = logits[k, : max(len(row) - 1, 0)].float()
                losses = F.cross_entropy(z, row[1:].long(), reduction="none").double()
                cost[first + k] = (losses * counts).sum().cpu()
                count[first + k] = counts.sum().cpu()
        return cost, count

    def _counts(self, row: Tensor) -> Tensor:
        """(T,) -> (max(T - 1, 0),) bool: which tokens but the first are scored."""
        is_eos = row == (-1 if self.eos is None else self.eos)
        is_eos[: len(self.start)] = False
        return (~is_eos | (is_eos.cumsum(0) == 1))[1:]


def _read(name: str) -> tuple[Any, Any]:
    """Network and tokenizer of the judge. Raises UserError if weights are missing."""
    if name.endswith(gguf.SUFFIX):
        return gguf.read_network(Path(name))
    transformers = optional("transformers")
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    optional("huggingface_hub").utils.logging.set_verbosity_error()  # of its retries
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
        net, info = transformers.AutoModelForCausalLM.from_pretrained(
            name, output_loading_info=True, dtype=torch.float32
        )
    except Exception as e:  # transformers and the hub raise many types
        reason = " ".join(str(e).split()).partition(". ")[0]
        raise UserError(
            f"judge={name} could not be read ({type(e).__name__}): {reason:.160}"
        ) from e
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise UserError(f"judge={name} lacks {len(missing)} weights, {missing[0]} among them")
    return net, tokenizer


# ---- reports -----------------------------------------------------------------------------------


def judged(texts: list[list[int]], tokenizer: Tokenizer, judge: Judge | None) -> dict[str, Any]:
    """Texts as our own ids -> their entropy and distinct-n, and with a judge, their
    generative perplexity."""
    result: dict[str, Any] = {
        "texts": len(texts),
        "tokens_per_text": float(np.mean([len(ids) for ids in texts])),
        "unigram_entropy": float(np.mean([unigram_entropy(ids) for ids in texts])),
        **{f"distinct_{n}": distinct(texts, n) for n in (1, 2, 3)},
    }
    if judge is None:
        return result
    encoded = [judge.encode(documents(tokenizer, ids)) for ids in texts]
    nats, count = judge.nats([ids[: judge.longest] for ids in encoded])
    require_finite(nats, f"the likelihood under judge={judge.name}")
    rate, error = ratio(nats, count)
    if count.sum():
        result["generative_perplexity"] = math.exp(rate)
        result["generative_perplexity_error"] = math.exp(rate) * error
    result["judge_tokens"] = int(count.sum())
    result["judge_cut"] = sum(len(ids) > judge.longest for ids in encoded)
    return result


def describe_judged(result: dict[str, Any], name: str, judge: Judge | None) -> str:
    text = (
        f"{name}: unigram entropy {result['unigram_entropy']:.3f} nats, distinct-1/2/3 "
        f"{result['distinct_1']:.3f}/{result['distinct_2']:.3f}/{result['distinct_3']:.3f}, "
        f"{result['tokens_per_text']:,.1f} tokens per text, {result['texts']:,} texts"
    )
    if judge is None:
        return text
    if not result["judge_tokens"]:
        return f"{text}\n  nothing that {judge.name} can score"
    error = result["generative_perplexity_error"]
    perplexity = plus_minus(result["generative_perplexity"], error, 2)
    cut = f"; {result['judge_cut']} texts cut to {judge.longest}" if result["judge_cut"] else ""
    return (
        f"{text}\n  generative perplexity {perplexity} under {judge.name} "
        f"({result['judge_tokens']:,} of its tokens{cut})"
    )


# ==================================================================================================
# Answers: their likelihood, whether greedy sampling writes them, how many samples are right
# ==================================================================================================


SCORING = 6  # stream of randomness; train.py and sample.py have those before it
COPIES = 16  # of an answer per batch: independent estimates, for the standard error
Row = tuple[list[int], int]  # ids, and how many of them are the prompt


# ---- how likely --------------------------------------------------------------------------------


def answer_row(model: Model, prompt: str, answer: str, chat: bool) -> Row:
    """(ids, how many of them are the prompt). Trailing spaces of the prompt belong to the answer;
    both are encoded together, and the answer begins with the first token that differs from those of
    the prompt alone (LLaDA, appendix B.5, and the usual harnesses). Puzzles have BOS between."""
    if model.meta.get("task") in PUZZLES:
        row_of = room(model.meta["task"]).row_of
        return row_of(model.tokenizer, *map(model.tokenizer.encode, (prompt, answer)))
    if chat:
        return chat_rows(model.tokenizer, [(USER, prompt), (ASSISTANT, answer)])[0]
    ids, alone = (model.tokenizer.encode(text) for text in (prompt + answer, prompt.rstrip()))
    differ = (k for k, (a, b) in enumerate(zip(ids, alone, strict=False)) if a != b)
    same = next(differ, min(len(ids), len(alone)))
    if not has_bos_eos(model):
        return ids, same
    special = model.meta["specials"]
    return [special["bos"], *ids, special["eos"]], same + 1


def answer_rows(model: Model, pairs: list[tuple[str, str]], chat: bool) -> list[Row]:
    """`answer_row` of each pair. Raises UserError that names the first with no tokens for it."""
    rows = []
    for number, pair in enumerate(pairs, 1):
        try:
            rows.append(answer_row(model, *pair, chat))
        except Unencodable as e:
            raise UserError(f"answer {number} of {len(pairs)}: {e}") from e
    return rows


def ended(model: Model, chat: bool) -> bool:
    """Do training rows have an end that belongs to the answer?"""
    return chat or has_bos_eos(model) or model.meta.get("task") in PUZZLES


def answer_batch(model: Model, ids: list[int], prompt: int, rows: bool) -> Batch:
    """The row as a batch of one, padded as in a corpus if `rows`. Raises UserError if it does not
    fit the block or has no answer."""
    block = model.config.block_size
    if len(ids) > block or prompt == len(ids):
        sizes = f"{prompt} tokens of prompt and {len(ids) - prompt} of answer"
        raise UserError(f"answer: {sizes} in a block of {block}")
    width = block if rows else len(ids)
    padded = F.pad(
        torch.tensor(ids), (0, width - len(ids)), value=model.meta["specials"].get("pad", 0)
    )
    prompt_mask = torch.arange(width) < prompt
    return Batch(padded[None], prompt_mask[None], torch.tensor([len(ids)]))


def likelihoods(
    model: Model,
    rows: list[Row],
    ends: bool,
    maskings: int,
    batch_size: int,
    dtype: str = "auto",
    scale: float = 0.0,
) -> list[tuple[float, float]]:
    """(log p in nats, standard error) of the answer in each row: exact where the objective is, else
    a lower bound, estimated with `maskings` draws of the noise, a multiple of COPIES.

    Rows are padded as in training, so EOS, and padding if it is learnt, are in the sum. scale:
    of the guidance. The numbers of masked tokens are those of `bound`; LLaDA's (Masked.likelihood)
    round halves to even, which prefers even numbers where the answer is short and so is not quite a
    bound. Raises UserError for rows longer than the block."""
    objective, scores = model.objective, []
    if not objective.bounded:
        raise UserError(f"objective={model.config.objective} has no bound on the likelihood")
    assert maskings > 0 and maskings % COPIES == 0, maskings
    step, copies = (batch_size, 1) if objective.exact else (1, COPIES)
    for first in tqdm(range(0, len(rows), step), disable=None, leave=False):
        some_rows = rows[first : first + step]
        parts = [answer_batch(model, *row, ends or objective.exact) for row in some_rows] * copies
        batch = Batch(*map(torch.cat, zip(*parts, strict=True)))
        net = Guided(model.net, batch.prompt_mask, objective.mask_id, scale) if scale else model.net
        with autocast(dtype, model.net.head.weight.device):
            rng = generator(SCORING, first)
            nats = -objective.bound(net, batch, rng, maskings // COPIES)
        require_finite(nats, f"the likelihood of answer {first + 1}")
        if objective.exact:
            scores += [(log_p, 0.0) for log_p in nats.tolist()]
        else:
            scores.append((float(nats.mean()), float(nats.std()) / math.sqrt(COPIES)))
    return scores


def greedy_options(
    model: Model, stop: int | None = None, scale: float = 0.0
) -> SampleOptions | None:
    """Options of greedy sampling: the most confident token first, one at a time (and those of
    probability 1 with it). None for objectives without a greedy sampler. scale: of the guidance."""
    names = model.objective.samplers
    if "confidence" in names and not model.objective.inserts:
        options = {"sampler": "confidence", "unmask_schedule": "factor", "factor": 0.0}
        return SampleOptions(**options, temperature=0.0, stop=stop, cfg=scale)
    sampler = next((name for name in ("left_to_right", "threshold") if name in names), None)
    return SampleOptions(sampler=sampler, temperature=0.0) if sampler else None


def are_greedy(
    model: Model,
    rows: list[Row],
    ends: bool,
    batch_size: int,
    dtype: str = "auto",
    scale: float = 0.0,
) -> list[bool | None]:
    """Is each answer what greedy sampling writes, up to EOS if rows have an end? None where there
    are no `greedy_options`."""
    options = greedy_options(model, model.meta["specials"].get("eos") if ends else None, scale)
    if options is None or not rows:
        return [None] * len(rows)
    prompts = []
    for row in rows:  # up to the last place that the model writes
        batch = answer_batch(model, *row, ends)
        target_mask = model.objective.target_mask(batch)[0]
        part = slice(int(target_mask.nonzero().max()) + 1)
        prompts.append(Prompt(batch.ids[0, part], ~target_mask[part]))
    samples = generate(model, prompts, options, 0, batch_size, dtype=dtype)
    both = (
        written_ids(model, ids, prompts)
        for ids in (samples.ids, [prompt.ids for prompt in prompts])
    )
    answers, wanted = (closed(model, ids) for ids in both)
    return [a == b for a, b in zip(answers, wanted, strict=True)]


def score_answers(
    cfg: SamplerConfig, model: Model, pairs: list[tuple[str, str]], maskings: int, batch_size: int
) -> list[dict[str, Any]]:
    """For each (prompt, answer): `likelihoods` and `are_greedy`. Raises UserError for rows longer
    than the block, and for guidance of an objective that has none."""
    if cfg.cfg and model.config.objective != "masked":
        raise UserError(f"cfg: objective={model.config.objective} has no guidance; leave it out")
    rows, ends = answer_rows(model, pairs, cfg.chat), ended(model, cfg.chat)
    scores = likelihoods(model, rows, ends, maskings, batch_size, cfg.dtype, cfg.cfg)
    same = are_greedy(model, rows, ends, batch_size, cfg.dtype, cfg.cfg)
    return [
        {"prompt": prompt, "answer": answer, "tokens": len(ids) - start}
        | {"nats": nats, "nats_error": error, "greedy": greedy}
        for (prompt, answer), (ids, start), (nats, error), greedy in zip(
            pairs, rows, scores, same, strict=True
        )
    ]


def describe_scores(result: dict[str, Any], maskings: int, objective: Objective) -> str:
    """A line for each answer, then the sums and what they mean."""
    shown = {True: "written", False: "not written", None: "no such order"}
    lines = [
        f"{row['nats']:10.3f} +- {row['nats_error']:.3f} nats, {row['tokens']:4d} tokens, "
        f"{shown[row['greedy']]:<13}  {row['answer']!r:.60}"
        for row in result["each"]
    ]
    nats, tokens = result["nats"], result["tokens"]
    bound, how = "", "nothing is drawn"
    if not objective.exact:
        bound, how = "at least ", f"{maskings} draws of the noise for each"
    lines += [
        f"{len(result['each'])} answers: {bound}{nats:.3f} +- {result['nats_error']:.3f} nats, "
        f"{nats / tokens:.4f} per token; {sum(bool(row['greedy']) for row in result['each'])} are "
        "written greedily",
        f"  (log p by the {objective.estimator}, {how}, epsilon {objective.epsilon:g}; of the "
        "answer alone, EOS a token of it; +- one standard error)",
    ]
    if knows_length(objective):
        lines.append(f"  ({GIVEN_LENGTH})")
    return "\n".join(lines)


def closed(model: Model, texts: list[list[int]]) -> list[list[int]]:
    """Texts of an insertion model as ids without padding, each ended by EOS, which these models do
    not write. Texts of other models are returned unchanged."""
    special = model.meta["specials"]
    if not getattr(model.objective, "inserts", False) or not {"pad", "eos"} <= set(special):
        return texts
    kept = [[i for i in ids if i not in (special["pad"], special["eos"])] for ids in texts]
    return [[*ids, special["eos"]] for ids in kept]


# ---- how many are right ------------------------------------------------------------------------


def wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """The interval of Wilson (1927) for a share of n independent answers, at 95 % for z = 1.96. It
    lies within 0 and 1, and has a width where none or all of them were right."""
    if not n:
        return 0.0, 1.0
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2) / (1 + z * z / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def share_of(share: float, n: int, digits: int = 1) -> str:
    """A share of n answers with its interval, such as "90.0% (95%: 59.6% to 98.2%)"."""
    low, high = wilson(share, n)
    return f"{share:.{digits}%} (95%: {low:.{digits}%} to {high:.{digits}%})"


class Answers(NamedTuple):
    """Counts of sampled answers that agree with the reference."""

    rows: int
    exact: int  # rows equal to the reference, EOS included
    right: int  # tokens before EOS that are equal to the reference token at the same position
    tokens: int  # reference tokens before EOS
    written: int  # sampled tokens before EOS


def compare(answers: Iterable[list[int]], wanted: Iterable[list[int]], eos: int) -> Answers:
    """Sampled and wanted answers as ids, each ended by EOS if it ends. Tokens are compared position
    by position, so a shifted token is wrong, and so is a missing one; tokens beyond the wanted end
    are not counted as wrong, but the answer is not exact."""
    pairs = list(zip(answers, wanted, strict=True))
    texts = [[ids[: ids.index(eos)] if eos in ids else ids for ids in pair] for pair in pairs]
    return Answers(
        rows=len(pairs),
        exact=sum(a == b for a, b in pairs),
        right=sum(x == y for a, b in texts for x, y in zip(a, b, strict=False)),
        tokens=sum(len(b) for _, b in texts),
        written=sum(len(a) for a, _ in texts),
    )


def describe_answers(counts: Answers, split: str) -> str:
    rows, tokens = max(counts.rows, 1), max(counts.tokens, 1)
    return (
        f"{split}: {counts.exact:,} of {counts.rows:,} answers exact ({counts.exact / rows:.1%}); "
        f"{counts.right:,} of {counts.tokens:,} tokens right in their places "
        f"({counts.right / tokens:.1%}); {counts.written / rows:.1f} tokens per answer, "
        f"{counts.tokens / rows:.1f} wanted"
    )


# ==================================================================================================
# The command
# ==================================================================================================


EVALUATION = 4  # stream of randomness, as in train.py
TEXTS = 100  # default number of samples


@dataclass(frozen=True)
class EvaluateConfig(SamplerConfig):
    """The options of `evaluate.py`."""

    data: str = ""  # corpus folder; empty: the one that the checkpoint was trained on
    split: str = "val"  # train | val | test, validation: by their published names, where they have
    rows: int = 2000  # rows of the split, or all if it has fewer; 0 skips the bound
    t_samples: int = 4  # noise levels per row
    discrete_steps: int = 0  # also the bound for a sampler of so many steps; 0 skips it
    order: Literal["", *ORDERS] = ""  # also -log p of the sampler of this order, a call per token
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
        alone = self.answer or self.answers or self.report or self.compare or not self.rows
        require(
            self, "order", not (self.order and alone), "left out: there is no bound to be beside"
        )
        require(self, "samples", self.samples is None or self.samples >= 0, "at least 0")
        valid = self.maskings > 0 and self.maskings % COPIES == 0
        require(self, "maskings", valid, f"a multiple of {COPIES}")
        require(self, "answers", not (self.answers and self.answer), "left out with --answer")
        require(self, "report", not self.report or not self.compare, "left out with --compare")
        require(self, "report", not (self.report and Path(self.report).exists()), "a new folder")
        exists = not self.json or Path(self.json).parent.is_dir()
        require(self, "json", exists, "a file in a folder that exists")


# ---- the bound ---------------------------------------------------------------------------------


def uncropped(model: Model) -> Model:
    """For padding="crop": the model with all rows padded to the longest of the corpus instead, so
    that a row's bound does not depend on its batch, and no row is longer than in training."""
    longest = max((s.get("longest", 0) for s in model.meta.get("splits", {}).values()), default=0)
    if getattr(model.objective, "padding", "learn") != "crop" or not longest:
        return model
    size = min(model.config.block_size, longest)
    config = dataclasses.replace(model.config, padding="learn", block_size=size)
    return model._replace(config=config, objective=build_objective(config, model.meta))


def rows_of(corpus: Corpus, split: str, count: int, block: int) -> np.ndarray:
    """Numbers of the first `count` of the split's shuffled rows, or of windows that do not
    overlap."""
    every = corpus.disjoint(split, block)
    return every[shuffled(np.arange(min(count, len(every))), len(every), 0)]


def batches(cfg: EvaluateConfig, model: Model, corpus: Corpus) -> Iterator[Batch]:
    """The rows or windows that the bound is estimated on."""
    block = model.config.block_size
    rows = rows_of(corpus, cfg.split, cfg.rows, block)
    for first in range(0, len(rows), cfg.batch_size):
        yield corpus.batch(cfg.split, rows[first : first + cfg.batch_size], block)


GIVEN_LENGTH = (
    "-log p(text | its length): with padding=ignore the length of a row is given, not predicted; "
    "do not compare it with that of a model that predicts where a text ends, such as left to right"
)


def knows_length(objective: Objective) -> bool:
    """Whether rows of any length are scored given their length."""
    return getattr(objective, "padding", "learn") == "ignore"


DOCUMENTS = 30  # fewer tell too little about how documents differ


def units(cfg: EvaluateConfig, model: Model, corpus: Corpus) -> tuple[str, Tensor | None]:
    """What counts as independent in the error bars: documents, as `ratio` takes them, if the rows
    or windows are parts of enough of them; else the rows or windows themselves, and None."""
    block = model.config.block_size
    rows = rows_of(corpus, cfg.split, cfg.rows, block)
    documents = np.unique(corpus.documents(cfg.split, rows, block), return_inverse=True)[1]
    if DOCUMENTS <= documents.max() + 1 < len(rows):
        return "documents", torch.from_numpy(documents)
    return "rows" if corpus.rows(cfg.split) else "windows", None


def bound(cfg: EvaluateConfig, model: Model, corpus: Corpus) -> dict[str, Any]:
    """The bound over rows of the split with its standard error, per row, per token and per byte of
    the text that the model writes. The prompt is neither scored nor counted; EOS is a token; the
    cost of padding, where it is learnt, is in the sum."""
    corpus.require_block(model.config.block_size)
    nats, discrete, ordered, tokens, size, positions = [], [], [], [], [], 0
    bar = tqdm(batches(cfg, model, corpus), unit="batch", disable=None, leave=False)
    for number, batch in enumerate(bar):
        rng, other = generator(EVALUATION, number), generator(EVALUATION, number, 1)
        with autocast(cfg.dtype, model.net.head.weight.device):
            nats.append(model.objective.bound(model.net, batch, rng, cfg.t_samples))
            if cfg.discrete_steps:
                steps = (cfg.discrete_steps, cfg.t_samples)
                discrete.append(model.objective.discrete_bound(model.net, batch, other, *steps))
            if cfg.order:
                rng = generator(EVALUATION, number, 3, device=model.net.head.weight.device)
                how = (rng, cfg.order, cfg.t_samples)
                ordered.append(order_nats(model.objective, model.net, batch, *how))
        positions += int(model.objective.target_mask(batch).sum())
        texts = written_text(batch)
        tokens += map(len, texts)
        size += [text_bytes(model.tokenizer, ids) for ids in texts]
    nats, length = torch.cat(nats), torch.tensor(tokens, dtype=torch.float64)
    for each in (nats, *discrete, *ordered):
        require_finite(each, f"the bound of objective={model.config.objective}")
    result = {"rows": len(nats), "t_samples": cfg.t_samples, "nats_per_row": float(nats.mean())}
    result["unit"], unit = units(cfg, model, corpus)
    result["units"] = len(nats) if unit is None else len(unit.unique())
    result["stream"] = not corpus.rows(cfg.split)
    result["given_length"] = knows_length(model.objective) and not result["stream"]
    result["ids_in_split"] = corpus.tokens(cfg.split)
    result["nats_per_token"], result["nats_per_token_error"] = ratio(nats, length, unit)
    size = torch.tensor(size, dtype=torch.float64)
    byte, error = ratio(nats, size, unit)
    result |= {"bits_per_byte": byte / math.log(2), "bits_per_byte_error": error / math.log(2)}
    if discrete:
        rate, error = ratio(torch.cat(discrete), length, unit)
        result |= {"discrete_nats_per_token": rate, "discrete_nats_per_token_error": error}
    if ordered:
        rate, error = ratio(torch.cat(ordered), length, unit)
        result |= {"order": cfg.order, "order_nats_per_token": rate}
        result["order_nats_per_token_error"] = error
        rate, error = (x / math.log(2) for x in ratio(torch.cat(ordered), size, unit))
        result |= {"order_bits_per_byte": rate, "order_bits_per_byte_error": error}
    result |= {key: getattr(model.objective, key) for key in ("exact", "estimator", "epsilon")}
    return {**result, "tokens": sum(tokens), "bytes": int(size.sum()), "positions": positions}


def rows_scored(result: dict[str, Any]) -> str:
    """How many rows, or windows of how many ids."""
    if not result["stream"]:
        return f"{result['rows']:,} rows"
    return (
        f"{result['rows']:,} windows that do not overlap, of the {result['ids_in_split']:,} ids of "
        "the split"
    )


def describe_bound(result: dict[str, Any], cfg: EvaluateConfig) -> str:
    """The numbers, then by which estimator and over which positions they are."""
    token = plus_minus(result["nats_per_token"], result["nats_per_token_error"])
    byte = plus_minus(result["bits_per_byte"], result["bits_per_byte_error"])
    limit, levels, drawn = "at most ", f"{result['t_samples']} noise levels for", "and noise"
    if result["exact"]:
        limit, levels, drawn = "", "no noise, the whole sum for", "alone, nothing else is drawn"
    padding = result["positions"] - result["tokens"]
    padded = f", and {padding:,} of learnt padding, whose cost is in the sum" if padding > 0 else ""
    text = (
        f"{cfg.split}: {limit}{token} nats per token, {byte} bits per byte, "
        f"{result['nats_per_row']:.3f} nats per row\n"
        f"  ({result['estimator']}, {levels} each of {rows_scored(result)}, epsilon "
        f"{result['epsilon']:g}; {result['tokens']:,} tokens, EOS among them; {result['bytes']:,} "
        f"bytes of decoded text; scored: what the model writes{padded}, without the prompt; "
        f"+- one standard error, of {result['units']:,} {result['unit']} {drawn})"
    )
    if result["given_length"]:
        text += f"\n  ({GIVEN_LENGTH})"
    if cfg.discrete_steps:
        rate = plus_minus(*(result[f"discrete_nats_per_token{k}"] for k in ("", "_error")))
        text += f"\n  in {cfg.discrete_steps} steps: {rate} nats per token"
    return f"{text}\n{describe_order(result)}" if cfg.order else text


def describe_order(result: dict[str, Any]) -> str:
    """The likelihood in an order, and of which law it is."""
    token, byte = (
        plus_minus(result[f"order_{unit}"], result[f"order_{unit}_error"])
        for unit in ("nats_per_token", "bits_per_byte")
    )
    order, limit = result["order"], ""
    law = "exact, by the chain rule: one call per token"
    if order == "random":
        limit = "at most "
        law = f"the mean over {result['t_samples']} drawn orders for each, a bound by Jensen"
    return (
        f"  in order {order}: {limit}{token} nats per token, {byte} bits per byte\n"
        f"  (-log p under --sampler={order} --temperature=1, a token per step; {law})"
    )


def clip_report(cfg: EvaluateConfig, model: Model, corpus: Corpus) -> dict[str, float]:
    """Block diffusion: the range of noise levels in which the loss has the least variance."""
    first = (batch for batch, _ in zip(batches(cfg, model, corpus), range(100), strict=False))
    ranges = model.objective.clip_search(model.net, first, generator(EVALUATION, 0, 2))
    if not ranges:
        return {}  # a single block has no variance
    variance, low, high = ranges[0]
    whole = next(v for v, a, b in ranges if b - a > 0.95)
    print(
        f"  least variance of a block's loss: --t_low={low:g} --t_high={high:g}, "
        f"variance {variance:.3f} instead of {whole:.3f}"
    )
    return {"t_low": low, "t_high": high, "variance": variance, "variance_of_all": whole}


# ---- answers and samples -----------------------------------------------------------------------


def answers_report(cfg: EvaluateConfig, model: Model) -> dict[str, Any]:
    """The likelihoods of --answer or of the lines of --answers, printed one line each."""
    pairs = [(read_prompt(cfg.prompt), read_prompt(cfg.answer))]
    if cfg.answers:
        lines = list(records(Path(cfg.answers)))
        pairs = [(row.get("prompt"), row.get("answer")) for row in lines]
        others = Counter(key for row in lines for key in row if key not in ("prompt", "answer"))
        for key, number in others.items():
            print(f"not used: field {key!r}: {number:,}")
    if not pairs or not all(isinstance(text, str) for pair in pairs for text in pair):
        raise UserError(f"answers={cfg.answers}: every line needs a prompt and an answer")
    scores = score_answers(cfg, model, pairs, cfg.maskings, cfg.batch_size)
    tokens, nats = (sum(score[key] for score in scores) for key in ("tokens", "nats"))
    error = math.sqrt(sum(score["nats_error"] ** 2 for score in scores))
    result = {"each": scores, "nats": nats, "nats_error": error, "tokens": tokens}
    print(describe_scores(result, cfg.maskings, model.objective))
    return result


def count(cfg: EvaluateConfig, default: int) -> int:
    return default if cfg.samples is None else cfg.samples


class Texts(NamedTuple):
    """Samples and as many texts of the corpus, as ids."""

    prompts: list[list[int]]  # of the rows of the corpus
    found: list[list[int]]  # samples
    wanted: list[list[int]]  # targets of the rows of the corpus
    speed: dict[str, float]  # seconds, tokens_per_second, nfe per sample


def sampled(cfg: EvaluateConfig, model: Model, corpus: Corpus, split: str, default: int) -> Texts:
    """Samples that begin with --prompt; for a corpus of questions or of stages of a cascade,
    samples that continue the prompts of the rows of the split. `default` of them without
    --samples."""
    block = model.config.block_size
    batch = corpus.batch(split, rows_of(corpus, split, count(cfg, default), block), block)
    sample_cfg = SampleConfig(
        num_samples=count(cfg, default), prompt=cfg.prompt, max_length=cfg.max_length, show=cfg.show
    )
    prompts = [i[mask].tolist() for i, mask in zip(batch.ids, batch.prompt_mask, strict=True)]
    if cfg.chat or model.meta.get("task") in ("stage", *PUZZLES):
        # 0: the rest of the block, as in training; insertion models need no more than the answer
        longest = model.meta.get("longest_answer", 0) if model.objective.inserts else 0
        length = cfg.max_length or longest
        starts = [answer_canvas(model, p, min(length, block - len(p))) for p in prompts]
    else:
        starts = canvases(sample_cfg, model)
    options, watch = sample_options(cfg, model), watcher(sample_cfg, model, [])
    how = (options, cfg.seed, cfg.batch_size, watch, cfg.dtype)
    result = generate(model, starts, *how, quiet=cfg.show)
    samples = closed(model, written_ids(model, result.ids, starts))
    rate = sum(map(len, samples)) / result.seconds
    speed = {"seconds": result.seconds, "tokens_per_second": rate, "nfe": result.rows / len(starts)}
    return Texts(prompts, samples, written_text(batch), speed)


def score_of(model: Model, texts: Texts) -> tuple[str, float | None]:
    """Name and value of what is right in samples, a share of them; none and None for a corpus
    without right answers, and for patches, which the command itself applies."""
    task = model.meta.get("task")
    if task == "chat":
        same = compare(texts.found, texts.wanted, model.meta["specials"]["eos"])
        return "exact answers", same.exact / same.rows
    if task in TASKS and task != "diff":
        return room(task).score(model, texts)
    return "none", None


def describe_cost(speed: dict[str, float], settings: dict[str, Any] | None = None) -> None:
    """Print the speed of sampling, and the settings if given."""
    rate, nfe = speed["tokens_per_second"], speed["nfe"]
    print(f"  {rate:,.0f} tokens/s written, up to EOS; {nfe:.1f} network calls per sample")
    if settings:
        print("  " + " ".join(f"{k}={v}" for k, v in settings.items()), flush=True)


def sample_report(cfg: EvaluateConfig, model: Model, corpus: Corpus, judge: Judge | None) -> dict:
    """Quality of samples and, for comparison, of texts of the corpus, with the sampler's
    settings."""
    result: dict[str, Any] = {"settings": settings(cfg, model)}
    for split in ("train", "val") if cfg.chat else (cfg.split,):
        texts = sampled(cfg, model, corpus, split, TEXTS)
        numbers = result[split] = {"speed": texts.speed}
        if cfg.chat:
            counts = compare(texts.found, texts.wanted, model.meta["specials"]["eos"])
            numbers["answers"] = counts._asdict()
            print(describe_answers(counts, split))
        for name, ids in (("samples", texts.found), ("corpus", texts.wanted)):
            numbers[name] = judged(ids, model.tokenizer, judge)
            if judge or not cfg.chat:
                print(describe_judged(numbers[name], f"  {name}", judge))
        describe_cost(texts.speed)
    print("  " + " ".join(f"{k}={v}" for k, v in result["settings"].items()), flush=True)
    return result


# ---- the command -------------------------------------------------------------------------------


def fitted(cfg: EvaluateConfig, origins: dict[str, str], model: Model) -> EvaluateConfig:
    """The settings with the defaults of the corpus: --chat for questions, greedy answers."""
    if model.meta.get("task") in ("chat", "diff"):
        cfg = answer_defaults(cfg, origins, model.objective.samplers)
    if model.meta.get("task") == "chat":
        cfg = dataclasses.replace(cfg, chat=True)
    elif cfg.chat and not (cfg.answer or cfg.answers):
        raise UserError("chat: the checkpoint was not trained on questions; name an --answer")
    return cfg


def corpus_report(cfg: EvaluateConfig, model: Model, sample: bool, judge: Judge | None) -> dict:
    """The bound, then the samples: of any corpus if `sample`."""
    corpus = Corpus(cfg.data or f"{model.config.data_dir}/{model.config.dataset}")
    corpus.require_like({**model.meta, "tokenizer": model.tokenizer.spec()})
    cfg = dataclasses.replace(cfg, split=corpus.split_named(cfg.split))
    result, task = {}, model.meta.get("task")
    if cfg.rows and not model.objective.bounded:
        print(f"objective={model.config.objective} has no bound on the likelihood")
    elif cfg.rows:
        result["bound"] = bound(cfg, model, corpus)
        print(describe_bound(result["bound"], cfg), flush=True)
        if hasattr(model.objective, "clip_search") and model.objective.length != 1:
            result["clip"] = clip_report(cfg, model, corpus)
    if task in TASKS and cfg.samples != 0:
        result |= room(task).evaluate(cfg, model, corpus)
    other = task not in TASKS  # a task without a report of its own
    if count(cfg, TEXTS) and (task == "chat" or judge or (sample and other)):
        result["samples"] = sample_report(cfg, model, corpus, judge)
    return result


def keep(cfg: EvaluateConfig, result: dict[str, Any]) -> None:
    """Write all numbers to --json, and say so."""
    if cfg.json:
        save_json({"config": dataclasses.asdict(cfg), **result}, Path(cfg.json))
        print(f"wrote all numbers and settings to {cfg.json}")
    elif not cfg.report:
        print("nothing was written; --json=FILE keeps these numbers")


def main(argv: list[str]) -> None:
    cfg, origins = load(EvaluateConfig, argv)
    require_writable(cfg, "json")
    device = pick_device(cfg.device)
    if cfg.report or cfg.compare:
        report = room("report").write if cfg.report else room("compare").compare
        keep(cfg, report(cfg, origins, device))
        return
    model = uncropped(checkpoint.load(cfg.ckpt, device, cfg.use_ema))
    cfg = fitted(cfg, origins, model)
    if cfg.discrete_steps and not hasattr(model.objective, "discrete_bound"):
        raise UserError(f"discrete_steps: objective={model.config.objective} has no such bound")
    if cfg.order and not written_in_order(model.objective):
        kinds = "masked, mlm, bd3, or sedd on the absorbing graph"
        raise UserError(f"order: objective={model.config.objective}, but it is for {kinds}")
    if cfg.answer or cfg.answers:
        for key in [key for key in origins if key in SETTINGS and key != "cfg"]:
            raise UserError(f"{key} ({origins[key]}): nothing is sampled with --answer")
        result = {"likelihood": answers_report(cfg, model)}
    else:
        cfg = with_sampler(cfg, origins, model)
        judge = Judge(cfg.judge, device, cfg.dtype) if cfg.judge else None
        result = corpus_report(cfg, model, "samples" in origins, judge)
    source = {"objective": model.config.objective, "step": model.step}
    keep(cfg, {"checkpoint": source, **result})


if __name__ == "__main__":
    run(main)
