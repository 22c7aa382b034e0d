"""How fast are training and sampling? `python -m bench`

textbook.py   textbooks of the same maths: the published network, losses, step and samplers
speed.py      our step and samplers beside a textbook, in one process, with equality rows first
"""
