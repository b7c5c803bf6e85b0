"""Hostile and odd image files, made at run time; nothing is copied from anybody's corpus.

Each case says which error kinds it may end with, and the pixels it must have if it does not. The kinds are numbered
as in the project's list of malformed inputs (1 to 34); 35 and 36 need a file system and live in the test.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

FORMATS = {"JPEG": {"quality": 90}, "PNG": {}, "WEBP": {"lossless": True}, "BMP": {}, "GIF": {}}
DAMAGE = ("empty", "format", "truncated", "corrupt")
ANY = (*DAMAGE, "too_large", "too_many_pixels", "depth", "decode")


@dataclass(frozen=True, eq=False)
class Case:
    """One file: allowed error kinds (none: it must decode), and its pixels where they are known."""

    name: str
    data: bytes
    kinds: tuple[str, ...] = ()
    pixels: np.ndarray | None = None
    says: str = ""


def picture(height=24, width=31, channels=3, seed=0):
    """A smooth picture with a little noise, uint8 [height, width, channels]."""
    rng = np.random.default_rng(seed)
    ramp = np.add.outer(np.arange(height) * 5, np.arange(width) * 3)[..., None] + np.arange(channels) * 20
    return (ramp + rng.integers(0, 30, (height, width, channels))).clip(0, 255).astype(np.uint8)


def save(image, format, **options):
    buffer = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(buffer, format, **{**FORMATS.get(format, {}), **options})
    return buffer.getvalue()


def reference(data):
    """Pixels by plain Pillow, for lossy files."""
    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


def chunk(name, body=b"", crc=0):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body) ^ crc)


def png(rows, width, height, depth=8, colour=2, before=b"", after=b"", tail=b"", interlaced=0):
    """A PNG of raw big-endian rows (bytes [height][...]), unfiltered."""
    data = zlib.compress(b"".join(b"\0" + row for row in rows)) + tail
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    parts = chunk(b"IHDR", header) + before + chunk(b"IDAT", data) + after + chunk(b"IEND")
    return b"\x89PNG\r\n\x1a\n" + parts


def png_of(array, depth=8, **parts):
    """A PNG of uint8 or uint16 [H, W, C]: 1 grey, 2 grey with alpha, 3 colour, 4 colour with alpha."""
    rows = [row.astype(">u2" if depth == 16 else "u1").tobytes() for row in array]
    return png(rows, array.shape[1], array.shape[0], depth, {1: 0, 2: 4, 3: 2, 4: 6}[array.shape[2]], **parts)


def interlaced_rows(array):
    """The rows of an interlaced PNG of uint8 [H, W, C], pass by pass (PNG specification, section 8.2)."""
    for sub in (
        array[0::8, 0::8],
        array[0::8, 4::8],
        array[4::8, 0::4],
        array[0::4, 2::4],
        array[2::4, 0::2],
        array[0::2, 1::2],
        array[1::2],
    ):
        yield from (row.tobytes() for row in sub if row.size)


def damaged() -> Iterator[Case]:
    """1-12: files cut, flipped, or with wrong checksums."""
    yield Case("01-empty", b"", ("empty",))
    for byte in (0, 0x42, 0x47, 0x89, 0xFF):
        yield Case(f"02-one-byte-{byte:02x}", bytes([byte]), ("format",))
    array = picture()
    for format in FORMATS:
        data = save(array, format)
        full, rng = reference(data), np.random.default_rng(1)
        yield Case(f"03-magic-{format}", data[: {"JPEG": 3, "PNG": 8, "WEBP": 12, "BMP": 2, "GIF": 6}[format]], DAMAGE)
        cuts = {"header": 20, "25": len(data) // 4, "50": len(data) // 2, "99": len(data) * 99 // 100, "last": -1}
        for name, cut in cuts.items():
            plain = name in ("50", "99") or (name == "last" and format in ("PNG", "WEBP"))
            yield Case(f"04-cut-{format}-{name}", data[:cut], ("truncated",) if plain else DAMAGE, full)
        for seed in range(16):
            flipped = bytearray(data)
            flipped[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
            # Of these formats only PNG has checksums, so only there a flip must never pass as other pixels.
            yield Case(f"09-flip-{format}-{seed}", bytes(flipped), ANY, full if format == "PNG" else None)
        if format != "WEBP":
            yield Case(f"12-garbage-behind-{format}", data + bytes(range(256)) * 20, (), full)
    whole = png_of(array)
    at = whole.index(b"IDAT") - 4
    yield Case("10-crc-idat", whole[: at + 12] + b"\0" + whole[at + 13 :], ("corrupt",))
    yield Case("10-crc-header", whole[:29] + bytes(4) + whole[33:], ("corrupt",))
    yield Case("04-cut-late-chunk", png_of(array, after=chunk(b"eXIf", bytes(50)))[:-40], ("truncated",))
    yield Case("11-no-iend", whole[:-12], ("truncated",))
    yield Case("12-idat-garbage", png_of(array, tail=b"garbage" * 9), ("corrupt",), array)


def missing_rows() -> Iterator[Case]:
    """12: pictures whose file is whole and whose data is not, and fill that only looks like more."""
    array, tall = picture(), picture(300, 200)
    for rows in (12, 23):
        yield Case(f"12-short-idat-{rows}", png([bytes(93)] * rows, 31, 24), ("truncated", "corrupt"))
    for rows in (150, 299):
        yield Case(f"12-short-idat-{rows}", png([row.tobytes() for row in tall[:rows]], 200, 300), ("truncated",))
    for height, width in ((24, 31), (300, 200), (1, 1), (3, 2), (9, 1), (1, 9)):
        seen = picture(height, width)
        rows = [*interlaced_rows(seen)]
        whole, short = (png(part, width, height, interlaced=1) for part in (rows, rows[:-1]))
        yield Case(f"12-interlaced-{height}x{width}", whole, (), seen)
        yield Case(f"12-interlaced-short-{height}x{width}", short, ("truncated", "corrupt"))
    jpeg = save(array, "JPEG")
    yield Case("12-jpeg-some-fill", jpeg[:2] + b"\xff" * 100 + jpeg[2:], (), reference(jpeg))
    yield Case("12-jpeg-fill", jpeg[:2] + b"\xff" * (1 << 20) + jpeg[2:], ("too_large",))


def bombs() -> Iterator[Case]:
    """13-21: little files that ask for much."""
    rows = [bytes(12)] * 4
    for side in ((65535, 65535), (2**31 - 1, 1), (9460, 9460), (0, 5), (5, 0)):
        kinds = ("empty", "corrupt") if 0 in side else ("too_many_pixels",)
        yield Case(f"13-png-{side[0]}x{side[1]}", png(rows, *side), kinds)
    gif = bytearray(save(picture(), "GIF"))
    gif[6:10] = struct.pack("<HH", 65535, 65535)
    yield Case("14-gif", bytes(gif), ("too_many_pixels",))
    yield Case("14-ico", struct.pack("<HHHBBBBHHII", 0, 1, 1, 0, 0, 0, 0, 1, 32, 40, 22), ("format",), says="ICO")
    canvas = b"\x10\0\0\0" + (16383).to_bytes(3, "little") * 2
    body = b"WEBPVP8X\x0a\0\0\0" + canvas + save(picture(), "WEBP")[12:]
    yield Case("14-webp", b"RIFF" + struct.pack("<I", len(body)) + body, ("too_many_pixels", "corrupt"))
    huge = zlib.compress(bytes(100 << 20), 9)
    for name, body in ((b"zTXt", b"k\0\0"), (b"iTXt", b"k\0\1\0\0\0"), (b"iCCP", b"k\0\0")):
        data = png(rows, 4, 4, before=chunk(name, body + huge))
        yield Case(f"15-{name.decode()}", data, ("too_large",))
    text = chunk(b"tEXt", b"k\0v")
    yield Case("16-10000-texts", png(rows, 4, 4, before=text * 10_000), (), np.zeros((4, 4, 3), np.uint8))
    yield Case("16-200000-texts", png(rows, 4, 4, before=text * 200_000), ("too_large",))
    yield Case("16-jpeg-segments", b"\xff\xd8" + b"\xff\xfe\0\2" * 200_000, ("too_large",))
    gif = save(picture(), "GIF")
    at = gif.index(b",", 13 + (6 << (gif[10] & 7)))
    yield Case("16-gif-comments", gif[:at] + b"!\xfe" + b"\1c" * (1 << 20) + b"\0" + gif[at:], ("too_large",))
    data = save(picture(), "JPEG")
    size = data.index(b"\xff\xc0") + 5
    yield Case("17-height-0", data[:size] + b"\0\0" + data[size + 2 :], DAMAGE)
    yield Case("18-width-0", data[: size + 2] + b"\0\0" + data[size + 4 :], DAMAGE)
    for format in FORMATS:
        # WEBP and JPEG cannot hold sides of 65535 (16383 and 65500).
        side = {"WEBP": 16383, "JPEG": 65500}.get(format, 65535)
        for height, width in ((1, 1), (1, side), (side, 1)):
            flat = np.full((height, width, 3), 77, np.uint8)
            yield Case(f"{19 + (height != width)}-{format}-{height}x{width}", save(flat, format), (), flat)
    data = save(picture(), "JPEG", progressive=True)
    at = data.rindex(b"\xff\xda")
    yield Case("21-1000-scans", data[:at] + data[at:-2] * 1000 + data[-2:], ("too_large",))
    yield Case("21-50-scans", data[:at] + data[at:-2] * 40 + data[-2:], DAMAGE)


def colours() -> Iterator[Case]:
    """22-27: layouts of colour and alpha, with the pixels they must become on white."""
    data = save(picture(), "JPEG")
    yield Case("22-arithmetic", data.replace(b"\xff\xc0", b"\xff\xc9", 1), ANY)
    for number, ink in enumerate([(0, 0, 0, 0), (255, 0, 0, 0), (0, 255, 0, 0), (0, 0, 0, 255), (40, 90, 160, 50)]):
        cmyk = save(Image.new("CMYK", (16, 16), ink), "JPEG", quality=100)
        flat = [round((255 - c) * (255 - ink[3]) / 255) for c in ink[:3]]
        yield Case(f"23-cmyk-{number}", cmyk, (), np.full((16, 16, 3), flat, np.uint8))
    for channels in (1, 2, 3, 4):
        yield Case(f"24-16-bit-{channels}", png_of(picture(5, 6, channels), 16), ("depth",))
    yield Case("25-float-tiff", save(Image.new("F", (3, 3), 0.5), "TIFF"), ("format",), says="TIFF")
    ids = np.arange(12, dtype=np.uint8).reshape(3, 4) % 4
    colours = np.array([[9, 8, 7], [1, 2, 3], [250, 0, 9], [0, 0, 0]], np.uint8)
    extra = chunk(b"PLTE", colours.tobytes()) + chunk(b"tRNS", bytes([0, 51, 255]))
    white = (255 - (255 - colours.astype(int)) * np.array([0, 51, 255, 255])[:, None] / 255).round().astype(np.uint8)
    yield Case("26-palette", png([r.tobytes() for r in ids], 4, 3, 8, 3, before=extra), (), white[ids])
    grey = np.array([[[7], [8], [7]]], np.uint8)
    shown = np.array([[[255] * 3, [8] * 3, [255] * 3]], np.uint8)
    yield Case("26-grey-key", png_of(grey, before=chunk(b"tRNS", b"\0\7")), (), shown)
    for depth, scale in ((1, 255), (2, 85), (4, 17)):
        levels = np.arange(16, dtype=np.uint8).reshape(2, 8) % 2**depth
        packed = np.packbits(np.unpackbits(levels[..., None], axis=2)[..., 8 - depth :].reshape(2, -1), axis=1)
        shown = np.where(levels == 1, 255, levels * scale).astype(np.uint8)[..., None].repeat(3, 2)
        data = png([row.tobytes() for row in packed], 8, 2, depth, 0, before=chunk(b"tRNS", b"\0\1"))
        yield Case(f"26-grey-key-{depth}-bit", data, (), shown)
    for channels in (2, 4):
        array = picture(40, 33, channels)
        array[0, :, -1] = 0
        alpha = array[..., -1:].astype(float)
        flat = np.rint((array[..., :-1] * alpha + 255 * (255 - alpha)) / 255).astype(np.uint8)
        flat = np.broadcast_to(flat, (40, 33, 3))
        yield Case(f"27-alpha-{channels}", png_of(array), (), flat)
        yield Case(f"27-alpha-webp-{channels}", save(Image.fromarray(array), "WEBP", exact=True), (), flat)
    yield Case("27-one-bit", save(Image.new("1", (9, 3), 1), "PNG"), (), np.full((3, 9, 3), 255, np.uint8))
    yield Case("27-grey-jpeg", save(Image.new("L", (9, 3), 60), "JPEG"), (), np.full((3, 9, 3), 60, np.uint8))


def animations(frames=5000) -> Iterator[Case]:
    """28: many frames, of which the first counts."""
    array = picture(6, 5)
    image = Image.fromarray(array).quantize(8)
    data, first = save(image, "GIF"), np.array(image.convert("RGB"))
    start = 13 + (6 << (data[10] & 7))
    yield Case("28-gif", data[:start] + data[start:-1] * frames + b";", (), first)
    control = struct.pack(">IIIIIHHBB", 0, 5, 6, 0, 0, 1, 10, 0, 0)
    body = zlib.compress(bytes(16 * 6))
    before = chunk(b"acTL", struct.pack(">II", frames + 1, 0)) + chunk(b"fcTL", control)
    after = b"".join(
        chunk(b"fcTL", struct.pack(">I", 2 * i + 1) + control[4:]) + chunk(b"fdAT", struct.pack(">I", 2 * i + 2) + body)
        for i in range(frames)
    )
    yield Case("28-apng", png_of(array, before=before, after=after), (), array)
    still = save(array, "WEBP")[12:]
    size = (4).to_bytes(3, "little") + (5).to_bytes(3, "little")
    frame = bytes(6) + size + b"\x0a\0\0\0" + still
    frame = b"ANMF" + struct.pack("<I", len(frame)) + frame
    body = b"WEBPVP8X\x0a\0\0\0\x02\0\0\0" + size + b"ANIM\x06\0\0\0" + bytes(6) + frame * frames
    yield Case("28-webp", b"RIFF" + struct.pack("<I", len(body)) + body, (), array)


def metadata() -> Iterator[Case]:
    """29-31: EXIF, XMP and ICC, sound and not."""
    array = picture(5, 9)
    turned = {2: array[:, ::-1], 3: np.rot90(array, 2), 4: array[::-1], 5: array.swapaxes(0, 1)}
    turned |= {6: np.rot90(array, -1), 7: np.rot90(array, 2).swapaxes(0, 1), 8: np.rot90(array)}
    for value in range(11):
        exif = Image.Exif()
        exif[0x0112] = value
        for format in ("PNG", "WEBP"):
            yield Case(f"29-{format}-{value}", save(array, format, exif=exif), (), turned.get(value, array))
        yield Case(
            f"29-late-{value}", png_of(array, after=chunk(b"eXIf", exif.tobytes()[6:])), (), turned.get(value, array)
        )
    good = exif.tobytes()
    loop = b"Exif\0\0II*\0\x08\0\0\0\x00\0\x08\0\0\0"
    text = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0six\0" + bytes(4)
    plain = save(array, "JPEG")
    for number, broken in enumerate(
        [b"Exif\0\0", good[:9], b"Exif\0\0" + bytes(90), good[:-9], loop, text, b"\xff" * 99]
    ):
        yield Case(f"30-exif-jpeg-{number}", save(array, "JPEG", exif=broken), (), reference(plain))
        yield Case(f"30-exif-png-{number}", png_of(array, after=chunk(b"eXIf", broken)), (), array)
    xmp = b"<x:xmpmeta tiff:Orientation='\xff\xfe<<<" * 9
    yield Case("30-xmp", save(array, "JPEG", xmp=xmp), (), reference(plain))
    for name, icc in (("30-icc", b"not a profile"), ("31-icc-500k", np.random.default_rng(0).bytes(500_000))):
        yield Case(f"{name}-jpeg", save(array, "JPEG", icc_profile=icc), (), reference(plain))
        yield Case(f"{name}-png", save(array, "PNG", icc_profile=icc), (), array)
    yield Case("30-iccp-chunk", png_of(array, before=chunk(b"iCCP", b"k\0\0broken")), ("corrupt",), array)


def lies() -> Iterator[Case]:
    """32-34: content that is something else, or two things."""
    jpeg = save(picture(), "JPEG")
    zipped = b"PK\x03\x04" + bytes(40) + b"PK\x05\x06" + bytes(18)
    yield Case("33-polyglot", jpeg + zipped, (), reference(jpeg))
    others = {
        "TIFF": save(picture(), "TIFF"),
        "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "SVG": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>',
        "HTML": b"<!DOCTYPE html><html><title>404</title>",
        "zip": zipped,
        "PDF": b"%PDF-1.7\n",
        "AVIF": b"\0\0\0\x1cftypavif" + bytes(16),
        "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n",
        "unknown": b"RIFF\4\0\0\0WAVE",
    }
    for name, data in others.items():
        yield Case(f"32-{name}", data, ("format",), says=name)
    yield Case("34-tiff-loop", b"II*\0\x08\0\0\0\0\0\x08\0\0\0", ("format",), says="TIFF")


def every() -> list[Case]:
    """All of them."""
    return [case for make in (damaged, missing_rows, bombs, colours, animations, metadata, lies) for case in make()]
