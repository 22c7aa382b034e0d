# Star graphs as published (easy): 3 arms, paths of 5 nodes. Data, size and recipe of ILM
# (arXiv 2505.05755): 85 M parameters, 50,000 steps of 64 rows; for a GPU.
#
#   python train.py config/star_easy.py config/objective/ilm.py
dataset = "star_easy"
prepare = "-m tasks.stars --level=easy"
block_size = 36

time_input = False
n_layer = 12
n_head = 12
n_embd = 768
positions = "rotary"
dropout = 0.1

batch_size = 64
max_iters = 50_000
learning_rate = 1e-4
beta2 = 0.999
weight_decay = 0.01
lr_schedule = "constant"
ema_decay = 0.9999
eval_interval = 2500
demo = "evaluate.py --temperature=0"
