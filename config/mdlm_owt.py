# MDLM as published (arXiv 2406.07524): 170 M parameters, 512 rows of 1024 GPT-2 tokens per step.
#
#   torchrun --standalone --nproc_per_node=8 train.py config/mdlm_owt.py
#
# With --init_from=kuleshov-group/mdlm-owt it goes on from the published weights.
out_dir = "out/mdlm_owt"
dataset = "openwebtext"
prepare = "prepare_pretrain.py --source=openwebtext --tokenizer=gpt2 --num_workers=16"
block_size = 1024

objective = "masked"
noise = "loglinear"
zero_time = True  # built for time and always told none, as published

n_layer = 12
n_head = 12
n_embd = 768
cond_dim = 128
positions = "rotary"
dropout = 0.1

batch_size = 32
gradient_accumulation_steps = 16  # 512 rows per step
max_iters = 1_000_000
learning_rate = 3e-4
beta2 = 0.999
warmup_iters = 2500
schedule = "constant"
ema_decay = 0.9999
eval_interval = 5000
