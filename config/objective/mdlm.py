# Masked diffusion (MDLM) that is not told the noise level, and is written in order of confidence.
#
#   python train.py config/star_tiny.py config/objective/mdlm.py
#   python train.py config/star_easy.py config/published/mdlm.py     # the published recipe
#
# Expected: exact match 100 % of 2,000, on star_tiny after 1,800 steps, 56 s of one thread of an AMD
# EPYC, on star_small after 3,200 steps, 2.2 minutes.
objective = "masked"
noise = "loglinear"
time_input = False
demo = "evaluate.py --sampler=confidence --temperature=0"
