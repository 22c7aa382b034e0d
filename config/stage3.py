# Stage 3 of the published cascade: texts of 128 tokens, written around 64 given ones.
#
#   python train.py config/stage3.py
from config.stage1 import *  # noqa: F403
from config.stage1 import prepare as _first

dataset = "openwebtext_stage3"
prepare = _first.replace("--stage=1", "--stage=3")
block_size = 192  # 64 given, 128 written
wandb_run_name = "openwebtext-small-stage3"
