"""Figures and a summary of a prepared byte corpus; `prepare_bytes.py --report=FOLDER` calls it."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from configurator import UserError, optional
from corpus import Batch, Corpus, shuffled

ROWS = 64  # per batch, one figure each


def write_report(corpus: Corpus, folder: Path, num_batches: int, max_samples: int = 0) -> None:
    """Write batch_0.png ... of `num_batches` training batches below `folder`, drawn from the first
    `max_samples` rows (0: all); print a summary.

    Raises UserError if the corpus is not of bytes or the folder cannot be made.
    """
    if corpus.tokenizer.kind != "bytes" or not corpus.rows("train"):
        raise UserError(f"report: {corpus.folder} does not hold rows of bytes")
    matplotlib = optional("matplotlib")
    matplotlib.use("Agg")  # files only: no window, no display needed
    pyplot = optional("matplotlib.pyplot", "matplotlib")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"report: cannot make the folder {folder}: {e.strerror}") from e
    block = corpus.meta["splits"]["train"]["longest"]
    total, sizes = Counter(), []
    for number in range(num_batches):
        places = np.arange(number * ROWS, (number + 1) * ROWS)
        rows = shuffled(places, min(corpus.rows("train"), max_samples or 1 << 62), seed=0)
        batch = corpus.batch("train", rows, block)
        figure = draw(corpus, batch, f"{corpus.folder.name}, batch {number}", pyplot)
        figure.savefig(folder / f"batch_{number}.png", dpi=100)
        pyplot.close(figure)
        total.update(written(batch).tolist())
        sizes.extend(batch.length.tolist())
    print(f"{folder}: {num_batches} figures of {ROWS} rows each; in these rows")
    print(f"  length {np.mean(sizes):.1f} +- {np.std(sizes):.1f} ids, {min(sizes)} to {max(sizes)}")
    common = ", ".join(f"{name(i)} {c / sum(total.values()):.1%}" for i, c in total.most_common(10))
    print(f"  {len(total)} different ids of {corpus.vocab_size}; most frequent: {common}")


def written(batch: Batch) -> np.ndarray:
    """The ids of a batch without padding, flat."""
    inside = np.arange(batch.ids.shape[1]) < batch.length.numpy()[:, None]  # (B, T)
    return batch.ids.numpy()[inside]


def name(i: int) -> str:
    """An id in readable form: the character, the special's name or the byte in hexadecimal."""
    if i >= 256:
        return {256: "PAD", 257: "BOS", 258: "EOS"}[i]
    return repr(chr(i)) if 32 <= i < 127 else f"0x{i:02x}"


def draw(corpus: Corpus, batch: Batch, title: str, pyplot: Any) -> Any:
    """One batch -> a figure of two by three panels."""
    ids, lengths, flat = batch.ids.numpy(), batch.length.numpy(), written(batch)
    figure, panels = pyplot.subplots(2, 3, figsize=(18, 11), layout="constrained")
    figure.suptitle(title)
    (values, specials, histogram), (characters, heat, text) = panels
    counts = np.bincount(ids.ravel(), minlength=corpus.vocab_size)
    values.bar(np.arange(256), counts[:256], width=1.0)
    values.set(title="byte values", xlabel="byte", ylabel="count")
    specials.bar(["PAD", "BOS", "EOS"], counts[256:])
    specials.set(title="special ids (PAD fills rows when they are read)", ylabel="count")
    histogram.hist(lengths, bins=np.arange(lengths.min(), lengths.max() + 2) - 0.5)
    histogram.set(title="row lengths", xlabel="ids", ylabel="rows")
    top = Counter(i for i in flat.tolist() if i < 256).most_common(20)
    characters.bar([name(i) for i, _ in top], [c for _, c in top])
    characters.tick_params(axis="x", rotation=90)
    characters.set(title="20 most frequent characters", ylabel="count")
    figure.colorbar(heat.imshow(ids[:10], aspect="auto", interpolation="nearest"), ax=heat)
    heat.set(title="ids of the first 10 rows", xlabel="position", ylabel="row")
    lines = [
        f"{len(ids)} rows of up to {ids.shape[1]} ids, mean length {lengths.mean():.1f}",
        f"{len(np.unique(flat))} different ids, {1 - flat.size / ids.size:.1%} padding",
        "",
        # ascii(): figures have no glyphs for every character
        *(ascii(corpus.tokenizer.decode(row))[:70] for row in ids[:10].tolist()),
    ]
    text.axis("off")
    # a dollar sign would begin a formula
    body = "\n".join(lines).replace("$", r"\$")
    text.text(0, 1, body, va="top", family="monospace", fontsize=9)
    return figure
