# Toy stage 2: 32 important tokens around 16 given ones, from the weights of stage 1.
#
#   python train.py config/cascade_toy2.py
from config.cascade_toy import *  # noqa: F403
from config.cascade_toy import prepare as _prepare

out_dir = "out/toy2"
init_from = "out/toy1/ckpt.pt"
dataset = "toy_stage2"
prepare = _prepare + "2"
block_size = 48
max_iters = 800
eval_interval = 400
