"""Questions that answers can be checked against: star graphs, zebra puzzles, countdown.

A row is prompt, BOS | answer, EOS: all up to BOS is given. The words of zebra puzzles and the nodes
of graphs are symbols with spaces between them, countdown is written in characters:

    zebra      clues -> triples (entity, attribute, value) in any order:  "0 1 2 0 2 3 ..."
    countdown  numbers and the target, "39,66,33,138" -> one equation after another that takes two
               numbers and puts their result in their place: "39+66=105,105+33=138"

The scores are those of the ILM paper (arXiv 2505.05755): exact match, the share of tokens that are
right in their places, for zebra puzzles the triples as a set; and whether equations are a solution.
"""

import re
from collections import Counter
from operator import add, mul, sub
from typing import Any, Iterable, Iterator, NamedTuple

from configurator import UserError
from tokenizer import Symbols

SAMPLES = 500  # default number of samples of evaluate.py
ZEBRA = (
    *("0 1 2 3 4 5 nbr left-of inbetween immediate-left ends != = c n".split()),
    *("CLUE_END", "RHS", "LHS"),
)
COUNTDOWN = "0123456789*+-/=,"
HUB = {"zebra": "dhruveshpatel/zebra-puzzles", "countdown": "dhruveshpatel/countdown-4"}
STEP = re.compile(r"(\d+)([-+*/])(\d+)=(\d+)")
OPERATIONS = {"+": add, "-": sub, "*": mul}


def alphabet(task: str) -> Symbols:
    """The tokenizer of zebra puzzles or of countdown."""
    return Symbols(list(ZEBRA), " ") if task == "zebra" else Symbols(list(COUNTDOWN))


def pairs(rows: Iterable[dict], where: str) -> Iterator[tuple[str, str]]:
    """The prompt and the answer of each row of a set as published: fields `input` and `output`, or
    `sorted_output` where triples are sorted. Raises UserError."""
    for number, row in enumerate(rows, 1):
        answer = row.get("output", row.get("sorted_output"))
        if not all(isinstance(text, str) and text.strip() for text in (row.get("input"), answer)):
            raise UserError(f"{where}, row {number}: it needs input and output, not {list(row)}")
        yield row["input"].strip(), answer.strip()


def row_of(tokenizer: Symbols, prompt: list[int], answer: list[int]) -> tuple[list[int], int]:
    """Prompt and answer as ids -> (the ids of a row, how many of them are prompt)."""
    special = tokenizer.specials
    return [*prompt, special["bos"], *answer, special["eos"]], len(prompt) + 1


# ---- scores --------------------------------------------------------------------------------------


class Pair(NamedTuple):
    """A sampled and a wanted answer, each up to EOS, inclusive."""

    prompt: list[int]
    answer: list[int]
    wanted: list[int]


def scores(task: str, tokenizer: Symbols, answers: list[Pair]) -> dict[str, float]:
    """Means over N >= 1 answers, each between 0 and 1. exact_match: equal to the end, EOS included.
    token_accuracy: the share of the wanted tokens, without EOS, that the answer has at the same
    positions; a mean over positions, then over answers."""
    each = [
        {
            "exact_match": pair.answer == pair.wanted,
            "token_accuracy": right_share(pair.answer, pair.wanted[:-1]),
            **_more(task, tokenizer, pair),
        }
        for pair in answers
    ]
    return {name: sum(one[name] for one in each) / len(each) for name in each[0]}


def right_share(answer: list[int], wanted: list[int]) -> float:
    """The share of the wanted tokens (N,) that the answer has at the same positions; 1 if there are
    none."""
    right = sum(a == b for a, b in zip(answer, wanted, strict=False))
    return right / len(wanted) if wanted else 1.0


def _more(task: str, tokenizer: Symbols, pair: Pair) -> dict[str, float]:
    words = len(tokenizer.symbols)
    ended = pair.answer[-1:] == [tokenizer.specials["eos"]]
    clean = ended and all(i < words for i in pair.answer[:-1])
    if task == "zebra":
        answer, wanted = (triples([i for i in ids if i < words]) for ids in pair[1:])
        share = len(answer & wanted) / max(1, len(answer | wanted))
        return {"set_match": clean and answer == wanted, "set_iou": share}
    if task == "countdown":
        prompt, answer = (tokenizer.decode(ids) for ids in pair[:2])
        return {"solved": clean and solves(prompt, answer)}
    return {}


def triples(ids: list[int]) -> set[tuple[int, ...]]:
    """Ids (N,) in groups of three; a shorter last group equals no triple."""
    return {tuple(ids[k : k + 3]) for k in range(0, len(ids), 3)}


def solves(prompt: str, answer: str) -> bool:
    """Does the answer, as in "39+66=105,105+33=138", use every number of "39,66,33,138" but the
    last one once, and end with that one?"""
    *numbers, target = map(int, prompt.split(","))
    have = Counter(numbers)
    for text in answer.split(","):
        step = STEP.fullmatch(text)
        if step is None:
            return False
        a, b, result = (int(step[k]) for k in (1, 3, 4))
        have.subtract((a, b))
        # exact, and on whole numbers: of a division, the product is
        true = result * b == a and b > 0 if step[2] == "/" else OPERATIONS[step[2]](a, b) == result
        if not true or min(have.values()) < 0:
            return False
        have[result] += 1
    return +have == Counter([target])


def describe(scores: dict[str, float], split: str, rows: int) -> str:
    """One line; the interval is that of a share of independent answers."""
    from evaluate import share_of  # preparing a corpus must not import torch

    exact = share_of(scores["exact_match"], rows, 2)
    others = {k.replace("_", " "): v for k, v in scores.items() if k != "exact_match"}
    more = "".join(f", {name} {share:.2%}" for name, share in others.items())
    return f"{split}: exact match {exact} of {rows:,} answers{more}"


def scores_of(model: Any, texts: Any) -> dict[str, float]:
    """`scores` of the answers that a model has sampled (evaluate.Texts)."""
    answers = [*map(Pair, texts.prompts, texts.found, texts.wanted)]
    return scores(model.meta["task"], model.tokenizer, answers)


def score(model: Any, texts: Any) -> tuple[str, float]:
    """Name of the score, and its value for samples (evaluate.Texts)."""
    return "exact answers", scores_of(model, texts)["exact_match"]


def evaluate(cfg: Any, model: Any, corpus: Any) -> dict[str, Any]:
    """The scores of sampled answers to the questions of a split; `cfg` is that of evaluate.py."""
    from evaluate import describe_cost, sampled  # preparing a corpus must not import torch
    from sample import settings

    texts = sampled(cfg, model, corpus, cfg.split, SAMPLES)
    scores = scores_of(model, texts)
    print(describe(scores, cfg.split, len(texts.found)))
    how = settings(cfg, model)
    describe_cost(texts.speed, how)
    scores = {"rows": len(texts.found), **scores, "speed": texts.speed, "settings": how}
    return {"answers": scores}
