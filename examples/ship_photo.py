"""Put a finished training into the package as a tokenizer of photographs: its weights, and where they come from.

python benchmarks/rate_distortion.py KODAK --usage PUBLIC --model RUN/model --json benchmarks/results/photo-f8.json
python examples/ship_photo.py RUN photo-f8 --commit HASH --manifest corpus/MANIFEST.tsv
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
parser.add_argument("name", help="of the tokenizer, and of its recipe")
parser.add_argument("--commit", required=True, help="commit whose recipe was run")
parser.add_argument("--manifest", type=Path, required=True, help="table of the corpus, one line an image")
parser.add_argument("--root", type=Path, default=Path(__file__).parents[1], help="checkout to put it into")
options = parser.parse_args()

packages = defaultdict(list)
with options.manifest.open(newline="") as file:
    for row in csv.DictReader(file, delimiter="\t"):
        if row["set"] in ("train", "extra"):
            packages[row["package"], row["version"], row["licence"]].append(int(row["width"]) * int(row["height"]))
rows = [json.loads(line) for line in (options.run / "metrics.jsonl").read_text().splitlines()]
best = [row for row in rows if row["event"] == "validate" and row["best"]][-1]
provenance = {
    "made_by": f"examples/recipes/{options.name}.toml",
    "commit": options.commit,
    "steps": rows[-1]["step"],
    "validation": {"step": best["step"], "psnr_db": round(best["psnr"], 3), "images": "held out by hash of the name"},
    "evaluation": json.loads((options.root / f"benchmarks/results/{options.name}.json").read_text()),
    "never_trained_on": "the 24 Kodak images, the public evaluation photographs, the validation photographs",
    "corpus": {
        f"{name} {version}": {"images": len(sizes), "megapixels": round(sum(sizes) / 1e6, 1), "licence": licence}
        for (name, version, licence), sizes in sorted(packages.items())
    },
}
tokenizer = vqtok.load(options.run / "model")
card = tokenizer.card or parser.error("expected a model with a card")
tokenizer.card = card.model_copy(update={"provenance": provenance, "licence": "Apache-2.0"})
tokenizer.save(options.root / f"vqtok/assets/{options.name}", overwrite=True, dtype="float16")
lines = "".join(json.dumps(row) + "\n" for row in rows)
(options.root / f"docs/{options.name}-training.jsonl").write_text(lines)
