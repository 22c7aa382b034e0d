# The size tiny2 of ILM's experiments; behind a config and an objective.
#
#   python train.py config/vstar_medium.py config/objective/ilm.py config/size/tiny2.py
n_layer = 8
n_head = 8
n_embd = 576
n_inner = 3456
