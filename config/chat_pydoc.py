# Chat without a network: questions about Python's own library, answered by masked diffusion.
#
#   python train.py config/chat_pydoc.py
#   python sample.py --ckpt=out/chat_pydoc/ckpt.pt --chat
#
# Its training questions are what it can answer; see the README for how well.
from config.shakespeare import *  # noqa: F403

dataset = "pydoc_sft"
prepare = "prepare_sft.py --source=pydoc --tokenizer=train:4096 --max_rows=2000"
block_size = 80  # the longest row has 77 tokens

noise = "affine"
loss_per = "token"
padding = "crop"

n_embd = 192
positions = "rotary"

batch_size = 64
max_iters = 2400
eval_interval = 1200
demo = "evaluate.py --samples=200"
