# Block diffusion on the same text as mdlm_pydoc.py: blocks of 8 tokens, from left to right. The
# clipped noise levels are published ones (BD3, LM1B); evaluate.py names the best for this model.
#
#   python train.py config/bd3_pydoc.py
#   python train.py config/bd3_pydoc.py --block_length=1 --t_low=0 --t_high=1    # autoregressive
#
# A step costs two to three times one of mdlm_pydoc.py: it runs over the noised and the clean text.
from config.mdlm_pydoc import *  # noqa: F403

objective = "bd3"
block_length = 8
t_low = 0.3
t_high = 0.8
