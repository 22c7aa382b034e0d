# Overrides for a GPU: the sizes and the recipe of the byte fork of SEDD, with its uniform graph.
#
#   torchrun --standalone --nproc_per_node=4 \
#       train.py config/palindrome_pretrain.py config/sedd_bytes.py
#
# Put it after palindrome_pretrain.py or palindrome_finetune.py, which say what to train on.
graph = "uniform"
normalize = False
time_input = True

n_layer = 12
n_head = 12
n_embd = 768
cond_dim = 96
positions = "rotary"
dropout = 0.1

batch_size = 256
gradient_accumulation_steps = 4
max_iters = 20000
optimizer = "adamw"
learning_rate = 3e-4
beta2 = 0.95
warmup_iters = 2000
lr_schedule = "flat_cosine"
min_lr = 0.1
ema_decay = 0.999
