# Bytes of real text first: the prose that every Python carries, as in the byte fork of SEDD.
#
#   python train.py config/palindrome_pretrain.py
from config.palindrome import *  # noqa: F403

out_dir = "out/palindrome_pretrain"  # whatever its size: palindrome_finetune.py begins there
dataset = "pydoc"
prepare = "prepare_bytes.py --source=pydoc"
max_iters = 3000
demo = "sample.py --num_samples=8 --sampler=first_hitting"
