# The first stage of config/modernbert_pretrain.py with a small random ModernBERT and no network.
#
#   python train.py config/modernbert_pretrain.py config/modernbert_tiny.py
out_dir = "out/modernbert_tiny"  # with whatever stands before it
dataset = "pydoc_bpe"
prepare = "prepare_pretrain.py --source=pydoc --tokenizer=train:4096"
init_from = "modernbert-tiny"
block_size = 128
gradient_checkpointing = False

batch_size = 16
gradient_accumulation_steps = 1
max_iters = 600
learning_rate = 1e-3
warmup_iters = 50
eval_interval = 300
eval_iters = 20
