# Star graphs as published (hard): 5 arms of 6 to 12 nodes, 56 node ids.
#
#   python train.py config/star_hard.py config/objective/ilm.py
from config.star_easy import *  # noqa: F403

dataset = "star_hard"
prepare = "-m tasks.stars --level=hard"
block_size = 136
