# ModernBERT as a masked diffusion model, second stage: questions given, answers written.
#
#   python train.py config/modernbert_sft.py --init_from=out/modernbert_pretrain/ckpt.pt
from config.modernbert_pretrain import *  # noqa: F403

dataset = "alpaca_sft"
prepare = "prepare_sft.py --source=alpaca --hf_model_name=answerdotai/ModernBERT-large"
init_from = "out/modernbert_pretrain/ckpt.pt"

loss_per = "answer"
padding = "crop"  # what is behind the longest answer of a batch would only be more EOS to learn

max_iters = 30_000
learning_rate = 1e-5
weight_decay = 0.05
