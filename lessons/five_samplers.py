"""Lesson 2: one model, five samplers. What a network knows and what a sampler makes of it are two
things; each sampler is judged by its calls of the network and by what it writes.

The model is masked diffusion on a toy: palindromes of 6 or 8 letters out of four, BOS and EOS
around them, trained here for a few seconds. --ckpt= takes any masked model of palindromes, such as
out/palindrome_mdlm/ckpt.pt.

What to expect: places that are written in one call do not see each other, so four calls are cheap
and wrong. Surest first is even worse here: a call goes to the end of the text, where several places
guess each for itself (a quarter of the lengths are wrong), and few are left for the letters, of
which none is surer than its mirror image. One by one, the same order is best: the network is asked
first what it knows. (With a perfect one order would not matter: lesson 1.) A threshold saves few
calls, as free letters are never sure; on text that is mostly determined it saves most. One good
text again and again has 100 %, too, so the entropy of first letters stands beside, ln 4 = 1.39 nats
at most.

    python lessons/five_samplers.py           python lessons/five_samplers.py --plot=samplers.png
"""

import contextlib
import io
import random
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import checkpoint
import train
from configurator import UserError, load, optional, run
from corpus import CorpusWriter
from evaluate import unigram_entropy
from objective import SampleOptions
from sample import canvas, generate
from tasks.palindromes import is_exact
from tokenizer import Symbols

SAMPLES = 300
SAMPLERS = {
    "any places, 4 calls": {"sampler": "random", "steps": 4},
    "surest places, 4 calls": {"sampler": "confidence", "steps": 4},
    "reverse process, 64 steps": {"sampler": "ancestral", "steps": 64},
    "surest first, one by one": {"sampler": "confidence", "steps": 64},
    "all that are 90 % sure": {"sampler": "confidence", "unmask_schedule": "threshold"},
}


@dataclass(frozen=True)
class Lesson:
    ckpt: str = ""  # a masked model of palindromes; empty: train one
    steps: int = 250  # of that training
    plot: str = ""  # write a figure to this file


def write_corpus(folder: Path) -> None:
    """Rows BOS palindrome EOS; BOS is given."""
    rng, tokens = random.Random(0), Symbols(list("abcd"))
    bos, eos = (tokens.specials[name] for name in ("bos", "eos"))
    with CorpusWriter(folder, tokens, task="palindrome", source="lesson") as out:
        for split, rows in (("train", 5000), ("val", 100)):
            for _ in range(rows):
                half = "".join(rng.choices("abcd", k=rng.randint(3, 4)))
                out.row(split, [bos, *tokens.encode(half + half[::-1]), eos], prompt=1)


def trained(steps: int) -> checkpoint.Model:
    """A small masked model of such a corpus; what train.py prints is left out."""
    with tempfile.TemporaryDirectory() as folder:
        write_corpus(Path(folder) / "letters")
        flags = (
            f"data_dir={folder} dataset=letters out_dir={folder}/out objective=masked device=cpu"
        )
        flags += " time_input=False block_size=10 n_layer=2 n_head=4 n_embd=64 positions=both"
        flags += " batch_size=64 optimizer=muon learning_rate=5e-3 min_lr=0.02"
        flags += " lr_schedule=flat_cosine"
        flags += f" ema_decay=0 threads=1 eval_iters=2 max_iters={steps} eval_interval={steps}"
        with contextlib.redirect_stdout(io.StringIO()):
            train.main([f"--{one}" for one in flags.split()])
        return checkpoint.load(f"{folder}/out/ckpt.pt")


def main(argv: list[str]) -> None:
    cfg, _ = load(Lesson, argv)
    model = checkpoint.load(cfg.ckpt) if cfg.ckpt else trained(cfg.steps)
    if "confidence" not in model.objective.samplers:
        raise UserError(f"ckpt={cfg.ckpt} is no masked model: it has no such samplers")
    print(f"{SAMPLES} texts by each sampler, after {model.step} steps of training:")
    print(f"  {'sampler':<28} calls per text  exact palindromes  entropy of first letters")
    points = []
    for name, how in SAMPLERS.items():
        made = generate(model, [canvas(model)] * SAMPLES, SampleOptions(**how), seed=1)
        exact = sum(map(is_exact, made.texts)) / SAMPLES
        nats = unigram_entropy([ord(text[0]) for text in made.texts if text])
        nfe = made.rows / SAMPLES
        print(f"  {name:<28} {nfe:14.1f}  {exact:17.1%}  {nats:19.2f} nats")
        points.append((name, nfe, exact))
    if cfg.plot:
        plt = optional("matplotlib.pyplot", "matplotlib")
        for name, nfe, exact in points:
            plt.plot(nfe, exact, "o", label=name)
        plt.xlabel("network calls per text")
        plt.ylabel("exact palindromes")
        plt.legend()
        plt.savefig(cfg.plot)


if __name__ == "__main__":
    run(main)
