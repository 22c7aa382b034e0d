# The demo by insertion (ILM): letters come into a text of unknown length, in any order.
#
#   python train.py config/palindrome_ilm.py
#   python sample.py --ckpt=out/palindrome_ilm/ckpt.pt --infill="ab[*]a" --show
from config.palindrome import *  # noqa: F403

del normalize  # noqa: F821, of score entropy
block_size = 18
objective = "ilm"
time_input = False
max_iters = 2400
eval_interval = 1200
