"""Untrusted images in, pixels in a model's own range out, and back; without torch."""

from __future__ import annotations

from vqtok.images.decode import RGB as RGB
from vqtok.images.decode import Source as Source
from vqtok.images.decode import decode as decode
from vqtok.images.files import Limits as Limits
from vqtok.images.files import display_name as display_name
from vqtok.images.preprocess import PreprocessSpec as PreprocessSpec
from vqtok.images.preprocess import from_pixels as from_pixels
from vqtok.images.preprocess import padded_size as padded_size
from vqtok.images.preprocess import to_pixels as to_pixels
from vqtok.images.preprocess import to_rgb as to_rgb
