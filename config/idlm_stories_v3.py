# Insertion diffusion (IDLM) on short stories without the weights of the likelihood; the network is
# told the time.
#
#   torchrun --standalone --nproc_per_node=8 train.py config/idlm_stories_v3.py
from config.idlm_stories_loglinear import *  # noqa: F403
from config.published.idlm_unweighted import *  # noqa: F403

max_iters = 100_000
