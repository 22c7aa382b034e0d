"""One network over many processes.

processes.py            this process among those of a job: joining and leaving them
fsdp.py                 DDP: a whole network in each process; FSDP2: parts of it
sharded_checkpoint.py   checkpoints that every process writes its own part of
convert.py              `python -m parallel.convert`: such a checkpoint <-> ckpt.pt
agree.py                `train.py --debug=multinode`: do two nodes train as one process does?
scale.py                `python -m parallel.scale`: memory, speed and checkpoint size of any model
"""
