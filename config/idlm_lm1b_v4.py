# idlm_lm1b.py with ten times its weight of the number of tokens, at a lower rate.
#
#   torchrun --standalone --nproc_per_node=8 train.py config/idlm_lm1b_v4.py
from config.idlm_lm1b import *  # noqa: F403

length_loss_weight = 0.01
learning_rate = 1e-5
