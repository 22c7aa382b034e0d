# For sample.py and evaluate.py: ILM's stochastic generation. The gap comes first, the likeliest
# one; then the token, of the likeliest that together stay below 0.5.
#
#   python sample.py config/generate/p05.py --ckpt=out/ilm_lm1b
sampling_method = "sample_top_p"
p = 0.5
second_sampling_method = "sample_top_k"
second_top = 1
