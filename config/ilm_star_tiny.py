# Insertion (ILM) on star graphs, level tiny: fewer steps than the others of this size.
#
#   python train.py config/ilm_star_tiny.py
#
# Expected: exact match 100 % of 2,000 after 1,500 steps, 53 s of one thread of an AMD EPYC.
from config.star_tiny import *  # noqa: F403

objective = "ilm"
max_iters = 1500
eval_interval = 750
