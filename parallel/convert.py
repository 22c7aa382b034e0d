"""A checkpoint in one file -> the folder of a sharded run, and the reverse.

python -m parallel.convert --source=out/x/ckpt --out=out/x/ckpt.pt
python -m parallel.convert --source=out/x/ckpt.pt --out=out/y/ckpt
"""

from dataclasses import dataclass
from pathlib import Path

import checkpoint
from configurator import UserError, load, require, run
from parallel import sharded_checkpoint


@dataclass(frozen=True)
class ConvertConfig:
    """The options of this command."""

    source: str = ""  # a run: its folder, its ckpt.pt or the folder of a sharded one
    out: str = ""  # the other: a name that ends in .pt, or a folder

    def __post_init__(self):
        for key in ("source", "out"):
            require(self, key, bool(getattr(self, key)), "the name of a checkpoint")


def main(argv: list[str]) -> None:
    cfg, _ = load(ConvertConfig, argv)
    out = Path(cfg.out)
    if out.exists():
        raise UserError(f"out={out} exists already")
    state = checkpoint.read(checkpoint.find(cfg.source))
    (checkpoint.save if out.suffix == ".pt" else sharded_checkpoint.save)(state, out)
    print(f"wrote {out}: step {state['step']} of {cfg.source}")


if __name__ == "__main__":
    run(main)
