# Insertion diffusion (IDLM) on a small grammar, all of whose sentences are known.
#
#   python train.py config/idlm_grammar.py
from config.ilm_grammar import *  # noqa: F403

objective = "idlm"
noise = "exponential"
sigma_min = 1.0
sigma_max = 100.0
time_input = True
ce_weight = 0.1
length_loss_weight = 0.1
