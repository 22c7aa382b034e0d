# From left to right. On star graphs of two arms the first step of an answer is a guess.
#
#   python train.py config/star_tiny.py config/objective/ar.py
#   python train.py config/star_easy.py config/published/ar.py       # the published recipe
objective = "ar"
time_input = False
