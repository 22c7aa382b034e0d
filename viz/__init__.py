"""Watching a sampler.

view.py       frames as an animation in the terminal, or as a GIF
recorder.py   what a sampler drew its tokens from, for whoever asks
story.py      frames -> the life of every token
page.py       such stories as one HTML page with a slider
"""
