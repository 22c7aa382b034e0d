# Stage 2 of the published cascade with lengths of 16, 32 and 128 tokens.
from config.stage2 import *  # noqa: F403
from config.stage2 import prepare as _prepare

dataset = "openwebtext_16_stage2"
prepare = _prepare + " --lengths=16,32,128"
block_size = 48
wandb_run_name = "openwebtext-small-stage2_16"
