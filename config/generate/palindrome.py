# For sample.py: the settings of the byte fork of SEDD, 100 mirrored samples of at most 12 letters.
#
#   python sample.py config/generate/palindrome.py --ckpt=out/palindrome_finetune
num_samples = 100
max_length = 12
sampler = "analytic"
steps = 100
palindrome = True
