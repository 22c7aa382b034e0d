# The size tiny of ILM's experiments; behind a config and an objective.
#
#   python train.py config/vstar_medium.py config/objective/ilm.py config/size/tiny.py
n_layer = 6
n_head = 6
n_embd = 768
n_inner = 3072
