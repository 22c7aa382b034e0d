# The demo: score entropy on palindromes of 4 to 16 letters, in frames of 32 bytes.
#
#   python train.py config/palindrome.py
#
# A small network without time (RADD: an absorbing score is a softmax, and the noise level only a
# factor), learnt positions and Muon. For expected losses and times see the README.
dataset = "palindrome"
prepare = "prepare_bytes.py --source=palindrome"
block_size = 32

objective = "sedd"
graph = "absorb"
normalize = True
time_input = False

n_layer = 3
n_head = 4
n_embd = 64
positions = "learned"

# two micro-batches, so that one or two processes do the same steps
batch_size = 32
gradient_accumulation_steps = 2
max_iters = 1800
optimizer = "muon"
muon_lr = 0.007
learning_rate = 2e-3
beta2 = 0.98
weight_decay = 0.01
warmup_iters = 50
lr_schedule = "flat_cosine"
min_lr = 0.02
ema_decay = 0.0  # the learning rate goes to almost nothing, which averages as well

eval_interval = 900
eval_iters = 20
log_interval = 100
demo = "evaluate.py --show"
