# What the stages of the toy cascade share: the English that Python carries, without a network.
# Texts of 64 tokens, their 32 most important ones, and the 16 most important of those.
#
# No run by itself: config/cascade_toy1.py to 3, and sample.py --cascade=out/toy1,out/toy2,out/toy3.
objective = "sedd"
graph = "absorb"
normalize = True
time_input = False

n_layer = 2
n_head = 4
n_embd = 128
positions = "both"

batch_size = 64
optimizer = "muon"
muon_lr = 0.02
learning_rate = 1e-2
beta2 = 0.98
weight_decay = 0.01
warmup_iters = 50
lr_schedule = "flat_cosine"
min_lr = 0.02
ema_decay = 0.0  # the learning rate goes to almost nothing, which averages as well

eval_iters = 20
log_interval = 100
prepare = (
    "-m cascade.stages --lengths=16,32,64 --preprocess='preprocess_prefix.py --mode=constituency "
    "--tagger=textblob --dataset_name=pydoc --tokenizer=train:2048 --num_shards=1' --stage="
)
