# The Insertion Transformer on star graphs of the published sizes.
#
#   python train.py config/star_easy.py config/published/it.py
#   python evaluate.py config/generate/it.py --ckpt=out/it_star_easy     # it_stochastic
objective = "it"
time_input = False
eos_weight = 1.0
warmup_iters = 500
