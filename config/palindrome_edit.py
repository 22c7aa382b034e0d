# The demo as masked diffusion that can edit: a tenth of the visible letters are wrong in training,
# and --remask=edit masks again what is improbable beside the rest of the text.
#
#   python train.py config/palindrome_edit.py
from config.palindrome_mdlm import *  # noqa: F403

token_noise = 0.1
demo = "evaluate.py --sampler=confidence --remask=edit --show"
