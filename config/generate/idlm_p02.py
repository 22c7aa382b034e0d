# p02.py for IDLM: without the exact rate of the first token, which makes texts longer.
#
#   python sample.py config/generate/idlm_p02.py --ckpt=out/idlm_stories
from config.generate.p02 import *  # noqa: F403

length_temperature = 1.0
use_first_step_factor = False
