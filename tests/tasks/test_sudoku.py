"""tasks/sudoku.py, and the corpora of sudoku and addition that tasks/puzzles.py makes."""

import random
from collections import Counter
from itertools import combinations, permutations, product
from pathlib import Path
from typing import Any

import pytest

from configurator import UserError
from corpus import Corpus
from tasks import puzzles, sudoku
from tasks.puzzles import Pair, PuzzlesConfig, questions, scores
from tokenizer import Symbols

PUZZLE9 = tuple(map(int, (
    "530070000600195000098000060800060003400803001700020006060000280000419005000080079"
)))  # fmt: skip
SOLUTION9 = tuple(map(int, (
    "534678912672195348198342567859761423426853791713924856961537284287419635345286179"
)))  # fmt: skip


def valid(board: tuple[int, ...], size: int) -> bool:
    """Every row, column and box holds each digit once: by the rules, not by the solver's units."""
    box, digits = {4: 2, 9: 3}[size], set(range(1, size + 1))
    grid = [board[k : k + size] for k in range(0, size * size, size)]
    corners = product(range(0, size, box), repeat=2)
    boxes = [{grid[a + i][b + j] for i in range(box) for j in range(box)} for a, b in corners]
    return all(set(group) == digits for group in [*grid, *zip(*grid, strict=True), *boxes])


def every_board() -> list[tuple[int, ...]]:
    """The full boards of 4x4, out of all choices of four rows."""
    rows = list(permutations(range(1, 5)))
    boards = (sum(four, ()) for four in product(rows, repeat=4))
    return [board for board in boards if len(set(board[::4])) == 4 and valid(board, 4)]


@pytest.fixture(scope="module")
def all_boards() -> list[tuple[int, ...]]:
    return every_board()


def agreeing(board: tuple[int, ...], boards: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    return [b for b in boards if all(g in (0, d) for g, d in zip(board, b, strict=True))]


# ---- the solver ----------------------------------------------------------------------------------


def test_all_boards_of_4x4(all_boards: list):
    assert len(all_boards) == 288
    assert sorted(sudoku.all_small_boards()) == all_boards


def test_the_solver_finds_all_that_brute_force_finds(all_boards: list):
    """Boards of any number of givens, with none, one and many solutions."""
    rng, seen = random.Random(0), Counter()
    for _ in range(400):
        board = list(rng.choice(all_boards))
        for cell in rng.sample(range(16), rng.randint(8, 14)):
            board[cell] = 0
        for cell in rng.sample(range(16), rng.randint(0, 1)):
            board[cell] = rng.randint(1, 4)
        wanted = agreeing(tuple(board), all_boards)
        assert sorted(sudoku.solve(tuple(board), limit=300)) == wanted
        assert len(sudoku.solve(tuple(board), limit=2)) == min(2, len(wanted))
        assert sudoku.is_unique(tuple(board)) == (len(wanted) == 1)
        seen[min(2, len(wanted))] += 1
    assert min(seen[k] for k in range(3)) > 20


def test_9x9():
    assert sudoku.solve(PUZZLE9, limit=2) == [SOLUTION9] and valid(SOLUTION9, 9)
    assert sudoku.solve((5, 3, 5, *PUZZLE9[3:])) == []  # twice in a row
    assert sudoku.solve((*PUZZLE9[:9], 6, 5, *PUZZLE9[11:])) == []  # twice in a box
    boards = [sudoku.solve((0,) * 81, rng=random.Random(k))[0] for k in range(5)]
    assert len(set(boards)) == 5 and all(valid(board, 9) for board in boards)


# ---- the generator -------------------------------------------------------------------------------


def chi_square(counts: list[int]) -> float:
    """Of a uniform law, in standard deviations from its mean: beyond 4 it is not one."""
    mean, free = sum(counts) / len(counts), len(counts) - 1
    return (sum((c - mean) ** 2 / mean for c in counts) - free) / (2 * free) ** 0.5


def test_solutions_are_drawn_evenly():
    """Each solution of a split is as frequent as the others. A search that tries digits in random
    order would not do: it comes out at 96 of the 288 twice as often as at the others."""
    source = sudoku.Puzzles(4, range(4, 5), random.Random(1))
    for split, number in (("train", 252), ("val", 36)):
        drawn = Counter(source.solution(split) for _ in range(100 * number))
        assert len(drawn) == number and abs(chi_square(list(drawn.values()))) < 4
    rng = random.Random(2)
    searched = Counter(sudoku.solve((0,) * 16, rng=rng)[0] for _ in range(288 * 20))
    assert chi_square([searched[b] for b in sudoku.all_small_boards()]) > 10


@pytest.mark.parametrize("givens", [4, 5, 8, 15])
def test_every_board_has_one_solution(givens: int, all_boards: list):
    source = sudoku.Puzzles(4, range(givens, givens + 1), random.Random(3))
    for _ in range(60):
        board, solution = source.draw("train")
        assert sum(map(bool, board)) == givens and agreeing(board, all_boards) == [solution]


def test_any_board_of_four_givens_can_be_dug(all_boards: list):
    """Those of one solution are all that an enumeration finds, and none is much more frequent: a
    generator that always keeps the same cells would pass the other tests."""
    solution = all_boards[17]  # one of the 96 that have 12 such boards; the others have 128
    places = (set(four) for four in combinations(range(16), 4))
    boards = (tuple(d if k in four else 0 for k, d in enumerate(solution)) for four in places)
    wanted = {board for board in boards if len(agreeing(board, all_boards)) == 1}
    rng = random.Random(4)
    dug = Counter(filter(None, (sudoku.dig(solution, 4, rng) for _ in range(500))))
    assert set(dug) == wanted and len(wanted) == 12
    assert max(dug.values()) < 4 * min(dug.values())


def one_by_one(solution: tuple[int, ...], givens: int, rng: random.Random) -> tuple | None:
    """What `dig` says it does."""
    cells, order = list(solution), list(range(len(solution)))
    rng.shuffle(order)
    for cell in order:
        if cells.count(0) == len(cells) - givens:
            break
        cells[cell] = 0
        if not sudoku.is_unique(tuple(cells)):
            cells[cell] = solution[cell]
    return tuple(cells) if cells.count(0) == len(cells) - givens else None


@pytest.mark.parametrize("givens", [26, 30, 45, 80])
def test_many_at_once_is_one_by_one(givens: int):
    for seed in range(4):
        [solution] = sudoku.solve((0,) * 81, rng=random.Random(seed))
        board = sudoku.dig(solution, givens, random.Random(seed))
        assert board == one_by_one(solution, givens, random.Random(seed))
        assert board is None or sudoku.solve(board, limit=2) == [solution]


# ---- the corpus ----------------------------------------------------------------------------------


def prepare(folder: Path, *flags: str) -> Corpus:
    puzzles.main([f"--data_dir={folder}", "--dataset=c", *flags])
    return Corpus(folder / "c", verify=True)


def texts(corpus: Corpus, split: str) -> list[tuple[str, str]]:
    """Question and answer of each row, framed as they should be."""
    [shard] = corpus.splits[split]
    data, special = shard.data().tolist(), corpus.specials
    pairs = []
    for start, given, length in shard.index().tolist():
        ids = data[start : start + length]
        assert ids[given - 1] == special["bos"] and ids[-1] == special["eos"]
        decode = corpus.tokenizer.decode
        pairs.append((decode(ids[: given - 1]), decode(ids[given:])))
    return pairs


def test_sudoku_rows(tmp_path: Path, capsys: Any):
    flags = ("--givens=5-7", "--train=500", "--val=60")
    corpus = prepare(tmp_path, *flags)
    train, val = (texts(corpus, split) for split in ("train", "val"))
    assert (len(train), len(val)) == (500, 60)
    assert not {answer for _, answer in train} & {answer for _, answer in val}
    assert len({question for question, _ in val}) == 60
    for question, answer in train + val:
        board, solution = (tuple(map(int, text)) for text in (question, answer))
        assert sudoku.is_unique(board) and valid(solution, 4)
        assert all(g in (0, d) for g, d in zip(board, solution, strict=True))
    assert {sum(c != "0" for c in question) for question, _ in train} == {5, 6, 7}
    assert corpus.meta["task"] == "sudoku" and corpus.meta["longest_answer"] == 17
    assert corpus.meta["givens"] == [5, 7] and corpus.vocab_size == 5 + 3
    assert "60 rows of up to 34 ids" in capsys.readouterr().out
    again = prepare(tmp_path / "again", *flags)
    assert texts(again, "train") == train and texts(again, "val") == val
    other = prepare(tmp_path / "other", *flags, "--seed=1")
    assert texts(other, "train") != train


def test_sudoku_rows_of_9x9(tmp_path: Path):
    corpus = prepare(tmp_path, "--size=9", "--givens=36", "--train=8", "--val=4")
    pairs = texts(corpus, "train") + texts(corpus, "val")
    assert len({answer for _, answer in pairs}) == 12
    for question, answer in pairs:
        board = tuple(map(int, question))
        assert question.count("0") == 45 and valid(tuple(map(int, answer)), 9)
        assert sudoku.solve(board, limit=2) == [tuple(map(int, answer))]


def test_a_solution_of_training_is_no_solution_of_validation(monkeypatch: pytest.MonkeyPatch):
    """Of 9x9, too, where chance alone would never show it."""
    drawn = iter([[SOLUTION9], [SOLUTION9], [SOLUTION9[::-1]]])
    source = sudoku.Puzzles(9, range(80, 81), random.Random(0))
    monkeypatch.setattr(sudoku, "solve", lambda *_, **__: next(drawn))
    assert source.solution("train") == SOLUTION9
    assert source.solution("val") == SOLUTION9[::-1]


def test_addition_rows(tmp_path: Path):
    corpus = prepare(tmp_path, "--task=addition", "--digits=5", "--train=400", "--val=100")
    splits = {split: texts(corpus, split) for split in ("train", "val", "carry")}
    for split, pairs in splits.items():
        for question, answer in pairs:
            a, b = question.removesuffix("=").split("+")
            assert len(a) == len(b) == 5 and len(answer) == 6 and int(a) + int(b) == int(answer)
            nines = all(int(x) + int(y) == 9 for x, y in zip(a[:-1], b[:-1], strict=True))
            assert nines == (split == "carry")
    asked = {split: {question for question, _ in pairs} for split, pairs in splits.items()}
    assert len(asked["val"]) == len(asked["carry"]) == 100
    assert not asked["train"] & (asked["val"] | asked["carry"])
    # a carry that runs through all digits, and none, both come up often
    assert 20 < sum(answer[0] == "1" for _, answer in splits["carry"]) < 80
    first = Counter(question[0] for question, _ in splits["train"])
    assert chi_square([first[d] for d in "0123456789"]) < 4
    assert corpus.meta["digits"] == 5 and corpus.meta["longest_answer"] == 7


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags, words", [
    ("--size=6", "size must be 4 or 9"),
    ("--givens=3", "givens must be N or N-M, between 4 and 15 for boards of 4x4, got '3'"),
    ("--givens=16", "between 4 and 15"),
    ("--givens=8-6", "between 4 and 15"),
    ("--givens=some", "N or N-M"),
    ("--givens=-5", "N or N-M"),
    ("--givens=٥", "N or N-M"),  # a digit, but none of ours
    ("--size=9 --givens=16", "between 17 and 80"),
    ("--size=9 --givens=17 --train=1", "no 9x9 board with 17 of them in"),
    ("--train=0", "train must be at least 1"),
    ("--givens=15 --val=600 --train=9", "questions of val were found"),  # 36 solutions, 16 cells
    ("--digits=3", "digits (command line): not an option of task=sudoku"),
    ("--task=addition --size=9", "size (command line): not an option of task=addition"),
    ("--task=addition --digits=0", "digits must be between 1 and 100"),
    ("--task=addition --digits=1 --train=2000", "questions of val were found"),
])  # fmt: skip
def test_refused(flags: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In one line, and nothing is written."""
    monkeypatch.setattr(sudoku, "TRIES", 3)
    with pytest.raises(UserError) as caught:
        puzzles.main([*flags.split(), f"--data_dir={tmp_path}"])
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_corpus_is_not_overwritten(tmp_path: Path):
    prepare(tmp_path, "--train=3", "--val=3", "--givens=8")
    with pytest.raises(UserError, match="exists already"):
        prepare(tmp_path, "--train=3", "--val=3", "--givens=8")


# ---- scores --------------------------------------------------------------------------------------


def test_solved_boards(all_boards: list):
    """Only the solution is right: no other valid board, no board with an error, none without an
    end, none with a blank."""
    tokenizer, splits = questions(PuzzlesConfig(train=1, val=1))
    [(question, answer)] = splits["val"]
    ids, special = tokenizer.encode(answer), tokenizer.specials
    prompt, eos = [*tokenizer.encode(question), special["bos"]], special["eos"]

    def solved(found: list[int]) -> tuple[float, float]:
        one = scores("sudoku", tokenizer, [Pair(prompt, found, [*ids, eos])])
        return one["solved"], one["exact_match"]

    assert solved([*ids, eos]) == (1, 1)
    others = (board for board in all_boards if "".join(map(str, board)) != answer)
    assert {solved([*board, eos]) for board in others} == {(0, 0)}  # a digit's id is the digit
    for cell, digit in product(range(16), range(5)):
        changed = [*ids[:cell], digit, *ids[cell + 1 :], eos]
        assert solved(changed) == ((1, 1) if digit == ids[cell] else (0, 0))
    for broken in (ids, [*ids[:-1], eos], [*ids, 1, eos], [special["pad"], *ids, eos], [eos]):
        assert solved(broken) == (0, 0)


def test_a_board_of_two_solutions_may_have_either():
    """`solved` goes by the rules, not by the wanted answer."""
    tokenizer = Symbols(list("01234"))
    a, b, *_ = sudoku.all_small_boards()
    givens = [x if x == y else 0 for x, y in zip(a, b, strict=True)]
    eos = tokenizer.specials["eos"]
    pair = Pair([*givens, tokenizer.specials["bos"]], [*a, eos], [*b, eos])
    one = scores("sudoku", tokenizer, [pair])
    assert (one["solved"], one["exact_match"]) == (1, 0)


def test_sums_are_exact(tmp_path: Path):
    tokenizer, _ = questions(PuzzlesConfig(task="addition", digits=2, train=1, val=1))
    eos = tokenizer.specials["eos"]
    prompt, wanted = tokenizer.encode("95+07="), [*tokenizer.encode("102"), eos]
    for text, right in (("102", 1), ("101", 0), ("0102", 0), ("201", 0), ("10", 0)):
        one = scores("addition", tokenizer, [Pair(prompt, [*tokenizer.encode(text), eos], wanted)])
        assert one["exact_match"] == right
