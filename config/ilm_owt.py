# ILM on OpenWebText, documents of up to 1024 tokens. Of a thousand rows one misses nothing: that
# class weighs nine times as much as the other, both of them little.
#
#   torchrun --standalone --nproc_per_node=8 train.py config/ilm_owt.py
from config.ilm_lm1b import *  # noqa: F403

dataset = "openwebtext_rows"
prepare = (
    "prepare_pretrain.py --source=openwebtext --packing=rows --context_length=1024"
    " --tokenizer=gpt2 --dataset=openwebtext_rows --test_split_pct=0.002 --num_workers=16"
)
block_size = 1024
batch_size = 16
gradient_accumulation_steps = 32  # 512 rows per step

stop_weight = 0.001
stop_class_weight = 0.9
max_iters = 1_000_000
warmup_iters = 2000
