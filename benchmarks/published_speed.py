"""The publishers' own forward against vqtok's, with the same weights in one run: VQGAN f16-16384 on the CPU.

python -m vqtok.benchmarks.published_speed --threads 2 --json benchmarks/results/published_speed.json

Weights are random and seeded, made by the publisher's class, written in its container and opened with `vqtok.load`; the
codebook is drawn around latents of other pictures, so that codes differ. Codes are compared before anything is timed: a
code that differs must be a near-tie in float64. Contenders take turns, forwards and backwards; ratios are of medians.
"""

# diffusers and transformers are the publishers'; they are not needed for anything else.
# pyright: reportMissingImports=false

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import vqtok
from vqtok.errors import ReproducibilityError

from .clocks import wall_clock
from .machine import commit, machine, pin_threads, versions

SIDE, CODES, DIM = 256, 16384, 256
NEAR_TIE = 1e-4
"""Of two codes with less than this share of a squared distance between them, either is right."""


@dataclass(frozen=True, slots=True)
class Publisher:
    """A publisher's model with random weights, and how it is asked.

    Attributes:
        name: family in vqtok.
        model: in eval mode; ``model.quantize.embedding`` is its codebook.
        latents: pixels to [B, D, h, w].
        encode: pixels to codes int64 [B, h, w].
        decode: codes to pixels, or None where the publisher has no decoder.
    """

    name: str
    model: Any
    latents: Callable[[Tensor], Tensor]
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor] | None


def diffusers_vqmodel() -> Publisher:
    """Return diffusers' VQModel in the shape of VQGAN f16-16384."""
    from diffusers import VQModel

    model = VQModel(
        down_block_types=("DownEncoderBlock2D",) * 4 + ("AttnDownEncoderBlock2D",),
        up_block_types=("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 128, 256, 256, 512),
        layers_per_block=2,
        latent_channels=DIM,
        vq_embed_dim=DIM,
        sample_size=SIDE,
        num_vq_embeddings=CODES,
    ).eval()
    latents = lambda x: model.encode(x).latents  # noqa: E731
    encode = lambda x: model.quantize(latents(x))[2][2].reshape(len(x), SIDE // 16, -1)  # noqa: E731

    def decode(codes: Tensor) -> Tensor:
        vectors = model.quantize.get_codebook_entry(codes.flatten(), (*codes.shape, DIM))
        return model.decode(vectors, force_not_quantize=True).sample

    return Publisher("diffusers_vqmodel", model, latents, encode, decode)


def hf_chameleon_vq() -> Publisher:
    """Return transformers' ChameleonVQVAE in the same shape; it has no decoder."""
    from transformers import ChameleonVQVAE, ChameleonVQVAEConfig

    config = ChameleonVQVAEConfig(
        embed_dim=DIM,
        num_embeddings=CODES,
        latent_channels=DIM,
        resolution=SIDE,
        base_channels=128,
        channel_multiplier=[1, 1, 2, 2, 4],
        num_res_blocks=2,
        attn_resolutions=[SIDE // 16],
    )
    model = ChameleonVQVAE(config).eval()
    latents = lambda x: model.quant_conv(model.encoder(x))  # noqa: E731
    encode = lambda x: model.encode(x).image_tokens.reshape(len(x), SIDE // 16, -1)  # noqa: E731
    return Publisher("hf_chameleon_vq", model, latents, encode, None)


PUBLISHERS = {"diffusers_vqmodel": diffusers_vqmodel, "hf_chameleon_vq": hf_chameleon_vq}


def pictures(count: int, seed: int) -> Tensor:
    """Return smooth random pixels in -1 .. 1 with a little noise, float32 [count, 3, SIDE, SIDE]."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
    smooth = [np.asarray(Image.fromarray(x).resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for x in coarse]
    noisy = np.stack(smooth) / 127.5 - 1 + rng.normal(0, 0.05, (count, SIDE, SIDE, 3))
    return torch.from_numpy(noisy.clip(-1, 1).astype(np.float32)).permute(0, 3, 1, 2).contiguous()


def made(name: str) -> Publisher:
    """Return a publisher's model, its codebook drawn around latents of pictures that are not timed."""
    torch.manual_seed(0)
    publisher = PUBLISHERS[name]()
    rows = publisher.latents(pictures(4, seed=1)).permute(0, 2, 3, 1).reshape(-1, DIM)
    places = torch.randint(len(rows), (CODES,))
    noise = 0.5 * rows.std(dim=0) * torch.randn(CODES, DIM)
    cast(nn.Embedding, publisher.model.quantize.embedding).weight.data.copy_(rows[places] + noise)
    return publisher


def loaded(publisher: Publisher, precision: Any) -> vqtok.Tokenizer:
    """Return vqtok's tokenizer of the same weights, read from the publisher's container."""
    with tempfile.TemporaryDirectory() as folder:
        publisher.model.save_pretrained(folder)
        (weights,) = Path(folder).glob("*.safetensors")
        config = Path(folder) / "config.json"
        tokenizer = vqtok.load(weights, family=publisher.name, config=config, precision=precision)
    return cast(vqtok.Tokenizer, tokenizer.eval())


def check_codes(publisher: Publisher, tokenizer: vqtok.Tokenizer, pixels: Tensor) -> dict[str, float]:
    """Return how many codes differ from the publisher's, all of them near-ties.

    Raises:
        ReproducibilityError: a code that is further from the latent than the publisher's.
    """
    theirs, ours = publisher.encode(pixels), tokenizer.encode(pixels).ids
    codebook = publisher.model.quantize.embedding.weight.double()
    latents = tokenizer.latents(pixels)
    distance = lambda codes: (latents.double() - codebook[codes]).square().sum(dim=-1)  # noqa: E731
    off = (distance(ours) - distance(theirs)) / distance(theirs)
    if off.max() > NEAR_TIE:
        raise ReproducibilityError(f"expected the nearest codes, got one {off.max():.1e} further than the publisher's")
    error = (latents.permute(0, 3, 1, 2) - publisher.latents(pixels)).abs().max().item()
    return {
        "codes": ours.numel(),
        "distinct": len(ours.unique()),
        "differ": int((ours != theirs).sum()),
        "largest latent error": error,
    }


def turns(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of every call, which take turns: forwards in even rounds, backwards in odd ones."""
    for call in calls.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(rounds):
        for name in list(calls) if i % 2 == 0 else list(calls)[::-1]:
            seconds[name].append(wall_clock(calls[name]))
    return seconds


def measure(name: str, batches: Sequence[int], directions: Sequence[str], rounds: int) -> list[dict[str, Any]]:
    """Return what one publisher and vqtok take, a row a batch and direction."""
    publisher = made(name)
    exact, fast = loaded(publisher, "float32"), loaded(publisher, "bfloat16")
    rows = []
    for batch in batches:
        pixels = pictures(batch, seed=2)
        agreement = check_codes(publisher, exact, pixels)
        grid: vqtok.TokenGrid = exact.encode(pixels)
        changed = (fast.encode(pixels).ids != grid.ids).float().mean().item()
        calls: dict[str, dict[str, Callable[[], object]]] = {
            "encode": {
                "publisher": partial(publisher.encode, pixels),
                "vqtok float32": partial(exact.encode, pixels),
                "vqtok bfloat16": partial(fast.encode, pixels),
            }
        }
        if (decode := publisher.decode) is not None:
            error = (exact.decode(grid) - decode(grid.ids)).abs().max().item()
            agreement["largest pixel error"] = error
            calls["decode"] = {
                "publisher": partial(decode, grid.ids),
                "vqtok float32": partial(exact.decode, grid),
                "vqtok bfloat16": partial(fast.decode, grid),
            }
        for direction in (d for d in directions if d in calls):
            load, seconds = os.getloadavg(), turns(calls[direction], rounds)
            row = {
                "publisher": name,
                "direction": direction,
                "batch": batch,
                "load": load,
                "seconds": seconds,
                "agreement": agreement,
            }
            rows.append(row | {"codes changed by bfloat16": changed})
            say(rows[-1])
    return rows


def say(row: Mapping[str, Any]) -> None:
    """Print medians and ratios of a row."""
    medians = {name: median(values) for name, values in row["seconds"].items()}
    agreement, theirs = row["agreement"], medians["publisher"]
    print(f"{row['publisher']} {row['direction']}, batch {row['batch']}, {len(row['seconds']['publisher'])} rounds")
    if row["direction"] == "encode":
        print(
            f"  codes: {agreement['differ']:.0f} of {agreement['codes']:.0f} differ (near-ties), "
            f"{agreement['distinct']:.0f} distinct; bfloat16 changes {100 * row['codes changed by bfloat16']:.1f} %"
        )
    for name, seconds in medians.items():
        print(f"  {name:15} {seconds:7.3f} s  {theirs / seconds:5.2f}x", flush=True)


def with_earlier(path: Path, state: Mapping[str, Any], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return these rows and those of a file of the same machine, versions and commit that were not measured anew."""
    if not path.exists():
        return rows
    earlier = json.loads(path.read_text())
    place = lambda row: tuple(row[x] for x in ("publisher", "direction", "batch"))  # noqa: E731
    kept = earlier["rows"] if all(earlier[name] == value for name, value in state.items()) else []
    return [row for row in kept if place(row) not in {*map(place, rows)}] + rows


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("publishers", nargs="*", default=list(PUBLISHERS), help=f"of {', '.join(PUBLISHERS)}")
    parser.add_argument("--batch", type=int, action="append", help="images at once; may be repeated (default 1 and 8)")
    parser.add_argument("--direction", action="append", choices=("encode", "decode"), help="(default both)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--json", type=Path, help="write every time measured; rows of an earlier run of this commit stay"
    )
    options = parser.parse_args()
    pin_threads(options.threads)
    packages = dict(versions())
    for package in ("diffusers", "transformers"):
        try:
            packages[package] = version(package)
        except PackageNotFoundError:
            print(f"{package} is not installed: pip install {package}")
    state = {
        "machine": machine("cpu"),
        "versions": packages,
        "commit": commit(),
        "threads": options.threads,
    }
    print(json.dumps(state, indent=1))
    asked = options.batch or (1, 8), options.direction or ("encode", "decode"), options.rounds
    with torch.no_grad():
        rows = [row for name in options.publishers for row in measure(name, *asked)]
    if options.json:
        rows = with_earlier(options.json, state, rows)
        options.json.write_text(json.dumps({**state, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
