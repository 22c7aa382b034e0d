# Characters of Shakespeare by masked diffusion: 65 symbols, windows of 64, the last tenth held out.
#
#   python train.py config/shakespeare.py
#
# The text is fetched from the hub, or: python prepare_pretrain.py --source=shakespeare
# --tokenizer=chars --path=input.txt. For expected losses and times see the README.
dataset = "shakespeare"
prepare = "prepare_pretrain.py --source=shakespeare --tokenizer=chars"
block_size = 64

objective = "masked"
noise = "loglinear"
time_input = False

n_layer = 4
n_head = 4
n_embd = 128
positions = "both"
dtype = "bfloat16"  # a third faster where the processor knows it; else --dtype=float32

batch_size = 32
max_iters = 2400
optimizer = "muon"
muon_lr = 0.01
learning_rate = 3e-3
beta2 = 0.98
weight_decay = 0.01
warmup_iters = 50
lr_schedule = "flat_cosine"
min_lr = 0.02
ema_decay = 0.0

eval_interval = 1200
eval_iters = 20
log_interval = 100
demo = "evaluate.py --rows=1000"
