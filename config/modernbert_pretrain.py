# ModernBERT as a masked diffusion model, first stage: LLaDA's training on general text.
#
#   torchrun --standalone --nproc_per_node=4 train.py config/modernbert_pretrain.py
#   python train.py config/modernbert_pretrain.py config/modernbert_tiny.py   # without a network
#
# 256 rows of 1024 tokens per step, 500,000 steps: the recipe of the ModernBERT diffusion model.
dataset = "fineweb_wikipedia"
prepare = (
    "prepare_pretrain.py --large_dataset --packing=pad --context_length=1024 --num_workers=16 "
    "--hf_model_name=answerdotai/ModernBERT-large"
)
init_from = "answerdotai/ModernBERT-large"
block_size = 1024

objective = "masked"
noise = "clamped"
time_input = False
gradient_checkpointing = True

batch_size = 64
gradient_accumulation_steps = 4
max_iters = 500_000
learning_rate = 5e-5
beta2 = 0.999
weight_decay = 0.01
warmup_iters = 1000
lr_schedule = "cosine"
min_lr = 0.0
ema_decay = 0.0
eval_interval = 2500
log_interval = 10
