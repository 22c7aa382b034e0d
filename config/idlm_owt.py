# Insertion diffusion (IDLM) on OpenWebText, from 50 to 3000 dropped tokens per unit of time.
#
#   torchrun --standalone --nproc_per_node=8 train.py config/idlm_owt.py
from config.ilm_owt import *  # noqa: F403

del stop_weight, stop_class_weight  # noqa: F821, of ILM
objective = "idlm"
noise = "exponential"
sigma_min = 50.0
sigma_max = 3000.0
time_input = True
ce_weight = 0.001
length_loss_weight = 0.001
learning_rate = 1e-5
grad_clip = 0.5  # without it and at higher rates, runs of the authors ended in NaN
