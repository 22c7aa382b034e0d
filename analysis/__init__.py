"""Measuring models, beyond evaluate.py.

probes.py    how well a model knows tokens, by how much of their text was destroyed
compare.py   checkpoints of one corpus side by side: `python evaluate.py --compare=A,B`
holes.py     a masked model in holes of the wrong length: `python -m analysis.holes`
coverage.py  how far to trust the error bars: `python -m analysis.coverage`
curves.py    right answers against network calls: `python -m analysis.curves`
schedules.py all unmasking schedules in one figure: `python -m analysis.schedules`
orders.py    right answers by the order of writing: `python -m analysis.orders`
repair.py    errors in finished texts that a model repairs: `python -m analysis.repair`
report.py    a checkpoint as one page: `python evaluate.py --report=FOLDER`
results.py   every family on the same rows: `python -m analysis.results`
harness.py   any checkpoint in EleutherAI's lm-eval: `python -m analysis.harness`
"""
