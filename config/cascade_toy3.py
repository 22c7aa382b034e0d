# Toy stage 3: texts of 64 tokens around 32 given ones, from the weights of stage 2.
#
#   python train.py config/cascade_toy3.py
from config.cascade_toy import *  # noqa: F403
from config.cascade_toy import prepare as _prepare

out_dir = "out/toy3"
init_from = "out/toy2/ckpt.pt"
dataset = "toy_stage3"
prepare = _prepare + "3"
block_size = 96
max_iters = 800
eval_interval = 400
