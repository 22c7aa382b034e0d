# A model that writes patches, from left to right: the history of this repository, hunk by hunk.
#
#   python train.py config/diff_ar.py
#   python sample.py --ckpt=out/diff_ar/ckpt.pt --file=f.py --lines=1:9 --message="rename x to y"
#
# Without a git history, name commits: --prepare="-m patches.prepare --source=FILE.jsonl ...".
dataset = "diff_hunks"
prepare = (
    "-m patches.prepare --ext=.py --window=3 --per_hunk --max_bytes=200000 "
    "--tokenizer=train:2048 --block_size=512"
)
block_size = 512

objective = "ar"
time_input = False
n_layer = 3
n_head = 4
n_embd = 128
dropout = 0.0  # a causal LM of others has its own number here: set the one that is wanted

batch_size = 8
optimizer = "muon"
muon_lr = 0.01
learning_rate = 3e-3
beta2 = 0.98
weight_decay = 0.01
warmup_iters = 20
lr_schedule = "flat_cosine"
min_lr = 0.02
ema_decay = 0.0  # the learning rate goes to almost nothing, which averages as well

max_iters = 300
eval_interval = 150
eval_iters = 5
log_interval = 25
demo = "evaluate.py --samples=50"
