# Toy stage 1: 16 important tokens of a text, from nothing.
#
#   python train.py config/cascade_toy1.py
from config.cascade_toy import *  # noqa: F403
from config.cascade_toy import prepare as _prepare

out_dir = "out/toy1"
dataset = "toy_stage1"
prepare = _prepare + "1"
block_size = 16
max_iters = 800
eval_interval = 400
