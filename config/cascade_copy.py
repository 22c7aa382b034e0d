# Does a stage copy what it is given? 8 different letters, of which 4 are given in their order.
#
#   python train.py config/cascade_copy.py
#   python train.py config/cascade_copy.py --prefix_shuffle --out_dir=out/cascade_copy_shuffle
#
# 17.3 nats per sample are possible, 20.5 without the order of what is given, 26.8 without it.
dataset = "cascade_copy"
prepare = "-m cascade.stages --source=copy --lengths=4,8 --stage=2"
block_size = 12

objective = "sedd"
graph = "absorb"
noise = "loglinear"

n_layer = 2
n_head = 2
n_embd = 64
cond_dim = 64
positions = "rotary"

batch_size = 128
max_iters = 800
learning_rate = 3e-3
beta2 = 0.98
warmup_iters = 50
lr_schedule = "cosine"
ema_decay = 0.99

eval_interval = 400
eval_iters = 10
