# Sums of two numbers of eight digits, the highest digit first. Data and size only.
#
#   python train.py config/addition.py config/objective/mdlm.py
from config.star_tiny import *  # noqa: F403

dataset = "addition"
prepare = "-m tasks.puzzles --task=addition --digits=8"
block_size = 29

n_layer = 2
max_iters = 2000
eval_interval = 1000
