"""Cascades: keywords first, then the text around them, each stage a model of its own.

stages.py   which tokens a stage keeps; `python -m cascade.stages` makes the corpus of a stage
chain.py    stages sampled in a row: `python sample.py --cascade=A,B,C`
"""
