# Insertion diffusion (IDLM) without the weights of the likelihood: every row counts alike, whatever
# its noise level and however many tokens it misses. idlm_stories_v3.py builds on it.
ce_weight = 1.0
length_loss_weight = 1.0
use_diffusion_weight_for_ce = False
use_diffusion_weight_for_length_loss = False
use_n_drops_for_ce = False
use_incomplete_gamma_factor = False
