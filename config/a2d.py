# Left to right becomes any order: masked diffusion that begins with a causal model of transformers
# (DiffuLLaMA), a GPT-2, Llama or Qwen. The corpus has the tokenizer of that model.
#
#   python prepare_pretrain.py --source=pydoc --tokenizer=FOLDER --dataset=a2d
#   python train.py config/a2d.py --init_from=FOLDER      # or a GGUF file
#   python train.py config/a2d.py --init_from=FOLDER --anneal_steps=100   # of the causal mask
#
# docs/a2d.md has what to expect.
dataset = "a2d"
block_size = 128

objective = "masked"
noise = "affine"
time_input = False
shift = True

batch_size = 4
max_iters = 1000
learning_rate = 1e-4
warmup_iters = 20
weight_decay = 0.01
lr_schedule = "linear"
min_lr = 0.1
ema_decay = 0.0
eval_interval = 100
log_interval = 10
