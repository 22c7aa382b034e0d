# Insertion diffusion (IDLM) on star graphs, level hard: higher rates, as its paths are longer.
#
#   python train.py config/idlm_star_hard.py
from config.star_hard import *  # noqa: F403

objective = "idlm"
noise = "exponential"
sigma_min = 5.0
sigma_max = 50.0
time_input = True
max_iters = 80_000
