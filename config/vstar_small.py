# star_medium by its name in ILM's repository: star graphs with arms of
# varying length, 3 arms of 3 to 6 nodes.
#
#   python train.py config/vstar_small.py config/objective/ilm.py
from config.star_medium import *  # noqa: F403
