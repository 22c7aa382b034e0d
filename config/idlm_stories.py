# Insertion diffusion (IDLM) on short stories without the weights of the likelihood; the network is
# told the mean number of dropped tokens. idlm_stories_loglinear.py has the weights.
#
#   torchrun --standalone --nproc_per_node=8 train.py config/idlm_stories.py
from config.idlm_stories_v3 import *  # noqa: F403

send_t_to_model = False
