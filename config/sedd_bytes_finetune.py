# Overrides for a GPU: the fine-tuning on palindromes of the byte fork of SEDD. 64 rows per step.
#
#   torchrun --standalone --nproc_per_node=4 train.py config/palindrome_finetune.py \
#       config/sedd_bytes_finetune.py --init_from=out/palindrome_pretrain/ckpt_020000.pt
from config.sedd_bytes import *  # noqa: F403

dataset = "phrases"
prepare = "prepare_bytes.py --source=phrases"

batch_size = 16
max_iters = 75_000

eval_interval = 500
log_interval = 50
snapshot_interval = 1000
sample_interval = 1000  # how many of them are palindromes is logged
num_samples = 10
