# Insertion diffusion (IDLM) on sentences (LM1B), from 5 to 500 dropped tokens per unit of time.
#
#   torchrun --standalone --nproc_per_node=8 train.py config/idlm_lm1b.py
from config.ilm_lm1b import *  # noqa: F403

objective = "idlm"
noise = "exponential"
sigma_min = 5.0
sigma_max = 500.0
time_input = True
ce_weight = 0.001
length_loss_weight = 0.001

learning_rate = 5e-5
weight_decay = 0.03
warmup_iters = 2000
lr_schedule = "cosine"
min_lr = 0.02  # to 1e-6; published in four cycles, here in one
grad_clip = 0.5
