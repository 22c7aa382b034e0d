# SEDD small on GPT-2 tokens as published (arXiv 2310.16834): 170 M parameters, 512 rows of 1024.
#
#   torchrun --standalone --nproc_per_node=8 train.py config/sedd_small.py --dataset=YOURS
#
# With --init_from=louaaron/sedd-small it goes on from the published weights.
dataset = "openwebtext"
block_size = 1024

graph = "absorb"
noise = "loglinear"
scale_by_sigma = True

n_layer = 12
n_head = 12
n_embd = 768
cond_dim = 128
positions = "rotary"
dropout = 0.1

batch_size = 32
gradient_accumulation_steps = 16  # 512 rows per step
max_iters = 400_000
learning_rate = 3e-4
beta2 = 0.999
warmup_iters = 2500
lr_schedule = "constant"
ema_decay = 0.9999
eval_interval = 5000
