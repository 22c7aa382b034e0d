"""Watching a sampler.

view.py       frames as an animation in the terminal, or as a GIF
story.py      frames -> the life of every token, and what it was drawn from
page.py       such stories as one HTML page with a slider
"""
