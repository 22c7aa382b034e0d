# Sudoku of 9x9 cells with 45 givens. Data and size only.
#
#   python train.py config/sudoku9.py config/objective/mdlm.py
#
# Expected of 300 boards after 2,000 steps, 4.6 minutes of one thread of an AMD EPYC: 96 % solved in
# order of confidence, 13 % in random order. With objective/ar.py 15 %.
from config.star_tiny import *  # noqa: F403

dataset = "sudoku9"
prepare = "-m tasks.puzzles --task=sudoku --size=9 --givens=45 --train=20000"
block_size = 164

n_layer = 2
batch_size = 32
max_iters = 2000
eval_interval = 1000
