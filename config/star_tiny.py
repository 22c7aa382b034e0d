# Star graphs of 2 arms and paths of 3 nodes: what a minute on two cores learns. Data and size only.
#
#   python train.py config/star_tiny.py config/objective/mdlm.py
dataset = "star_tiny"
prepare = "-m tasks.stars --level=tiny"
block_size = 16

time_input = False
n_layer = 3
n_head = 2
n_embd = 64
positions = "both"

batch_size = 64
optimizer = "muon"
muon_lr = 0.005
learning_rate = 5e-3
beta2 = 0.98
weight_decay = 0.01
warmup_iters = 50
lr_schedule = "flat_cosine"
min_lr = 0.02
ema_decay = 0.0  # the learning rate goes to almost nothing, which averages as well

max_iters = 1800
eval_interval = 900
eval_iters = 20
log_interval = 100
demo = "evaluate.py --temperature=0"
