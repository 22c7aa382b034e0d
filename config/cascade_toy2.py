# Toy stage 2: 32 important tokens of a text around 16 given ones.
#
#   python train.py config/cascade_toy2.py
from config.cascade_toy import *  # noqa: F403
from config.cascade_toy import prepare as _prepare

out_dir = "out/toy2"
dataset = "toy_stage2"
prepare = _prepare + "2"
block_size = 48
max_iters = 1600
eval_interval = 800
