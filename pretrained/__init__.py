"""Networks and weights of others, read and written under our names.

gguf.py        causal language models in the format of llama.cpp
files.py       files of weights, whole or in parts, and the names that training gave them
foreign.py     arguments of other projects, and what to write here instead
published.py   weights of SEDD, MDLM and transformers: read strictly, never unpickled
ilm.py         weights of ILM
masked.py      masked language models of transformers as the network
causal.py      causal ones, also made to read both ways, and XLNet; CodeGen's weights as GPT-J's
"""
