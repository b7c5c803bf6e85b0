"""Each example is short and runs."""

import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

import vqtok

ROOT = Path(__file__).parents[2]


def test_examples_are_short():
    for path in (ROOT / "examples").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 50, path.name


def train(run: Path, photos: Path, steps: int) -> None:
    stages = f"[{{steps = {steps}, images = 4, size = 32}}]"
    changes = [f'data.train=[{{path="{photos}"}}]', f'data.validate_on=["{photos}"]', "data.cache=none"]
    changes += [f"stages={stages}", "model.options.vocab_size=8", "data.workers=0", f"validate_every={steps}"]
    vqtok.train(ROOT / "examples/recipes/photo-f8.toml", run, changes=changes)


def ship(run: Path, root: Path) -> None:
    for folder in ("benchmarks/results", "docs", "vqtok/assets"):
        (root / folder).mkdir(parents=True)
    (root / "benchmarks/results/photo-f8.json").write_text('{"psnr": 9}')
    rows = ["set path width height package version licence"]
    rows += ["train x 1000 1000 p 1.0 MIT", "extra x 1000 2000 p 1.0 MIT"]
    rows += ["eval_public x 9 9 q 2.0 MIT", "val x 9 9 p 1.0 MIT"]
    (root / "MANIFEST.tsv").write_text("\n".join(rows).replace(" ", "\t"))
    script = [sys.executable, ROOT / "examples/ship_photo.py", run, "photo-f8", "--commit=abc", f"--root={root}"]
    command = [*map(str, script), "--manifest", str(root / "MANIFEST.tsv")]
    subprocess.run(command, check=True, capture_output=True, timeout=100)


def test_training_of_the_default_tokenizer_runs_resumes_and_gives_a_model(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.open(ROOT / "examples/photo.jpg").resize((192, 128)).save(photos / "photo.png")
    train(tmp_path / "run", photos, 4)
    lines = (tmp_path / "run/metrics.jsonl").read_text()
    train(tmp_path / "run", photos, 4)  # already at its end
    assert (tmp_path / "run/metrics.jsonl").read_text() == lines
    tokenizer = vqtok.load(tmp_path / "run/model")
    assert tokenizer.vocab_size == 8
    assert np.unique(tokenizer.tokenize(photos / "photo.png").ids).size > 1
    ship(tmp_path / "run", tmp_path)
    shipped = vqtok.load(tmp_path / "vqtok/assets/photo-f8")
    tokenizer.save(tmp_path / "half", dtype="float16")
    assert shipped.fingerprint == vqtok.load(tmp_path / "half").fingerprint
    provenance = shipped.card.provenance
    assert (provenance["commit"], provenance["steps"], provenance["evaluation"]) == ("abc", 4, {"psnr": 9})
    assert provenance["corpus"] == {"p 1.0": {"images": 2, "megapixels": 3.0, "licence": "MIT"}}, "evaluation left out"
    assert (tmp_path / "docs/photo-f8-training.jsonl").read_text() == lines
