"""Corpora of questions that are hard to answer from left to right, and of a small grammar.

    python -m tasks.stars --level=easy                            # data/star_easy
    python -m tasks.stars --degree=4 --path=6 --variable          # data/vstar_4_6
    python -m tasks.stars --task=grammar                          # data/grammar
    python -m tasks.stars --task=zebra --path=train.jsonl,test.jsonl
    python -m tasks.stars --task=countdown --path=dhruveshpatel/countdown-4

Levels of star graphs are tiny, small, easy, medium, hard (LEVELS). The last three are drawn as
published, graph by graph: 50,000 for training, and the 5,000 of the test set for validation, on
which published numbers are. The 100 graphs of the published validation set are a split of their
own, `evaluate.py --split=validation`. --degree and --path are the arms and the nodes of each, which
--variable varies from half as many on.

--path names files with input and output in each row (.jsonl, .json or .parquet): one for training
and one for validation, or one of which a twentieth is validation; or a dataset of the hub. Zebra
puzzles and countdown have one by default; star graphs as published there have edge_list and path.
"""

import random
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Iterator, Literal, NamedTuple

import numpy as np

from configurator import UserError, load, require, run
from corpus import CorpusWriter
from prepare.files import COLUMNS, entries, kind_of
from prepare.texts import Hub, dataset_rows, split_of
from prepare_sft import records
from tasks.grammar import WORDS
from tasks.grammar import splits as sentences
from tasks.puzzles import HUB, Rows, alphabet, pairs, print_splits, row_of, write
from tokenizer import Symbols

# ==================================================================================================
# Star graphs: find the path from a source to a goal through a graph of arms that share one node
#
# The prompt is all edges in random order, then source and goal; the answer is the edges of the
# path (Bachmann and Nagarajan 2024, arXiv 2403.06963; as published with ILM, arXiv 2505.05755).
# From left to right the first edge of the answer is a guess among the arms until the path is known
# to its end.
#
#     level    arms  nodes per arm  node ids
#     tiny     2     3              12        ours: learnt in a minute on two cores
#     small    2     4              12        ours
#     easy     3     5              20        the source is the centre, as in tiny and small
#     medium   3     3 to 6         20        the centre lies anywhere on the path
#     hard     5     6 to 12        56
#
# Graphs are drawn as published: from numpy's legacy generator and Python's, in the published
# order, so that the same seeds give the same graphs. Neither of the global generators is touched.
# ==================================================================================================


LEVELS: dict[str, dict[str, int]] = {
    "tiny": {"degree": 2, "pathlength": 3, "vocab_size": 12},
    "small": {"degree": 2, "pathlength": 4, "vocab_size": 12},
    "easy": {"degree": 3, "pathlength": 5, "vocab_size": 20},
    "medium": {
        **{"degree": 3, "min_pathlength": 3, "max_pathlength": 6},
        **{"vocab_size": 20, "min_plan_length": 2},
    },
    "hard": {
        **{"degree": 5, "min_pathlength": 6, "max_pathlength": 12},
        **{"vocab_size": 56, "min_plan_length": 5},
    },
}


PUBLISHED = ("easy", "medium", "hard")  # drawn one after another from one stream
SIZES = {"train": 50_000, "validation": 100, "test": 5_000}  # of each of them, in this order
NAMES = {"test": "val", "validation": "dev"}  # the published splits -> ours
OURS = {"tiny": (50_000, 2_000), "small": (200_000, 2_000)}  # training and validation graphs
GRAPH_SEED = 42  # of the published sets, and of ours


class Graph(NamedTuple):
    """A graph as it stands in a prompt."""

    edges: list[tuple[int, int]]  # in the order of the prompt
    path: list[int]  # nodes from the source to the goal

    def prompt(self) -> list[int]:
        """The edges, the source and the goal as node ids."""
        return [*(node for edge in self.edges for node in edge), self.path[0], self.path[-1]]

    def answer(self) -> list[int]:
        """The edges of the path: each inner node comes twice."""
        return [node for edge in pairwise(self.path) for node in edge]

    def key(self) -> tuple:
        """The same for the same question, whatever the order of its edges is."""
        return (*sorted(self.edges), (self.path[0], self.path[-1]))


def even_arms(
    rng: np.random.RandomState, degree: int, pathlength: int, vocab_size: int
) -> list[list[int]]:
    """Arms of `pathlength` nodes out of `vocab_size` from a common source; the first is the path.
    Its two ends are drawn before what lies between them."""
    assert vocab_size >= degree * (pathlength - 1) + 1, (degree, pathlength, vocab_size)
    ends = [rng.randint(vocab_size), rng.randint(vocab_size)]
    while ends[0] == ends[1]:
        ends[1] = rng.randint(vocab_size)
    used = set(ends)

    def fresh() -> int:
        while (node := rng.randint(vocab_size)) in used:
            pass
        used.add(node)
        return node

    arms = [[ends[0], *(fresh() for _ in range(pathlength - 2)), ends[1]]]
    for _ in range(degree - 1):
        arms.append([ends[0], *(fresh() for _ in range(pathlength - 1))])
        rng.randint(vocab_size)  # the published code draws once more than it needs
    return arms


def uneven_arms(
    rng: np.random.RandomState,
    degree: int,
    min_pathlength: int,
    max_pathlength: int,
    vocab_size: int,
    min_plan_length: int,
) -> list[list[int]]:
    """Arms of different lengths through a common node, which has at least `min_plan_length` nodes
    of each arm behind it; the first arm is the path."""
    assert vocab_size >= degree * (max_pathlength - 1) + 1, (degree, max_pathlength, vocab_size)
    lengths = rng.randint(min_pathlength, max_pathlength + 1, degree)
    joints = [rng.randint(length - min_plan_length) for length in lengths]
    nodes = rng.choice(vocab_size, lengths.sum() - degree + 1, replace=False).tolist()
    centre, rest = nodes[0], iter(nodes[1:])
    arms = [list(islice(rest, int(length) - 1)) for length in lengths]
    return [[*arm[:joint], centre, *arm[joint:]] for arm, joint in zip(arms, joints, strict=True)]


def graphs(seed: int, *levels: tuple[dict[str, int], int]) -> Iterator[Graph]:
    """Graphs of (arguments, how many), one level after another, from one stream of draws."""
    nodes, order = np.random.RandomState(seed), random.Random(seed)
    for arguments, count in levels:
        arms_of = even_arms if "pathlength" in arguments else uneven_arms
        for _ in range(count):
            arms = arms_of(nodes, **arguments)
            edges = [edge for arm in arms for edge in pairwise(arm)]
            order.shuffle(edges)
            yield Graph(edges, arms[0])


def published(level: str) -> dict[str, list[Graph]]:
    """The published splits of easy, medium or hard. They share one stream, so those that come
    before in it are drawn, too."""
    each = [(LEVELS[name], sum(SIZES.values())) for name in PUBLISHED]
    before = PUBLISHED.index(level)
    rest = islice(graphs(GRAPH_SEED, *each[: before + 1]), before * sum(SIZES.values()), None)
    return {split: list(islice(rest, count)) for split, count in SIZES.items()}


def ours(arguments: dict[str, int], sizes: tuple[int, int]) -> dict[str, list[Graph]]:
    """Training and validation graphs of any size; no question is in both, and none twice in
    validation, in whatever order its edges are."""
    stream = graphs(GRAPH_SEED, (arguments, 1 << 62))
    train = list(islice(stream, sizes[0]))
    seen = {graph.key() for graph in train}
    val: list[Graph] = []
    while len(val) < sizes[1]:
        graph = next(stream)
        if graph.key() not in seen:
            seen.add(graph.key())
            val.append(graph)
    return {"train": train, "val": val}


# ==================================================================================================
# The corpus
# ==================================================================================================


SHARE, SEED = 0.05, 42  # of validation, where all rows are in one file


@dataclass(frozen=True)
class StarsConfig:
    """The options of `tasks/stars.py`."""

    level: Literal["tiny", "small", "easy", "medium", "hard"] = "easy"  # of star graphs
    task: Literal["star", "grammar", "zebra", "countdown"] = "star"  # what the rows are
    degree: int = 0  # arms of star graphs of other sizes; 0: by the level
    path: str = ""  # with a degree, nodes per arm; else files or a dataset of the hub: see above
    variable: bool = False  # with a degree: arms of different lengths, crossing anywhere
    node_ids: int = 0  # with a degree: how many there are; 0: as many as a graph may have
    dataset: str = ""  # folder of the corpus, below data_dir; empty: star_easy, grammar ...
    data_dir: str = "data"  # where prepared corpora live
    huggingface_cache_dir: str = ""  # where downloads go; empty: the library's own place

    def __post_init__(self):
        require(self, "path", self.task != "grammar" or not self.path, "left out for the grammar")
        if self.degree:
            require(self, "task", self.task == "star", "star, with a degree")
            require(self, "degree", self.degree >= 2, "at least 2")
            short, rule = 3 + self.variable, "nodes per arm with a degree: at least"
            good = self.path.isdecimal() and int(self.path) >= short
            require(self, "path", good, f"{rule} {short}")
            most = self.degree * (int(self.path) - 1) + 1
            require(
                self, "node_ids", self.node_ids in (0, *range(most, 1 << 16)), f"at least {most}"
            )
            return
        for key in ("variable", "node_ids"):
            require(self, key, not getattr(self, key), "left out without a degree")
        few = len(entries(self.path)) <= 2
        require(self, "path", few, "one or two files, or a dataset of the hub")

    def graphs(self) -> dict[str, int]:
        """The arguments of `even_arms` or `uneven_arms`."""
        if not self.degree:
            return LEVELS[self.level]
        longest = int(self.path)
        ids = self.node_ids or self.degree * (longest - 1) + 1
        size = {"degree": self.degree, "vocab_size": ids}
        if not self.variable:
            return size | {"pathlength": longest}
        shortest = max(3, longest // 2)
        more = {"min_pathlength": shortest, "max_pathlength": longest}
        return size | more | {"min_plan_length": shortest - 1}

    def folder(self) -> Path:
        """Where the corpus goes."""
        name = f"star_{self.level}" if self.task == "star" else self.task
        if self.degree:
            name = f"{'v' * self.variable}star_{self.degree}_{self.path}"
        return Path(self.data_dir) / (self.dataset or name)


# ---- files and the hub ---------------------------------------------------------------------------


def told_rows(cfg: StarsConfig) -> dict[str, Iterator[dict]]:
    """The rows of --path, or of the usual dataset, of both splits; read lazily."""
    path = cfg.path or HUB[cfg.task]
    names = [Path(name).expanduser() for name in entries(path)]
    if not any(name.exists() for name in names) and path.count("/") == 1 and "," not in path:
        splits = {"train": "train", "val": "test"}
        hubs = {s: Hub(path, split=name) for s, name in splits.items()}
        cache = cfg.huggingface_cache_dir
        return {s: dataset_rows(hub, cache, "--path=FILE") for s, hub in hubs.items()}
    for name in names:
        if not name.is_file():
            raise UserError(f"path={path}: no such file: {name}")
    if len(names) == 2:
        return {s: file_rows(name) for s, name in zip(("train", "val"), names, strict=True)}

    def part(split: str) -> Iterator[dict]:  # equal questions are on the same side
        for row in file_rows(names[0]):
            question = str(row.get("input", row.get("edge_list")))
            if split_of(question.encode("utf-8", "replace"), SHARE, SEED) == split:
                yield row

    return {split: part(split) for split in ("train", "val")}


def file_rows(path: Path) -> Iterator[dict]:
    return dataset_rows(path) if kind_of(path) == COLUMNS else records(path)


# ---- rows ----------------------------------------------------------------------------------------


def star_rows(cfg: StarsConfig, tokenizer: Symbols) -> dict[str, Rows]:
    """Rows of star graphs; a node's id is its number."""
    if cfg.degree:
        graphs = ours(cfg.graphs(), OURS["tiny"])
    elif cfg.path:
        parts = told_rows(cfg)
        graphs = {split: map(_told_graph, rows) for split, rows in parts.items()}
    elif cfg.level in PUBLISHED:
        parts = published(cfg.level)
        graphs = {"train": parts["train"]} | {ours: parts[name] for name, ours in NAMES.items()}
    else:
        graphs = ours(cfg.graphs(), OURS[cfg.level])
    return {
        split: (row_of(tokenizer, graph.prompt(), graph.answer()) for graph in some_graphs)
        for split, some_graphs in graphs.items()
    }


def _told_graph(row: dict) -> Graph:
    """A row of a published set. Raises UserError."""
    edges, path = row.get("edge_list"), row.get("path")
    try:
        graph = Graph([(int(a), int(b)) for a, b in edges], [int(node) for node in path])
    except (TypeError, ValueError):
        raise UserError(f"a star graph needs edge_list and path, not {str(row)[:60]}") from None
    if len(graph.path) < 2 or not set(pairwise(graph.path)) <= set(graph.edges):
        raise UserError(f"the path of a star graph is none of its edges: {str(row)[:60]}")
    return graph


def sentence_rows(tokenizer: Symbols) -> dict[str, Rows]:
    """Rows BOS sentence EOS; words are numbered as in the grammar."""
    return {split: (row_of(tokenizer, [], list(s)) for s in texts)
            for split, texts in sentences().items()}  # fmt: skip


def puzzle_rows(cfg: StarsConfig, tokenizer: Symbols) -> dict[str, Rows]:
    """Rows of zebra puzzles or of countdown. A symbol that they should not have is refused with
    the number of its row."""

    def rows(split: str, puzzles: Iterator[dict]) -> Iterator[tuple[list[int], int]]:
        for number, (prompt, answer) in enumerate(pairs(puzzles, f"{split} split"), 1):
            try:
                yield row_of(tokenizer, tokenizer.encode(prompt), tokenizer.encode(answer))
            except UserError as e:
                raise UserError(f"{split} split, row {number}: {e}") from None

    return {split: rows(split, puzzles) for split, puzzles in told_rows(cfg).items()}


def task_rows(cfg: StarsConfig) -> tuple[Symbols, dict[str, Rows]]:
    """The tokenizer and the rows of both splits."""
    if cfg.task == "star":
        tokenizer = Symbols([str(i) for i in range(cfg.graphs()["vocab_size"])], " ")
        return tokenizer, star_rows(cfg, tokenizer)
    if cfg.task == "grammar":
        tokenizer = Symbols(WORDS, " ")
        return tokenizer, sentence_rows(tokenizer)
    tokenizer = alphabet(cfg.task)
    return tokenizer, puzzle_rows(cfg, tokenizer)


# ---- the command ---------------------------------------------------------------------------------


def main(argv: list[str]) -> None:
    cfg, _ = load(StarsConfig, argv)
    folder = cfg.folder()
    if folder.exists():
        raise UserError(f"{folder} exists already; remove it to prepare the corpus anew")
    tokenizer, rows = task_rows(cfg)
    info = {"task": cfg.task, "source": cfg.path or "tasks.stars"}
    if cfg.task == "star":
        info |= {"graph": cfg.graphs()} if cfg.degree else {"level": cfg.level}
        if cfg.level in PUBLISHED and not cfg.degree and not cfg.path:
            info["published"] = NAMES
    with CorpusWriter(folder, tokenizer, **info) as out:
        counts = write(out, rows)
        out.info |= counts
    print(f"{folder}: {tokenizer.vocab_size} ids, answers of up to {counts['longest_answer']}")
    print_splits(out)


if __name__ == "__main__":
    run(main)
