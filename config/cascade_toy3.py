# Toy stage 3: texts of 64 tokens around 32 given ones.
#
#   python train.py config/cascade_toy3.py
from config.cascade_toy import *  # noqa: F403
from config.cascade_toy import prepare as _prepare

out_dir = "out/toy3"
dataset = "toy_stage3"
prepare = _prepare + "3"
block_size = 96
max_iters = 1000
eval_interval = 500
