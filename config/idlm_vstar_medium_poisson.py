# Insertion diffusion (IDLM) on star graphs, level hard, with every weight of the likelihood: a
# constant rate of 12, and 1 dropped token at time 0.
#
#   python train.py config/idlm_vstar_medium_poisson.py
from config.vstar_medium import *  # noqa: F403

objective = "idlm"
noise = "linear"
sigma_min = 1.0
sigma_max = 13.0
time_input = True
warmup_iters = 500
