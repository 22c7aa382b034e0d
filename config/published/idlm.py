# Insertion diffusion (IDLM) on star graphs of the published sizes.
#
#   python train.py config/star_easy.py config/published/idlm.py
#   python train.py config/idlm_star_hard.py                         # longer paths, higher rates
objective = "idlm"
noise = "exponential"
sigma_min = 3.0
sigma_max = 30.0
time_input = True
max_iters = 80_000
