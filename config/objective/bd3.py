# Block diffusion (BD3): blocks of 8 tokens, from left to right. The clipped noise levels are
# published ones (LM1B); evaluate.py names the best for a model.
#
#   python train.py config/mdlm_pydoc.py config/objective/bd3.py
#   python train.py config/mdlm_pydoc.py config/objective/bd3.py \
#       --block_length=1 --t_low=0 --t_high=1    # one token after another
objective = "bd3"
block_length = 8
t_low = 0.3
t_high = 0.8
