# ILM on sentences (LM1B) as published: 512 rows of at most 128 tokens per step, a million steps.
#
#   torchrun --standalone --nproc_per_node=8 train.py config/ilm_lm1b.py
dataset = "lm1b_rows"
prepare = (
    "prepare_pretrain.py --source=lm1b --packing=rows --detokenize=lm1b --context_length=128"
    " --tokenizer=bert-base-uncased --dataset=lm1b_rows --num_workers=16"
)
block_size = 128

objective = "ilm"
time_input = False
n_layer = 12
n_head = 12
n_embd = 768
positions = "rotary"
dropout = 0.1

batch_size = 64
gradient_accumulation_steps = 8  # 512 rows per step
max_iters = 1_000_000
learning_rate = 1e-4
beta2 = 0.999
weight_decay = 0.01
warmup_iters = 1000
lr_schedule = "constant"
ema_decay = 0.9999
eval_interval = 5000
