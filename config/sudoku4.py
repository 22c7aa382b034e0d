# Sudoku of 4x4 cells with four givens, the fewest that a board with one solution can have. Data and
# size only.
#
#   python train.py config/sudoku4.py config/objective/mdlm.py
from config.star_tiny import *  # noqa: F403

dataset = "sudoku4"
prepare = "-m tasks.puzzles --task=sudoku --size=4 --givens=4"
block_size = 34

n_layer = 2
max_iters = 1600
eval_interval = 800
