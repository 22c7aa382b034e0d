# Stage 2 with what is given in random order: it learns which words belong into a text and not where
# they stand, so that it depends less on the order of a generated skeleton.
#
#   torchrun --standalone --nproc_per_node=4 train.py config/stage2_shuffle.py
from config.stage2 import *  # noqa: F403

prefix_shuffle = True
wandb_run_name = "openwebtext-small-stage2_shuffle"
