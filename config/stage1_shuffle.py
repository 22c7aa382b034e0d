# Stage 1 beside the shuffled stages: nothing is given to it, so this is stage1.py in a folder of its
# own.
#
#   torchrun --standalone --nproc_per_node=4 train.py config/stage1_shuffle.py
from config.stage1 import *  # noqa: F403

prefix_shuffle = True
