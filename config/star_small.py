# Star graphs of 2 arms and paths of 4 nodes: learnt in less than three minutes on two cores. Data
# and size only.
#
#   python train.py config/star_small.py config/objective/mdlm.py
from config.star_tiny import *  # noqa: F403

dataset = "star_small"
prepare = "-m tasks.stars --level=small"
block_size = 22

max_iters = 3400
eval_interval = 1700
