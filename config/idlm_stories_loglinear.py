# Insertion diffusion (IDLM) on short stories with the weights of the likelihood, from 20 to 7000
# dropped tokens per unit of time (idlm_stories_v4 of the authors).
#
#   torchrun --standalone --nproc_per_node=8 train.py config/idlm_stories_loglinear.py
from config.ilm_stories import *  # noqa: F403

objective = "idlm"
noise = "exponential"
sigma_min = 20.0
sigma_max = 7000.0
time_input = True
ce_weight = 0.1
length_loss_weight = 0.1
max_iters = 200_000
