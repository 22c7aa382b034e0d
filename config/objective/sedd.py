# Score entropy (SEDD) with the absorbing graph, as published: told the noise level.
#
#   python train.py config/star_tiny.py config/objective/sedd.py
objective = "sedd"
graph = "absorb"
noise = "loglinear"
scale_by_sigma = True
normalize = False
time_input = True
