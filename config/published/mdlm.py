# Masked diffusion (MDLM) on star graphs of the published sizes.
#
#   python train.py config/star_medium.py config/published/mdlm.py
#
# Published, exact match: medium 36.5 %, hard 21.0 %.
objective = "masked"
noise = "loglinear"
time_input = True
max_iters = 100_000
warmup_iters = 500
