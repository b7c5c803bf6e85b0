"""FSQ, LFQ and BSQ: every code stands for one vector and comes back, and no codebook is ever made."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.laws.sizes import Largest
from vqtok.errors import ConfigError
from vqtok.ops.levels import level_bound
from vqtok.quantizers import BinarySphericalQuantizer, FiniteScalarQuantizer, LookupFreeQuantizer

SIGNS = {
    "big": lambda bits: LookupFreeQuantizer(bits),
    "little": lambda bits: LookupFreeQuantizer(bits, "little", scale=0.1, group_bits=5),
    "sphere": lambda bits: BinarySphericalQuantizer(bits),
}


@pytest.mark.parametrize("make", SIGNS.values(), ids=SIGNS)
@pytest.mark.parametrize("bits", [1, 5, 16])
def test_every_code_of_signs_comes_back(make, bits):
    quantizer, codes = make(bits), torch.arange(1 << bits)
    vectors = quantizer.decode(codes)
    assert torch.equal(quantizer.encode(vectors), codes)
    assert len(vectors.unique(dim=0)) == len(codes)


@pytest.mark.parametrize("make", SIGNS.values(), ids=SIGNS)
@settings(max_examples=20, deadline=None)
@given(data=st.data(), bits=st.integers(17, 62))
def test_codes_of_many_bits_come_back(make, data, bits):
    codes = torch.tensor(data.draw(st.lists(st.integers(0, (1 << bits) - 1), min_size=1, max_size=9)))
    quantizer = make(bits)
    assert torch.equal(quantizer.encode(quantizer.decode(codes)), codes)
    # Bit by bit, in the numbers that Python has.
    places = range(bits) if getattr(quantizer, "endian", "big") == "little" else range(bits - 1, -1, -1)
    expected = [[code >> place & 1 for place in places] for code in codes.tolist()]
    assert (quantizer.decode(codes) > 0).long().tolist() == expected


def centres(quantizer, vectors):
    """A latent in the middle of the level of each vector, by the inverse of its bound."""
    if quantizer.symmetric:
        return vectors.double().clamp(-0.999, 0.999).atanh()
    bounds = torch.tensor([level_bound(count) for count in quantizer.levels], dtype=torch.float64)
    half, offset, shift = bounds.unbind(-1)
    widths = torch.tensor([count // 2 for count in quantizer.levels])
    return (((vectors.double() * widths + offset) / half).clamp(-1, 1).atanh() - shift).clamp(-20, 20)


@pytest.mark.parametrize("levels", [(8, 8, 8, 5, 5, 5), (3,), (4, 3, 7), (256, 255)], ids=str)
@pytest.mark.parametrize("symmetric", [False, True])
def test_every_code_of_levels_comes_back(levels, symmetric):
    quantizer = FiniteScalarQuantizer(levels, symmetric)
    codes = torch.arange(quantizer.vocab_size)
    vectors = quantizer.decode(codes)
    assert torch.equal(quantizer.encode(centres(quantizer, vectors)), codes)
    assert len(vectors.unique(dim=0)) == len(codes) == math.prod(levels)
    assert vectors.abs().max() <= 1
    if symmetric:
        assert torch.equal(vectors, -vectors.flip(0))


@settings(max_examples=30, deadline=None)
@given(data=st.data(), symmetric=st.booleans())
def test_codes_of_any_levels_come_back(data, symmetric):
    levels = data.draw(st.lists(st.integers(2 if symmetric else 3, 40), min_size=1, max_size=6))
    quantizer = FiniteScalarQuantizer(levels, symmetric)
    drawn = st.lists(st.integers(0, quantizer.vocab_size - 1), min_size=1, max_size=9)
    codes = torch.tensor(data.draw(drawn))
    assert torch.equal(quantizer.encode(centres(quantizer, quantizer.decode(codes))), codes)


def test_a_symmetric_level_begins_at_its_float32_and_not_one_before():
    quantizer = FiniteScalarQuantizer((4, 7), symmetric=True)
    for d, count in enumerate(quantizer.levels):
        for level in range(1, count):
            end = math.atanh((2 * level - 1) / (count - 1) - 1)
            least = torch.tensor(end, dtype=torch.float64).float()
            least = least if least.double() >= end else least.nextafter(torch.tensor(math.inf))
            latents = torch.zeros(2, 2)
            latents[0, d], latents[1, d] = least, least.nextafter(torch.tensor(-math.inf))
            digits = quantizer.encode(latents) // (4 if d else 1) % count
            assert digits.tolist() == [level, level - 1]


@pytest.mark.parametrize(
    "make",
    [
        lambda: LookupFreeQuantizer(18),
        lambda: BinarySphericalQuantizer(36),
        lambda: FiniteScalarQuantizer((8, 8, 8, 5, 5, 5)),
        lambda: FiniteScalarQuantizer((8, 8, 8, 5, 5, 5), symmetric=True),
    ],
)
def test_huge_vocabularies_are_never_written_out(make):
    with Largest() as largest:
        quantizer = make()
        latents = torch.randn(7, quantizer.dim)
        quantizer.decode(quantizer.encode(latents))
    assert largest.size == 7 * quantizer.dim
    assert quantizer.state_dict() == {}
    with Largest() as largest:
        quantizer(latents)
    assert largest.size <= 1 << 18  # of 18 bits the mean distribution, and never that of each latent


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LookupFreeQuantizer(0), r"bits in 1..62, got 0"),
        (lambda: LookupFreeQuantizer(63), r"bits in 1..62"),
        (lambda: LookupFreeQuantizer(4, "middle"), "big, little"),
        (lambda: LookupFreeQuantizer(4, scale=0.0), "scale > 0"),
        (lambda: LookupFreeQuantizer(4, temperature=-1.0), "temperature > 0"),
        (lambda: LookupFreeQuantizer(30, group_bits=25), r"group_bits in 1..24"),
        (lambda: BinarySphericalQuantizer(0), "bits in 1..62"),
        (lambda: BinarySphericalQuantizer(4, temperature=0.0), "temperature > 0"),
        (lambda: BinarySphericalQuantizer(4, group_bits=0), r"group_bits in 1..24"),
        (lambda: FiniteScalarQuantizer([]), "at least 3, one a dimension"),
        (lambda: FiniteScalarQuantizer((8, 2)), "at least 3"),
        (lambda: FiniteScalarQuantizer((8, 1), symmetric=True), "at least 2"),
        (lambda: FiniteScalarQuantizer((8, 5.0)), "whole numbers"),
        (lambda: FiniteScalarQuantizer((1 << 40, 1 << 40)), "fits in int64"),
        (lambda: LookupFreeQuantizer(4).decode(torch.tensor([16])), r"codes in 0..15, got 16"),
        (lambda: BinarySphericalQuantizer(4).decode(torch.tensor([-1])), r"codes in 0..15, got -1"),
        (lambda: FiniteScalarQuantizer((3, 3), True).decode(torch.tensor([9])), r"codes in 0..8, got 9"),
        (lambda: LookupFreeQuantizer(4).decode(torch.zeros(2)), "codes of int64"),
    ],
)
def test_what_cannot_be_is_refused_with_what_was_expected(make, words):
    with pytest.raises(ConfigError, match=words):
        make()
