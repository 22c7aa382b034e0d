# From left to right on star graphs of the published sizes.
#
#   python train.py config/star_medium.py config/published/ar.py     # published: exact match 75.0 %
#   python train.py config/ar_star_hard.py                           # takes twice the steps
objective = "ar"
time_input = False
learning_rate = 1e-5
