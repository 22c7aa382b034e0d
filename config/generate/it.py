# For sample.py and evaluate.py: the stochastic generation of the Insertion Transformer
# (it_stochastic). A gap is complete where that has a probability of 0.9; else the likeliest gap
# gets a token.
#
#   python evaluate.py config/generate/it.py --ckpt=out/it_star_easy
from config.generate.p02 import *  # noqa: F403

stopping_threshold = 0.9
