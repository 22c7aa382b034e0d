# Insertion diffusion (IDLM) on star graphs, level hard, with every weight of the likelihood, at a
# rate from 5 to 50.
#
#   python train.py config/idlm_vstar_medium_diffusion_weights_loglinear.py
from config.idlm_star_hard import *  # noqa: F403
