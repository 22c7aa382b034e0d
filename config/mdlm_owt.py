# MDLM as published (arXiv 2406.07524): 170 M parameters, 512 rows of 1024 GPT-2 tokens per step.
#
#   torchrun --standalone --nproc_per_node=8 train.py config/mdlm_owt.py
#
# With --init_from=kuleshov-group/mdlm-owt it goes on from the published weights.
from config.sedd_small import *  # noqa: F403

prepare = "prepare_pretrain.py --source=openwebtext --tokenizer=gpt2 --num_workers=16"

objective = "masked"
noise = "loglinear"
zero_time = True  # built for time and always told none, as published
max_iters = 1_000_000
