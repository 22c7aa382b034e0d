# Stage 1 of the published cascade with lengths of 16, 32 and 128 tokens.
from config.stage1 import *  # noqa: F403
from config.stage1 import prepare as _prepare

dataset = "openwebtext_16_stage1"
prepare = _prepare + " --lengths=16,32,128"
block_size = 16
wandb_run_name = "openwebtext-small-stage1_16"
