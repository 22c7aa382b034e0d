# Insertion (ILM): tokens come into a text of unknown length, in any order.
#
#   python train.py config/star_easy.py config/objective/ilm.py
#
# Published on star graphs, exact match: easy 100.0 %, medium 100.0 %, hard 99.1 %.
objective = "ilm"
time_input = False
