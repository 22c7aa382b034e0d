# The same patches by masked diffusion: places are written in the order of confidence.
#
#   python train.py config/diff_masked.py
from config.diff_ar import *  # noqa: F403

objective = "masked"
noise = "loglinear"
padding = "crop"

max_iters = 180
eval_interval = 90
demo = "evaluate.py --samples=12 --steps=32"  # every step is a pass over the whole canvas
