# XLNet (random order, written from left to right) on star graphs, level tiny.
#
#   python train.py config/xlnet_star_tiny.py
#
# Expected: exact match 49 % of 500 at temperature 0 after 1,500 steps, 58 s of one thread of
# an AMD EPYC: from left to right the first arm is a guess, as it is for objective=ar.
from config.star_tiny import *  # noqa: F403

out_dir = "out/xlnet_star_tiny"
objective = "xlnet"
