"""Put a finished training into the package as the default tokenizer: its weights, and where they come from.

python benchmarks/rate_distortion.py KODAK --usage PUBLIC --model RUN/best --json benchmarks/results/photo-f8.json
python examples/ship_photo_f8.py RUN --commit HASH --manifest corpus/MANIFEST.tsv
python -m tests.golden.test_default_tokenizer
"""

import argparse
import csv
import json
from collections import defaultdict
from pathlib import Path

import vqtok

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("run", type=Path, help="folder of the run")
parser.add_argument("--commit", required=True, help="commit whose examples/train_photo_f8.py was run")
parser.add_argument("--manifest", type=Path, required=True, help="table of the corpus, one line an image")
parser.add_argument("--root", type=Path, default=Path(__file__).parents[1], help="checkout to put it into")
options = parser.parse_args()

packages = defaultdict(list)
with options.manifest.open(newline="") as file:
    for row in csv.DictReader(file, delimiter="\t"):
        if row["set"] in ("train", "extra"):
            packages[row["package"], row["version"], row["licence"]].append(int(row["width"]) * int(row["height"]))
curve = [json.loads(line) for line in (options.run / "metrics.jsonl").read_text().splitlines()]
best = max(curve, key=lambda row: row["psnr"])
provenance = {
    "made_by": "examples/train_photo_f8.py",
    "commit": options.commit,
    "steps": curve[-1]["step"],
    "validation": {"step": best["step"], "psnr_db": round(best["psnr"], 3), "images": "held out by hash of the name"},
    "evaluation": json.loads((options.root / "benchmarks/results/photo-f8.json").read_text()),
    "never_trained_on": "the 24 Kodak images, the public evaluation photographs, the validation photographs",
    "corpus": {
        f"{name} {version}": {"images": len(sizes), "megapixels": round(sum(sizes) / 1e6, 1), "licence": licence}
        for (name, version, licence), sizes in sorted(packages.items())
    },
}
tokenizer = vqtok.load(options.run / "best")
tokenizer.card = tokenizer.card.model_copy(update={"provenance": provenance, "licence": "Apache-2.0"})
tokenizer.save(options.root / "vqtok/assets/photo-f8", overwrite=True, dtype="float16")
(options.root / "docs/photo-f8-training.jsonl").write_text("".join(json.dumps(row) + "\n" for row in curve))
