# The Insertion Transformer: every gap has a softmax of its own.
#
#   python train.py config/star_tiny.py config/objective/it.py
#
# Published on star graphs, easy: exact match 35.2 %. Expected on star_tiny: 0 % at temperature 0
# and 33 % at 1 after 1,500 steps, 46 s of one thread of an AMD EPYC. It writes "8 4 11" where
# "8 4 4 11" is asked for, and every gap says that it is complete: which of two equal neighbours is
# missing cannot be known, so no gap is sure to lack it.
objective = "it"
time_input = False
