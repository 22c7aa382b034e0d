"""python -m bench: see bench/speed.py."""

from bench.speed import main
from configurator import run

run(main)
