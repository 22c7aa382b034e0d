# Uniform-state diffusion on the English that Python carries, beside config/mdlm_pydoc.py.
#
#   python train.py config/udlm_pydoc.py
from config.mdlm_pydoc import *  # noqa: F403

objective = "udlm"
noise = "loglinear"
time_input = True
