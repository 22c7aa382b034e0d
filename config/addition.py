# Sums of two numbers of eight digits, the highest digit first. Data and size only.
#
#   python train.py config/addition.py config/objective/mdlm.py
#
# Expected of 1,000 sums after 2,000 steps, 96 s of one thread of an AMD EPYC: 100 % right in order
# of confidence, 98 % in random order. Where all digits hang on the last one (--split=carry): 97 %
# and 30 %.
from config.star_tiny import *  # noqa: F403

dataset = "addition"
prepare = "-m tasks.puzzles --task=addition --digits=8"
block_size = 29

n_layer = 2
max_iters = 2000
eval_interval = 1000
