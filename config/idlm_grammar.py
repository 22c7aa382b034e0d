# Insertion diffusion (IDLM) on a small grammar, all of whose sentences are known: a constant rate
# of 10, and 1 dropped token at time 0 (our choice; the 10 is published).
#
#   python train.py config/idlm_grammar.py
#   python train.py config/idlm_grammar.py --noise=exponential --sigma_min=1 --sigma_max=100
from config.ilm_grammar import *  # noqa: F403

objective = "idlm"
noise = "linear"
sigma_min = 1.0
sigma_max = 11.0
time_input = True
ce_weight = 0.1
length_loss_weight = 0.1
