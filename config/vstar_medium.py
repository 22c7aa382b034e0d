# star_hard by its name in ILM's repository: star graphs with arms of
# varying length, 5 arms of 6 to 12 nodes.
#
#   python train.py config/vstar_medium.py config/objective/ilm.py
from config.star_hard import *  # noqa: F403
