# Insertion diffusion (IDLM) on sentences (LM1B), geometric schedule, without the weights of the
# likelihood.
#
#   torchrun --standalone --nproc_per_node=8 train.py config/idlm_lm1b_diffusion_geometric.py
from config.idlm_lm1b import *  # noqa: F403

noise = "geometric"
ce_weight = 1.0
length_loss_weight = 1.0
use_diffusion_weight_for_ce = False
use_diffusion_weight_for_length_loss = False
use_n_drops_for_ce = False
use_incomplete_gamma_factor = False
