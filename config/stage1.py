# Stage 1 of the published cascade: the 32 most important tokens of a text, written from nothing.
# 170 M parameters, as small as they are; lengths 32, 64 and 128, rate 3e-4, 512 rows per step.
#
#   python train.py config/stage1.py
#   torchrun --standalone --nproc_per_node=4 train.py config/stage1.py
#
# The texts come from preprocess_prefix.py: --dataset_name=openwebtext for training and
# --dataset_name=wikitext103 --dataset_mode=validation. With --init_from=louaaron/sedd-small it goes
# on from published weights, in out/stage1-finetuning.
from config.sedd_small import *  # noqa: F403

finetune_suffix = "-finetuning"
wandb_run_name = "openwebtext-small-stage1"
dataset = "openwebtext_stage1"
prepare = (
    "-m cascade.stages --stage=1 --source=data/preprocessed/constituency/openwebtext "
    "--val_source=data/preprocessed/constituency/wikitext103"
)
block_size = 32

batch_size = 64
gradient_accumulation_steps = 8  # 512 rows per step
max_iters = 500_000
eval_interval = 10_000
