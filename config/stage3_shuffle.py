# Stage 3 with what is given in random order.
#
#   torchrun --standalone --nproc_per_node=4 train.py config/stage3_shuffle.py
from config.stage3 import *  # noqa: F403

prefix_shuffle = True
wandb_run_name = "openwebtext-small-stage3_shuffle"
