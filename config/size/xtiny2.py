# The size xtiny2 of ILM's experiments; behind a config and an objective.
#
#   python train.py config/vstar_medium.py config/objective/ilm.py config/size/xtiny2.py
n_layer = 4
n_head = 6
n_embd = 384
n_inner = 2304
