# The Insertion Transformer on star graphs, level tiny.
#
#   python train.py config/it_star_tiny.py
#
# Expected: exact match 0 % at temperature 0 and 33 % at 1 after 1,500 steps, 46 s of one thread
# of an AMD EPYC. It writes "8 4 11" where "8 4 4 11" is asked for, and every gap says that it is
# complete: which of two equal neighbours is missing cannot be known, so no gap is sure to lack it.
from config.star_tiny import *  # noqa: F403

out_dir = "out/it_star_tiny"
objective = "it"
