# Sudoku of 4x4 cells with four givens, the fewest that a board with one solution can have. Data and
# size only: one layer, which can take one step of reasoning, so that the order has to do the rest.
#
#   python train.py config/sudoku4.py config/objective/mdlm.py
#
# Expected of 1,000 boards after 1,600 steps, 56 s of one thread of an AMD EPYC: 100 % solved in
# order of confidence, 13 % in random order. With objective/ar.py 27 %, and 88 % with two layers.
from config.star_tiny import *  # noqa: F403

dataset = "sudoku4"
prepare = "-m tasks.puzzles --task=sudoku --size=4 --givens=4"
block_size = 34

n_layer = 1
max_iters = 1600
eval_interval = 800
