"""Draw the training curve of the default tokenizer from its log; needs matplotlib (``pip install 'vqtok[eval]'``).

python benchmarks/training_curve.py [LOG.jsonl] [PICTURE.png]
"""

# Other libraries are extras, or not there at all.
# pyright: reportMissingImports=false
from __future__ import annotations

import argparse
import json
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def main() -> None:
    """Read the log, write the picture."""
    import matplotlib.pyplot as plt

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", type=Path, nargs="?", default=DOCS / "photo-f8-training.jsonl")
    parser.add_argument("picture", type=Path, nargs="?", default=DOCS / "photo-f8-training.png")
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.log.read_text().splitlines()]
    steps = [row["step"] for row in rows]
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
    axes[0].plot(steps, [row["psnr"] for row in rows], "o-", color="#1f6f8b", markersize=3)
    axes[0].set(title="validation photographs", ylabel="PSNR (dB)", xlabel="step")
    for name, colour in (("mse", "#99582a"), ("commitment", "#5f0f40")):
        axes[1].semilogy(steps, [row[name] for row in rows], "o-", color=colour, markersize=3, label=name)
    axes[1].set(title="training losses", xlabel="step")
    axes[1].legend(frameon=False)
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(options.picture, dpi=110)


if __name__ == "__main__":
    main()
