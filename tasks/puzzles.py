"""Questions that answers can be checked against: star graphs, zebra puzzles, countdown, sudoku and
addition. The corpora of the last two are made here:

    python -m tasks.puzzles --task=sudoku --size=4 --givens=4        # data/sudoku4
    python -m tasks.puzzles --task=sudoku --size=9 --givens=40-50    # data/sudoku9
    python -m tasks.puzzles --task=addition --digits=8               # data/addition

A row is prompt, BOS | answer, EOS: all up to BOS is given. The words of zebra puzzles and the nodes
of graphs are symbols with spaces between them, the others are written in characters:

    zebra      clues -> triples (entity, attribute, value) in any order:  "0 1 2 0 2 3 ..."
    countdown  numbers and the target, "39,66,33,138" -> one equation after another that takes two
               numbers and puts their result in their place: "39+66=105,105+33=138"
    sudoku     the cells row by row, 0 for a blank -> all cells of the one solution
    addition   two numbers of N digits, "0123+9877=" -> their sum in N + 1 digits, "10000": zeros in
               front, the highest digit first

The scores are those of the ILM paper (arXiv 2505.05755): exact match, the share of tokens that are
right in their places, for zebra puzzles the triples as a set; and whether equations or a board are
a solution.

No validation question is a training question. For sudoku no solution is in both splits either. A
third split of addition, `evaluate.py --split=carry`, has the hard sums: every two digits but the
last ones add up to 9, so that the last digits decide about all others.
"""

import random
import re
import sys
from collections import Counter
from dataclasses import dataclass
from operator import add, mul, sub
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, Literal, NamedTuple

import numpy as np
from tqdm import tqdm

from configurator import UserError, load, require, run
from corpus import CorpusWriter
from tasks import sudoku
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
    if task == "sudoku":
        prompt, answer = (tokenizer.decode(ids) for ids in pair[:2])
        return {"solved": clean and sudoku.is_solution(board_of(answer), board_of(prompt))}
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


def board_of(text: str) -> sudoku.Board:
    """The cells of a board that is written in digits."""
    return tuple(map(int, text))


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


# ---- the corpus of a task ------------------------------------------------------------------------


Rows = Iterable[tuple[list[int], int]]  # ids, and how many of them are given


def write(out: CorpusWriter, rows: dict[str, Rows]) -> dict[str, int]:
    """All rows -> facts for meta.json: the longest answer, EOS with it, and how many rows of
    validation are among those of training, prompt and answer."""
    seen: set[bytes] = set()
    counts = {"longest_answer": 0, "val_rows_in_train": 0}
    for split, split_rows in rows.items():
        for ids, given in split_rows:
            out.row(split, ids, given)
            counts["longest_answer"] = max(counts["longest_answer"], len(ids) - given)
            key = np.array(ids, np.uint16).tobytes()
            if split == "train":
                seen.add(key)
            elif split == "val":
                counts["val_rows_in_train"] += key in seen
    return counts


def print_splits(out: CorpusWriter) -> None:
    """The size of each split that was written, and how much validation has of training."""
    for split, count in out.counts.items():
        print(f"  {split}: {count['rows']:,} rows of up to {count['longest']} ids")
    same = out.info["val_rows_in_train"]
    print(f"  rows of validation that are among those of training: {same}")


# ---- sudoku and addition -------------------------------------------------------------------------


MISSES = 1000  # draws in a row without a new question, after which there counts as none


@dataclass(frozen=True)
class PuzzlesConfig:
    """The options of `tasks/puzzles.py`."""

    task: Literal["sudoku", "addition"] = "sudoku"  # what the rows are
    size: int = 4  # of sudoku: 4 or 9 rows and columns
    givens: str = ""  # of sudoku: how many digits a board shows, N or N-M; empty: 4, or 45 of 9x9
    digits: int = 8  # of addition: of each number
    train: int = 50_000  # rows; some may be alike where few are possible
    val: int = 1000  # rows, all different, of each split that is held out
    seed: int = 42  # of all draws
    dataset: str = ""  # folder of the corpus, below data_dir; empty: sudoku4, sudoku9, addition
    data_dir: str = "data"  # where prepared corpora live

    def __post_init__(self):
        require(self, "size", self.size in sudoku.FEWEST, "4 or 9")
        require(self, "digits", 1 <= self.digits <= 100, "between 1 and 100")
        for key in ("train", "val"):
            require(self, key, getattr(self, key) >= 1, "at least 1")
        require(self, "seed", self.seed >= 0, "at least 0")
        few, most = sudoku.FEWEST[self.size], self.size**2 - 1
        rule = f"N or N-M, between {few} and {most} for boards of {self.size}x{self.size}"
        span = re.fullmatch(r"(\d{1,3})(?:-(\d{1,3}))?", self.givens or "4", re.ASCII)
        require(self, "givens", span is not None, rule)
        span = self.span()
        require(self, "givens", few <= span.start < span.stop <= most + 1, rule)

    def span(self) -> range:
        """The numbers of givens that a board may have."""
        first, _, last = (self.givens or {4: "4", 9: "45"}[self.size]).partition("-")
        return range(int(first), int(last or first) + 1)

    def folder(self) -> Path:
        """Where the corpus goes."""
        name = f"sudoku{self.size}" if self.task == "sudoku" else self.task
        return Path(self.data_dir) / (self.dataset or name)


Draw = Callable[[str], tuple[str, str]]  # split -> a question of it and its answer


def sudoku_draw(cfg: PuzzlesConfig, rng: random.Random) -> Draw:
    """Boards, and their only solutions."""
    puzzles = sudoku.Puzzles(cfg.size, cfg.span(), rng)

    def draw(split: str) -> tuple[str, str]:
        givens, solution = puzzles.draw(split)
        return "".join(map(str, givens)), "".join(map(str, solution))

    return draw


def addition_draw(cfg: PuzzlesConfig, rng: random.Random) -> Draw:
    """Sums of two numbers. Each is drawn evenly; in the split carry the second has, but for its
    last digit, the digits of the first one's difference from 99...9."""
    n = cfg.digits

    def draw(split: str) -> tuple[str, str]:
        a, b = rng.randrange(10**n), rng.randrange(10**n)
        if split == "carry":
            b = 10**n - 1 - a - (10**n - 1 - a) % 10 + b % 10
        return f"{a:0{n}}+{b:0{n}}=", f"{a + b:0{n + 1}}"

    return draw


def questions(cfg: PuzzlesConfig) -> tuple[Symbols, dict[str, list[tuple[str, str]]]]:
    """The tokenizer, and the questions and answers of each split. Questions that are held out are
    all different, and none is in training. Raises UserError if there are not enough of them."""
    rng = random.Random(cfg.seed)
    if cfg.task == "sudoku":
        tokenizer, draw = Symbols([str(d) for d in range(cfg.size + 1)]), sudoku_draw(cfg, rng)
        sizes = {"train": cfg.train, "val": cfg.val}
    else:
        tokenizer, draw = Symbols(list("0123456789+=")), addition_draw(cfg, rng)
        sizes = {"train": cfg.train, "val": cfg.val, "carry": cfg.val}
    bar = tqdm(total=sum(sizes.values()), unit="row", disable=not sys.stdout.isatty(), leave=False)
    splits: dict[str, list[tuple[str, str]]] = {}
    seen: set[str] = set()
    for split, count in sizes.items():
        rows, misses = splits.setdefault(split, []), 0
        while len(rows) < count:
            question, answer = draw(split)
            if split != "train" and question in seen:
                misses += 1
                if misses == MISSES:
                    problem = f"val={cfg.val}: only {len(rows)} questions of {split} were found"
                    raise UserError(f"{problem} that training does not have; ask for fewer of both")
                continue
            seen.add(question)
            misses = 0
            rows.append((question, answer))
            bar.update()
    bar.close()
    return tokenizer, splits


def main(argv: list[str]) -> None:
    cfg, origins = load(PuzzlesConfig, argv)
    for key in ("digits",) if cfg.task == "sudoku" else ("size", "givens"):
        if key in origins:
            raise UserError(f"{key} ({origins[key]}): not an option of task={cfg.task}")
    folder = cfg.folder()
    if folder.exists():
        raise UserError(f"{folder} exists already; remove it to prepare the corpus anew")
    tokenizer, splits = questions(cfg)
    info: dict[str, Any] = {"task": cfg.task, "source": "tasks.puzzles", "seed": cfg.seed}
    if cfg.task == "sudoku":
        info |= {"size": cfg.size, "givens": [cfg.span()[0], cfg.span()[-1]]}
    else:
        info |= {"digits": cfg.digits}
    rows = {split: (row_of(tokenizer, *map(tokenizer.encode, pair)) for pair in some)
            for split, some in splits.items()}  # fmt: skip
    with CorpusWriter(folder, tokenizer, **info) as out:
        out.info |= write(out, rows)
    longest = out.info["longest_answer"]
    print(f"{folder}: {tokenizer.vocab_size} ids, answers of up to {longest}")
    print_splits(out)


if __name__ == "__main__":
    run(main)
