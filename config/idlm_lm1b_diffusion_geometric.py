# Insertion diffusion (IDLM) on sentences (LM1B), geometric schedule, without the weights of the
# likelihood. Its range is that of idlm_lm1b.py: the published one is not known here.
#
#   torchrun --standalone --nproc_per_node=8 train.py config/idlm_lm1b_diffusion_geometric.py
from config.idlm_lm1b import *  # noqa: F403
from config.published.idlm_unweighted import *  # noqa: F403

noise = "geometric"
