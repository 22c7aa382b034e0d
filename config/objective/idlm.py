# Insertion diffusion (IDLM): tokens are dropped at a rate, which grows from sigma_min to sigma_max
# and should be large enough to drop the whole text. These rates are for texts of a few tokens.
#
#   python train.py config/star_tiny.py config/objective/idlm.py
#   python train.py config/star_easy.py config/published/idlm.py     # the published recipe
objective = "idlm"
noise = "exponential"
sigma_min = 1.0
sigma_max = 10.0
time_input = False  # what is missing tells the time; with it, the arm stays a guess for longer
