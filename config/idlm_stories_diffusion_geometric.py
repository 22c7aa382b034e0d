# idlm_stories_v3.py with the geometric schedule. Its range stays: the published one is not known
# here.
#
#   torchrun --standalone --nproc_per_node=8 train.py config/idlm_stories_diffusion_geometric.py
from config.idlm_stories_v3 import *  # noqa: F403

noise = "geometric"
