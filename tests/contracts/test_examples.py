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
    small = [f"--option={name}=8" for name in ("vocab_size",)]
    command = [
        sys.executable,
        ROOT / "examples/train_photo_f8.py",
        run,
        "--photos",
        photos,
        "--validate",
        photos,
        *small,
    ]
    subprocess.run([*map(str, command), "--steps", str(steps)], check=True, capture_output=True, timeout=110)


def test_training_of_the_default_tokenizer_runs_resumes_and_gives_a_model(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.open(ROOT / "examples/photo.jpg").resize((192, 128)).save(photos / "photo.png")
    train(tmp_path / "run", photos, 4)
    lines = (tmp_path / "run/metrics.jsonl").read_text()
    train(tmp_path / "run", photos, 4)  # already at its end
    assert (tmp_path / "run/metrics.jsonl").read_text() == lines
    tokenizer = vqtok.load(tmp_path / "run/best")
    assert tokenizer.vocab_size == 8
    assert np.unique(tokenizer.tokenize(photos / "photo.png").ids).size > 1
