"""Models of code changes: the prompt is a file and a commit message, the target its hunks.

patch.py      patches of one file: parse, apply all of one or nothing, make, write the result
history.py    changes of files in a git repository, read by git's plumbing
rows.py       a change as a prompt and a target, and how good a written patch is
sources.py    where changes come from: git, JSON lines, datasets of the hub
saved.py      rows as the `datasets` library keeps them
prepare.py    `python -m patches.prepare` makes the corpus
commands.py   what sample.py and evaluate.py do with a model of patches
"""
