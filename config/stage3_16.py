# Stage 3 of the published cascade with lengths of 16, 32 and 128 tokens.
from config.stage3 import *  # noqa: F403
from config.stage3 import prepare as _prepare

dataset = "openwebtext_16_stage3"
prepare = _prepare + " --lengths=16,32,128"
block_size = 160
wandb_run_name = "openwebtext-small-stage3_16"
