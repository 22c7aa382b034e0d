# The demo as masked diffusion (MDLM without time): cross entropy / t on masked letters.
#
#   python train.py config/palindrome_mdlm.py
#
# Frames of 18, which is BOS, the longest text and EOS: steps take two thirds of the time of those
# of 32, so there are more of them.
from config.palindrome import *  # noqa: F403

del normalize  # noqa: F821, of score entropy
block_size = 18
objective = "masked"
noise = "loglinear"

max_iters = 3400
eval_interval = 1700
