# XLNet: trained in random order, written from left to right. Needs transformers.
#
#   python train.py config/star_tiny.py config/objective/xlnet.py
#
# Expected on star_tiny: exact match 49 % of 500 at temperature 0 after 1,500 steps, 58 s of one
# thread of an AMD EPYC: from left to right the first arm is a guess, as it is for objective=ar.
objective = "xlnet"
time_input = False
