# Fine-tuning CodeGen on patches as the CarperAI diff models were: rows of 2048 tokens with several
# samples, which do not see each other here, in steps of 256 rows. Needs a GPU and
# CodeGen with its tokenizer.json and model.safetensors, from the hub or as a folder.
#
#   python train.py config/diff_codegen.py
dataset = "diff_codegen"
prepare = (
    "-m patches.prepare --tokenizer=Salesforce/codegen-350M-mono --block_size=2048 "
    "--concatenate_texts"
)
init_from = "Salesforce/codegen-350M-mono"
block_size = 2048

objective = "ar"
time_input = False
dropout = 0.1
gradient_checkpointing = True

batch_size = 2
gradient_accumulation_steps = 128
learning_rate = 1e-5
beta1 = 0.9
beta2 = 0.95
weight_decay = 2e-2
warmup_iters = 895
lr_schedule = "constant"
ema_decay = 0.0
max_iters = 10000
demo = "evaluate.py --samples=100"
