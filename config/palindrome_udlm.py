# The demo as uniform-state diffusion (UDLM): noise replaces letters instead of hiding them, so that
# every letter may change until the end, and wrong ones in a finished text can be repaired.
#
#   python train.py config/palindrome_udlm.py
#
# Expected after 3,400 steps: 1.62 nats per token, 89 % exact palindromes, 96 % at temperature 0.7,
# 99 % with --corrector_steps=1 --steps=32; in 8 minutes on a core of an AMD EPYC beside other jobs.
#
# Frames of 18 as in config/palindrome_mdlm.py. The network is told the noise level, which no MASK
# shows.
from config.palindrome import *  # noqa: F403

del normalize, graph  # noqa: F821, of score entropy
block_size = 18
objective = "udlm"
noise = "loglinear"
time_input = True

max_iters = 3400
eval_interval = 1700
