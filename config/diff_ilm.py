# The same patches by insertion (ILM): tokens are put where they are missing, in any order.
#
#   python train.py config/diff_ilm.py
from config.diff_ar import *  # noqa: F403

objective = "ilm"
close_prompt = True  # nothing is ever inserted into what is given

max_iters = 180
eval_interval = 90
demo = "evaluate.py --samples=12"
