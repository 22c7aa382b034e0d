# ILM on a small grammar, all of whose sentences are known.
#
#   python train.py config/ilm_grammar.py
#
# evaluate.py tells how many of its samples are sentences.
from config.star_easy import *  # noqa: F403

dataset = "grammar"
prepare = "-m tasks.stars --task=grammar"
block_size = 15

objective = "ilm"
batch_size = 256
max_iters = 100_000
warmup_iters = 1000
demo = "evaluate.py"
