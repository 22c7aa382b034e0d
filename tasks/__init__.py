"""Tasks whose samples can be checked.

A module here makes the corpus of its task, or scores samples of it (`scores` or `report`), and its
`evaluate` is what evaluate.py prints for such a corpus (configurator.TASKS). Read in this order:

    palindromes.py   what a palindrome is, and the rows of the demo (prepare_bytes.py writes them)
    mirror.py        samples that mirror themselves by construction
    stars.py         star graphs; `python -m tasks.stars` makes the corpora of most tasks
    puzzles.py       answers to star graphs, zebra puzzles, countdown, sudoku, addition: formats and
                     scores; `python -m tasks.puzzles` makes the corpora of the last two
    sudoku.py        boards with one solution: a solver, and how boards are drawn
    grammar.py       a small grammar of English with all of its sentences
"""
