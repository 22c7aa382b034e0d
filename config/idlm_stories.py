# Insertion diffusion (IDLM) on short stories, from 20 to 7000 dropped tokens per unit of time.
#
#   torchrun --standalone --nproc_per_node=8 train.py config/idlm_stories.py
from config.ilm_stories import *  # noqa: F403

objective = "idlm"
noise = "exponential"
sigma_min = 20.0
sigma_max = 7000.0
time_input = True
ce_weight = 0.1
length_loss_weight = 0.1
max_iters = 200_000
