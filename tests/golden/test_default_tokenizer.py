"""The default tokenizer's tokens, written down. They change only with the model or with what preprocessing means.

To write them anew after such a change: ``python -m tests.golden.test_default_tokenizer``; it prints what changed.
"""

import json
from pathlib import Path

import numpy as np
import torch

import vqtok
from tests.golden.special_images import special_images
from vqtok.evaluation.metrics import psnr

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).with_name("photo-f8.json")
# Other processors round the encoder's sums in other orders, by about 1e-6; a code may differ where it was this close.
NEAR_TIE = 1e-4


def sources() -> dict[str, object]:
    return {**special_images(), "photo": ROOT / "examples/photo.jpg"}


def margins(tokenizer: vqtok.Tokenizer, image: object) -> np.ndarray:
    """Return how much each token's score is above the second best, as cosine."""
    latents = tokenizer.latents(tokenizer.preprocess(image)).flatten(0, -2)
    codebook = tokenizer.quantizer.decode(torch.arange(tokenizer.vocab_size))
    scores = torch.nn.functional.normalize(latents, dim=-1).double() @ codebook.double().T
    best = scores.topk(2, dim=1).values
    return (best[:, 0] - best[:, 1]).detach().numpy()


def test_the_model_is_the_one_that_was_shipped(photo_f8):
    assert photo_f8.fingerprint == json.loads(GOLDEN.read_text())["fingerprint"]


def test_tokens_are_those_written_down_but_for_near_ties(photo_f8):
    golden = json.loads(GOLDEN.read_text())["tokens"]
    assert golden.keys() == sources().keys()
    for name, image in sources().items():
        ids = photo_f8.tokenize(image).ids
        differs = ids != np.array(golden[name])
        if differs.any():
            assert (margins(photo_f8, image)[differs] < NEAR_TIE).all(), name
        assert differs.mean() <= 0.02, name


def test_flat_images_have_one_token_away_from_the_border(photo_f8):
    for level in (0, 128, 255):
        grid = np.asarray(photo_f8.tokenize(np.full((256, 256, 3), level, np.uint8)))[0]
        assert np.unique(grid[8:-8, 8:-8]).size == 1, level


def test_special_images_come_back_recognisably(photo_f8):
    for name, floor in {"black": 30, "white": 30, "grey": 30, "gradient": 20}.items():
        image = special_images()[name]
        back = np.asarray(photo_f8.detokenize(photo_f8.tokenize(image))[0])
        assert psnr(image, back) > floor, name
    board = special_images()["coarse checkerboard"]
    back = np.asarray(photo_f8.detokenize(photo_f8.tokenize(board))[0])
    assert ((back > 127) == (board > 127)).mean() > 0.85, "black squares stay black, white ones white"


def write() -> None:
    """Write the golden tokens anew."""
    tokenizer = vqtok.load()
    old = json.loads(GOLDEN.read_text())["tokens"] if GOLDEN.exists() else {}
    new = {name: tokenizer.tokenize(image).ids.tolist() for name, image in sources().items()}
    for name, ids in new.items():
        flips = sum(a != b for a, b in zip(ids, old.get(name, []), strict=False))
        print(f"{name}: {flips} of {len(ids)} tokens changed" if name in old else f"{name}: new")
    rows = ",\n".join(f"    {json.dumps(name)}: {json.dumps(ids)}" for name, ids in new.items())
    GOLDEN.write_text(f'{{\n  "fingerprint": "{tokenizer.fingerprint}",\n  "tokens": {{\n{rows}\n  }}\n}}\n')


if __name__ == "__main__":
    write()
