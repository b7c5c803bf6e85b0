"""Near ties: the definition in float64, noise that flips only what is flagged, and the ledger of a run."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import vqtok
from tests.laws.test_dataset import photos, tiny, tokenize  # noqa: F401
from vqtok.dataset.checking import Comparison, check_all
from vqtok.dataset.ledger import Ties, joined, read_ties
from vqtok.dataset.ties import SHARE, Ledger, can_note, near_ties
from vqtok.errors import IntegrityError
from vqtok.image_tokenizer import ImageTokenizer

QUANTIZERS = {
    "l2": lambda: vqtok.VectorQuantizer(6, 50),
    "cosine": lambda: vqtok.VectorQuantizer(6, 50, "cosine"),
    "unit latents": lambda: vqtok.VectorQuantizer(6, 50, unit_latents=True),
    "averages": lambda: vqtok.EmaQuantizer(6, 50),
    "averages, cosine": lambda: vqtok.EmaQuantizer(6, 50, "cosine"),
}


def by_distances(z, rows, share):
    """Which of z [N, D] lie within share / (2 + 2 share) |a - b| of the plane between their row a and another b."""
    squares = ((z[:, None] - rows[None]) ** 2).sum(-1)
    codes = squares.argmin(1)
    apart = np.linalg.norm(rows[codes][:, None] - rows[None], axis=-1)
    with np.errstate(invalid="ignore"):
        away = (squares - squares.min(1, keepdims=True)) / (2 * apart)
    away[np.arange(len(z)), codes] = np.inf
    bound = share / (2 + 2 * share) * apart
    return codes, (away < bound).any(1), np.abs(away - bound).min(1)


@pytest.mark.parametrize("kind", QUANTIZERS)
@pytest.mark.parametrize("share", [1e-3, 0.1, 0.7])
def test_a_near_tie_is_a_latent_near_the_plane_between_two_codes(kind, share):
    quantizer = QUANTIZERS[kind]().eval()
    rng = np.random.default_rng(0)
    rows, latents = (rng.standard_normal((n, 6)).astype(np.float32) for n in (50, 4000))
    if isinstance(quantizer, vqtok.EmaQuantizer):
        quantizer.codebook = torch.from_numpy(rows)
    else:
        quantizer.codebook.data = torch.from_numpy(rows)
    z, e = latents.astype(np.float64), rows.astype(np.float64)
    if quantizer.metric == "cosine" or kind == "unit latents":
        z /= np.linalg.norm(z, axis=1, keepdims=True)
    if quantizer.metric == "cosine":
        e /= np.linalg.norm(e, axis=1, keepdims=True)
    expected_codes, expected, clear = by_distances(z, e, share)
    codes = quantizer.encode(torch.from_numpy(latents))
    sure = clear > 1e-5
    assert sure.mean() > 0.9
    np.testing.assert_array_equal(codes.numpy()[sure], expected_codes[sure])
    came = near_ties(quantizer, torch.from_numpy(latents), codes, share).numpy()
    np.testing.assert_array_equal(came[sure], expected[sure])
    assert 0 < came.sum() < len(came) or share == 1e-3


def test_noise_of_rounding_flips_only_what_is_flagged():
    """Noise of 4e-6 of a latent's length: what instruction sets differ by."""
    torch.manual_seed(0)
    quantizer = vqtok.EmaQuantizer(8, 4096, "cosine").eval()
    z = torch.nn.functional.normalize(torch.randn(200_000, 8), dim=1)
    codes = quantizer.encode(z)
    noise = torch.nn.functional.normalize(torch.randn_like(z), dim=1) * 4e-6
    flipped = quantizer.encode(z + noise) != codes
    flagged = near_ties(quantizer, z, codes)
    assert flipped.any()
    assert not (flipped & ~flagged).any()
    assert flagged.float().mean() < 2e-3


def test_a_ledger_changes_no_token_and_keeps_the_order(tiny):  # noqa: F811
    torch.manual_seed(0)
    ledger = Ledger(tiny)
    for shape in ((5, 3, 16, 24), (1, 3, 8, 8), (2, 3, 64, 64)):
        pixels = torch.rand(shape) * 2 - 1
        rows = ledger.tokenize_pixels(pixels)
        np.testing.assert_array_equal(np.stack([row.ids for row in rows]), tiny.encode(pixels).ids.flatten(1))
        latents = tiny.latents(pixels)
        expected = near_ties(tiny.quantizer, latents, tiny.encode(pixels).ids).flatten(1).numpy()
        assert [ledger.take() for _ in rows] == [np.flatnonzero(row).tolist() for row in expected]


def test_who_has_a_ledger(tiny, photos, tmp_path):  # noqa: F811
    assert can_note(tiny)
    other: ImageTokenizer = vqtok.build("rqvae-tiny")
    assert not can_note(other)
    assert tokenize(tiny, [photos], tmp_path / "stable").ties(0) is not None
    assert tokenize(tiny, [photos], tmp_path / "fast", repro="fast").ties(0) is None


@pytest.fixture
def near(monkeypatch):
    """Let near ties be common."""
    monkeypatch.setattr("vqtok.dataset.ties.near_ties", lambda q, z, c: near_ties(q, z, c, 0.2))


def test_the_ledger_of_a_run_names_the_near_ties_of_each_image(near, tiny, photos, tmp_path):  # noqa: F811
    folder = tokenize(tiny, [photos], tmp_path / "run")
    manifest, total = folder.manifest(), 0
    assert check_all(folder, manifest).problems == []
    for number in range(len(manifest.chunks)):
        ties = folder.ties(number)
        assert ties.share == SHARE
        for row in folder.tokens(number):
            pixels = tiny.preprocess(photos / row.keys[0])
            expected = near_ties(tiny.quantizer, tiny.latents(pixels), tiny.encode(pixels).ids, 0.2)
            assert list(ties.places.get(row.keys[0], [])) == np.flatnonzero(expected).tolist()
            total += int(expected.sum())
    assert total > 3
    again = tokenize(tiny, [photos], tmp_path / "again", workers=1, shard_size=4)
    assert [again.lines("ties", i).read_bytes() for i in range(4)] == [
        folder.lines("ties", i).read_bytes() for i in range(4)
    ]


def test_a_damaged_ledger_is_found(near, tiny, photos, tmp_path):  # noqa: F811
    folder = tokenize(tiny, [photos], tmp_path / "run")
    path = folder.lines("ties", 1)
    good = path.read_bytes()
    for bad in (b"", b"{}\n", good[:-3], good.replace(b"near", b"mear"), good + b'{"key":1,"near":[]}\n', b"[1]\n"):
        path.write_bytes(bad)
        problems = check_all(folder, folder.manifest()).problems
        assert [problem.shard for problem in problems] == [1]
        assert str(path) in problems[0].message
        with pytest.raises(IntegrityError, match="run vqtok verify"):
            folder.ties(1)


def test_other_machines_may_differ_at_near_ties_only(tiny, photos, tmp_path):  # noqa: F811
    folder = tokenize(tiny, [photos], tmp_path / "run")
    before = folder.tokens(0)
    elsewhere = {**before.record, "execution": {**before.record["execution"], "machine": "another"}}
    ids = before.ids.copy()
    ids[2] = (ids[2] + 1) % 64
    now = replace(before, ids=ids, record=elsewhere)
    key = before.keys[0]
    cases = {
        "a near tie": (now, Ties(1e-4, {key: [2]}), True, 1),
        "no near tie": (now, Ties(1e-4, {key: [3]}), False, 0),
        "of another image": (now, Ties(1e-4, {before.keys[1]: [2]}), False, 0),
        "no ledger": (now, None, True, 0),
        "the same machine": (replace(now, record=before.record), Ties(1e-4, {key: [2]}), False, 1),
    }
    for name, (again, ties, passed, count) in cases.items():
        comparison = Comparison()
        comparison.add(before, again, ties)
        assert (comparison.passed(), comparison.different, comparison.near) == (passed, 1, count), name
    many = replace(now, ids=(before.ids + 1) % 64)
    comparison = Comparison()
    comparison.add(before, many, Ties(1e-4, {row.keys[0]: range(row.ids.size) for row in before}))
    assert comparison.near == comparison.different == before.ids.size
    assert not comparison.passed(), "20 of a million, and no more"


def test_ledgers_are_joined_only_when_all_are_there():
    first, second = Ties(1e-4, {"a": [1]}), Ties(1e-4, {"b": [2]})
    assert joined([first, second]).places == {"a": [1], "b": [2]}
    assert joined([first, None]) is None
    assert joined([first, Ties(1e-3)]) is None


def test_bytes_of_a_ledger(tmp_path):
    """At 4 of 10,000 tokens, as photographs have with photo-f8: less than 8 bytes for 256 tokens and a key of 24."""
    keys = [f"train/n01440764/{i:08d}" for i in range(10_000)]
    rng = np.random.default_rng(0)
    near = {
        key: sorted({*rng.integers(0, 256, n).tolist()}) for key, n in zip(keys, rng.poisson(0.1, 10_000), strict=True)
    }
    lines = [json.dumps(row, separators=(",", ":")) for row in Ties(1e-4, near).rows(keys)]
    (tmp_path / "t").write_text("\n".join(lines))
    assert (tmp_path / "t").stat().st_size / 10_000 < 8
    assert read_ties(tmp_path / "t").places == {key: places for key, places in near.items() if places}
