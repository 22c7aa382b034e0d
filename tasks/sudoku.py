"""Sudoku boards with exactly one solution, of 4x4 or 9x9 cells and with any number of givens.

A board is a tuple of size * size digits, row by row, 0 for a blank. Every row, column and box of a
full board holds each of the digits 1 to size once. Solutions of 4x4 are drawn uniformly from all
288 of them. Those of 9x9, 6.67e21 of them, come from a search that tries digits in random order:
each can come up, but not all with the same probability.
"""

import random
from functools import cache
from math import isqrt

from configurator import UserError

Board = tuple[int, ...]
FEWEST = {4: 4, 9: 17}  # givens without which no board has one solution (9x9: arXiv 1201.0749)
HELD_OUT = 36  # of the 288 full boards of 4x4, an eighth, are solutions of validation only
TRIES = 200  # orders in which blanks are dug, before a number of givens counts as out of reach


@cache
def units(size: int) -> list[tuple[int, int, int]]:
    """The row, the column and the box of each cell, as numbers below 3 * size."""
    box = isqrt(size)
    return [
        (row, size + column, 2 * size + row // box * box + column // box)
        for row in range(size)
        for column in range(size)
    ]


def solve(board: Board, limit: int = 1, rng: random.Random | None = None) -> list[Board]:
    """Up to `limit` full boards that agree with the board, in a random order with `rng`; fewer only
    if there are no more. Backtracking, into the blank with the fewest candidates first."""
    size = isqrt(len(board))
    unit, cells = units(size), list(board)
    free = [(1 << size) - 1] * (3 * size)  # the digits that a unit lacks, digit d as bit d - 1
    for cell, digit in enumerate(cells):
        for u in unit[cell] if digit else ():
            if not free[u] >> (digit - 1) & 1:
                return []  # twice in this unit
            free[u] ^= 1 << (digit - 1)
    found: list[Board] = []

    def search(blanks: list[int]) -> None:
        if not blanks:
            found.append(tuple(cells))
            return
        fewest = size + 1
        for k, cell in enumerate(blanks):
            row, column, box = unit[cell]
            options = free[row] & free[column] & free[box]
            if (count := options.bit_count()) < fewest:
                fewest, best, candidates = count, k, options
                if count < 2:  # none at all, or no choice
                    break
        cell, rest = blanks[best], blanks[:best] + blanks[best + 1 :]
        digits = [d for d in range(1, size + 1) if candidates >> (d - 1) & 1]
        if rng is not None:
            rng.shuffle(digits)
        for digit in digits:
            cells[cell] = digit
            for u in unit[cell]:
                free[u] ^= 1 << (digit - 1)
            search(rest)
            for u in unit[cell]:
                free[u] ^= 1 << (digit - 1)
            if len(found) == limit:
                return

    search([cell for cell, digit in enumerate(cells) if not digit])
    return found


def is_unique(board: Board) -> bool:
    """Is there exactly one full board that agrees with this one?"""
    return len(solve(board, limit=2)) == 1


def is_solution(board: Board, givens: Board) -> bool:
    """Is the board full and valid, and does it agree with the givens?"""
    if len(board) != len(givens) or 0 in board:
        return False
    agrees = all(given in (0, digit) for digit, given in zip(board, givens, strict=True))
    return agrees and len(solve(board)) == 1  # itself; none where a unit has a digit twice


def dig(solution: Board, givens: int, rng: random.Random) -> Board | None:
    """A board with this number of givens, whose one solution this is. Digits are taken away one by
    one in a random order, but for those whose loss would leave more than one solution. None if so
    few cannot be reached in this order.

    Many are taken at once where all of them can go, else the half of them that comes first. As
    boards with more givens have no more solutions, the same cells remain as one by one."""
    order, cells = list(range(len(solution))), list(solution)
    rng.shuffle(order)
    wanted, waiting = len(solution) - givens, [order]
    while waiting and wanted:
        block = waiting.pop()
        part, later = block[:wanted], block[wanted:]
        waiting += [later] if later else []
        for cell in part:
            cells[cell] = 0
        if is_unique(tuple(cells)):
            wanted -= len(part)
            continue
        for cell in part:
            cells[cell] = solution[cell]
        half = len(part) // 2
        waiting += [part[half:], part[:half]] if half else []
    return None if wanted else tuple(cells)


@cache
def all_small_boards() -> list[Board]:
    """The 288 full boards of 4x4."""
    return solve((0,) * 16, limit=1 << 16)


class Puzzles:
    """A seeded source of boards with one solution, for training and for validation.

    No solution is used for both: of 4x4, HELD_OUT solutions are kept for validation; of 9x9, one
    that training had is drawn again.
    """

    def __init__(self, size: int, givens: range, rng: random.Random):
        self.size, self.givens, self.rng = size, givens, rng
        self.trained: set[Board] = set()
        if size == 4:
            boards = list(all_small_boards())
            rng.shuffle(boards)
            self.small = {"train": boards[HELD_OUT:], "val": boards[:HELD_OUT]}

    def solution(self, split: str) -> Board:
        if self.size == 4:
            return self.rng.choice(self.small[split])
        while True:
            [board] = solve((0,) * self.size**2, rng=self.rng)
            if split == "train":
                self.trained.add(board)
            if split == "train" or board not in self.trained:
                return board

    def draw(self, split: str) -> tuple[Board, Board]:
        """A board and its solution. The number of givens is drawn evenly from its range. Raises
        UserError if digging comes to no such board in TRIES orders."""
        solution, givens = self.solution(split), self.rng.choice(self.givens)
        for _ in range(TRIES):
            if board := dig(solution, givens, self.rng):
                return board, solution
        size = f"{self.size}x{self.size}"
        problem = f"givens: no {size} board with {givens} of them in {TRIES} tries; ask for more"
        raise UserError(problem)
