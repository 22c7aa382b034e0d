# Insertion diffusion (IDLM) on star graphs, level hard, geometric schedule, weighted by rate alone.
# Sampled with --length_temperature=0.01.
#
#   python train.py config/idlm_vstar_medium_geometric.py
from config.idlm_vstar_medium_poisson import *  # noqa: F403

noise = "geometric"
sigma_max = 40.0
use_n_drops_for_ce = False
use_incomplete_gamma_factor = False
max_iters = 100_000
