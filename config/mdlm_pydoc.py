# Masked diffusion on the English that Python carries: 4,096 tokens learnt from it, no network.
#
#   python train.py config/mdlm_pydoc.py
#
# Expected after 1,200 steps: 5.29 nats per token, 2.07 bits per byte of held-out prose, in 2.9
# minutes on two cores of an AMD EPYC.
from config.shakespeare import *  # noqa: F403

dataset = "pydoc_bpe"
prepare = "prepare_pretrain.py --source=pydoc --tokenizer=train:4096"
block_size = 128

n_embd = 192
positions = "rotary"

batch_size = 16
max_iters = 1200
eval_interval = 600
demo = "evaluate.py --rows=500"
