# Insertion diffusion (IDLM) on short stories without the weights of the likelihood; the network is
# told the time.
#
#   torchrun --standalone --nproc_per_node=8 train.py config/idlm_stories_v3.py
from config.idlm_stories_loglinear import *  # noqa: F403

ce_weight = 1.0
length_loss_weight = 1.0
use_diffusion_weight_for_ce = False
use_diffusion_weight_for_length_loss = False
use_n_drops_for_ce = False
use_incomplete_gamma_factor = False
max_iters = 100_000
