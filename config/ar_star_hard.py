# From left to right on star graphs, level hard. Published: exact match 23.0 %.
#
#   python train.py config/ar_star_hard.py
from config.star_hard import *  # noqa: F403

objective = "ar"
learning_rate = 1e-5
max_iters = 100_000
