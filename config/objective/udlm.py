# Uniform-state diffusion (UDLM): noise replaces tokens, the network predicts the clean ones.
#
#   python train.py config/star_tiny.py config/objective/udlm.py
objective = "udlm"
noise = "loglinear"
time_input = True
