# Stage 2 of the published cascade: 64 important tokens of a text, written around 32 given ones.
#
#   python train.py config/stage2.py
from config.stage1 import *  # noqa: F403
from config.stage1 import prepare as _first

dataset = "openwebtext_stage2"
prepare = _first.replace("--stage=1", "--stage=2")
block_size = 96  # 32 given, 64 written
wandb_run_name = "openwebtext-small-stage2"
