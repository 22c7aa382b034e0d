# Then palindromes as people write them, with case, spaces and punctuation.
#
#   python train.py config/palindrome_finetune.py --init_from=out/palindrome_pretrain/ckpt.pt
from config.palindrome import *  # noqa: F403

out_dir = "out/palindrome_finetune"  # whatever its size
dataset = "phrases"
prepare = "prepare_bytes.py --source=phrases"
init_from = "out/palindrome_pretrain/ckpt.pt"
max_iters = 1000
muon_lr = 0.003
learning_rate = 5e-4
demo = "sample.py --num_samples=32 --sampler=first_hitting"
