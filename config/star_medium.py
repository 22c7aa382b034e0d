# Star graphs as published (medium): 3 arms of 3 to 6 nodes, which cross anywhere on the path.
#
#   python train.py config/star_medium.py config/objective/ilm.py
from config.star_easy import *  # noqa: F403

dataset = "star_medium"
prepare = "-m tasks.stars --level=medium"
block_size = 44
