# ILM on short stories (TinyStories and ROCStories) as published: whole ones of up to 1024 tokens.
#
#   torchrun --standalone --nproc_per_node=8 train.py config/ilm_stories.py
from config.ilm_lm1b import *  # noqa: F403

dataset = "stories_rows"
prepare = (
    "prepare_pretrain.py --source=stories --packing=rows --context_length=1024"
    " --tokenizer=bert-base-uncased --dataset=stories_rows --num_workers=16"
)
block_size = 1024

batch_size = 16
gradient_accumulation_steps = 32  # 512 rows per step
max_iters = 60_000
