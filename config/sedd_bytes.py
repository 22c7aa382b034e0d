# Overrides for a GPU: the sizes, the text and the recipe of the byte fork of SEDD, with its uniform
# graph. 256 rows per step, on 1, 2 or 4 GPUs.
#
#   torchrun --standalone --nproc_per_node=4 \
#       train.py config/palindrome_pretrain.py config/sedd_bytes.py
#   train.py config/palindrome_pretrain.py config/sedd_bytes.py --dataset=pydoc    # no network
#
# Then sedd_bytes_finetune.py.
dataset = "wikipedia"
prepare = "prepare_bytes.py --source=wikipedia"

graph = "uniform"
normalize = False
time_input = True

n_layer = 12
n_head = 12
n_embd = 768
cond_dim = 96
positions = "rotary"
dropout = 0.1

batch_size = 64
gradient_accumulation_steps = 4
max_iters = 20000
optimizer = "adamw"
learning_rate = 3e-4
beta2 = 0.95
warmup_iters = 2000
lr_schedule = "flat_cosine"
min_lr = 0.1
ema_decay = 0.999

snapshot_interval = 5000
sample_interval = 5000
num_samples = 3
