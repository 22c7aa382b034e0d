"""How fast are training and sampling? `python -m bench`, and on a GPU `python -m bench.gpu`

textbook.py   textbooks of the same maths: the published network, losses, step and samplers
speed.py      our step and samplers beside a textbook, in one process, with equality rows first
gpu.py        steps, sampling, memory and kernels on a GPU, and whether it computes what a CPU does
"""
