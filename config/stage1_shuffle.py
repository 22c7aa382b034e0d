# Stage 1 beside the shuffled stages: nothing is given to it, so it is stage1.py in its own folder.
#
#   torchrun --standalone --nproc_per_node=4 train.py config/stage1_shuffle.py
from config.stage1 import *  # noqa: F403

prefix_shuffle = True
wandb_run_name = "openwebtext-small-stage1_shuffle"
