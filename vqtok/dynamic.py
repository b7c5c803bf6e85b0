"""DynamicTokenizer: as many tokens as an image needs (LaVIT, Jin et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from vqtok import ops, streaming
from vqtok.errors import ConfigError, MismatchError
from vqtok.image_tokenizer import ImageTokenizer
from vqtok.images import PreprocessSpec
from vqtok.networks import FeatureDecoder, Merger, Selector
from vqtok.networks.merger import in_row_pieces, pad_to
from vqtok.networks.selection import Rule, SelectionKind, carry, keep_likely, rule, sample_policy
from vqtok.quantizers import Quantizer
from vqtok.types import Quantized, Reconstruction, Selection, TokenRuns, Tokens


class DynamicTokenizer(ImageTokenizer):
    """A tokenizer of runs: a selector keeps some of N patches, a merger puts what the others knew into them.

    Args:
        features: frozen teacher, pixels [B, 3, S, S] to features [B, N, C], one a patch, rows from the top.
        selector: features to log-probabilities [B, N, 2] that a patch is kept and that it is dropped.
        merger: features and bool [B, N] to the kept patches' vectors [T, C].
        projection: vectors [T, C] to latents [T, D]; in LaVIT linear, tanh, linear.
        quantizer: latents to codes, one a latent.
        feature_decoder: runs of codebook vectors to features [B, N, C].
        pixel_decoder: features [B, C, h, w] to pixels [B, 3, S, S], or None: the model then decodes to features only.
        preprocess: how images become pixels: resized to one size S; its ``multiple`` is the side of a patch.
        unit_latents: latents are divided by their length before the quantizer, as in LaVIT, whose codebook is not.
        temperature: of the Gumbel-softmax relaxation, in training.

    Attributes:
        selection: how patches are selected where a call does not say: ``"threshold"`` or ``"topk"``; recorded in token
            files.
        selected_tokens: how many tokens ``"topk"`` gives where a call does not say.
        quantize: whether training goes through the quantizer. LaVIT's selector and merger are trained without it first.

    Source:
        Jin et al., "Unified Language-Vision Pretraining in LLM with Dynamic Discrete Visual Tokenization", 2023,
        section 3.1. Its code selects by chance; here an image has one selection unless chance is asked for.

    >>> from vqtok.networks import EvaVit, Selector
    >>> from vqtok.networks.transformer import Mlp
    >>> from vqtok.quantizers import VectorQuantizer
    >>> sizes = {"width": 8, "depth": 1, "heads": 2, "mlp_width": 16}
    >>> tokenizer = DynamicTokenizer(
    ...     EvaVit(image_size=32, patch=8, **sizes), Selector(8), Merger(**sizes), Mlp(8, 8, "tanh", 4),
    ...     VectorQuantizer(4, 16), FeatureDecoder(dim=4, positions=16, **sizes), None,
    ...     PreprocessSpec(resize="center", size=32, multiple=8))
    >>> tokenizer.encode(torch.zeros(2, 3, 32, 32), "topk", tokens=5).lengths.tolist()
    [5, 5]
    """

    def __init__(
        self,
        features: nn.Module,
        selector: nn.Module,
        merger: Merger,
        projection: nn.Module,
        quantizer: Quantizer,
        feature_decoder: FeatureDecoder,
        pixel_decoder: nn.Module | None,
        preprocess: PreprocessSpec,
        *,
        unit_latents: bool = True,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(preprocess)
        self.side = _patches_each_way(preprocess)
        positions = len(feature_decoder.positions)
        if positions != self.patches or quantizer.codebooks != 1 or not temperature > 0:
            raise ConfigError(
                f"expected a feature decoder of {self.patches} positions, a quantizer of one code a vector and a "
                f"temperature above 0, got {positions}, {quantizer.codebooks} and {temperature}"
            )
        self.features = features.requires_grad_(False).eval()
        self.selector, self.merger, self.projection = selector, merger, projection
        self.quantizer, self.feature_decoder, self.pixel_decoder = quantizer, feature_decoder, pixel_decoder
        self.unit_latents, self.temperature = unit_latents, temperature
        self.selection: SelectionKind = "threshold"
        self.selected_tokens: int | None = None
        self.quantize = True

    @property
    def patches(self) -> int:
        """Number N of patches of an image, and the most tokens it can have."""
        return self.side**2

    def train(self, mode: bool = True) -> DynamicTokenizer:
        """Switch training mode, of all but the teacher."""
        super().train(mode)
        self.features.eval()
        return self

    def forward(self, pixels: Tensor) -> Reconstruction:
        """Select, merge, quantize and decode pixels [B, 3, S, S] with gradients, for training.

        In training mode the selection is a sample, with the straight-through gradient of its Gumbel-softmax; in eval
        mode, and where the selector is frozen (``selector.requires_grad_(False)``), it is the threshold's. What reaches
        the selector: attention in merger and feature decoder is weighted with the selection, whose numbers are exactly
        1 and 0, so values are those of `encode` and `decode`.

        Returns:
            quantized: of the kept patches, vectors [T, D]; with ``quantize`` off, latents themselves and no losses.
            statistics: ``features`` and ``target`` [B, N, C], ``keep`` float [B, N] with the selector's gradient.
            pixels: of the decoded features; [B, 3, 0, 0] without a pixel decoder.
        """
        target = self._features(pixels)
        scores = self._scores(target)
        if self.training and any(x.requires_grad for x in self.selector.parameters()):
            keep, policy = sample_policy(scores, self.temperature)
        else:
            keep = keep_likely(scores)
            policy = carry(keep, scores[..., 0].exp())
        with self.autocast():
            merged, lengths = ops.compact(self.merger.forward_dense(target, policy), keep)
        quantized = self._quantized(self._to_latents(merged))
        with self.autocast():
            features = self.feature_decoder(quantized.vectors, lengths, ops.compact(policy, keep)[0]).float()
        decoded = pixels.new_zeros(len(pixels), 3, 0, 0) if self.pixel_decoder is None else self._to_pixels(features)
        statistics = {
            "features": features,
            "target": target,
            "keep": policy,
        }
        return Reconstruction(decoded, quantized, statistics)

    def latents(self, pixels: Tensor) -> Tensor:
        """Return what the quantizer sees of pixels [B, 3, S, S]: float32 [T, D], of the model's own selection."""
        return self._kept_latents(pixels, self._rule(None, None, None), len(pixels))[0]

    # Selection -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def keep_probability(self, pixels: Tensor) -> Tensor:
        """Return float32 [B, N], how likely the selector keeps each patch of pixels float [B, 3, S, S]."""
        self._check(pixels)
        return self.in_equal_pieces(lambda x: self._scores(self._features(x))[..., 0].exp(), pixels, self._pixels_each)

    @torch.no_grad()
    def select(
        self,
        pixels: Tensor,
        selection: SelectionKind | None = None,
        *,
        tokens: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Selection:
        """Return which patches of pixels float [B, 3, S, S] are kept.

        Args:
            pixels: in the model's own range.
            selection: ``"threshold"``: keep probability of at least one half, the most likely patch where none has it.
                ``"topk"``: as many as ``tokens``, the first ones of equals. ``"gumbel"``: a sample. The model's
                ``selection`` when not given.
            tokens: how many, from 1 to N; for ``"topk"`` only. The model's ``selected_tokens`` when not given.
            generator: for ``"gumbel"`` only. Its initial seed and the image's own pixels decide, so that neighbours
                change nothing; it is not advanced.

        Raises:
            ConfigError: pixels of another shape, arguments that contradict each other.
        """
        self._check(pixels)
        chosen = self._rule(selection, tokens, generator)
        choose = lambda x: chosen.keep(self._scores(self._features(x)), x)  # noqa: E731
        keep = self.in_equal_pieces(choose, pixels, self._pixels_each)
        return Selection(keep, keep.sum(dim=1))

    @torch.no_grad()
    def calibrate(self, pixels: Tensor, ratio: float) -> None:
        """Shift the selector's scores so that ``"threshold"`` keeps a share of the patches of pixels [B, 3, S, S].

        A selector that has not learnt for long knows which patches matter more, but is content to keep each with a
        chance near the ratio that was asked for; then a threshold of one half keeps none. The order stays as it is.

        Raises:
            ConfigError: pixels of another shape, or a ratio outside (0, 1).
        """
        if not 0 < ratio < 1:
            raise ConfigError(f"expected a ratio between 0 and 1, the share of patches to keep, got {ratio}")
        self._check(pixels)
        scores = self.in_equal_pieces(lambda x: self._scores(self._features(x)), pixels, self._pixels_each)
        shift = (scores[..., 0] - scores[..., 1]).double().quantile(1 - ratio).to(scores.dtype) / 2
        bias = cast(Selector, self.selector).to_scores.bias
        bias += torch.stack([-shift, shift])

    def _rule(self, kind: SelectionKind | None, tokens: int | None, generator: torch.Generator | None) -> Rule:
        kind = self.selection if kind is None else kind
        tokens = self.selected_tokens if tokens is None and kind == "topk" else tokens
        return rule(kind, tokens, generator, self.patches)

    def _scores(self, features: Tensor) -> Tensor:
        # In float32 whatever the precision: half of it makes equals of patches, and one flipped decision moves the
        # places of all tokens after it.
        with torch.autocast(features.device.type, enabled=False):
            return self.selector(features)

    # Tokens ----------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(
        self,
        pixels: Tensor,
        selection: SelectionKind | None = None,
        *,
        tokens: int | None = None,
        generator: torch.Generator | None = None,
    ) -> TokenRuns:
        """Return the codes of the patches that `select` keeps, of pixels float [B, 3, S, S] in the model's own range.

        Raises:
            ConfigError: as `select`.
            NonFiniteLatents: a network gave NaN or infinity.
        """
        return self._encoded(pixels, self._rule(selection, tokens, generator))[0]

    def _encoded(self, pixels: Tensor, rule: Rule) -> tuple[TokenRuns, Tensor]:
        """Return the tokens and which patches they are, bool [B, N]."""
        self._check(pixels)

        def encode(part: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
            latents, keep = self._kept_latents(part, rule, count)
            return self.quantizer.encode(latents), keep.sum(dim=1)[:count], keep[:count]

        parts = self.in_micro_batches(encode, pixels.float(), self._pixels_each)
        ids, lengths, keep = (torch.cat(column) for column in zip(*parts, strict=True))
        return TokenRuns(ids, lengths, self.vocab_size), keep

    @torch.no_grad()
    def decode(self, tokens: TokenRuns) -> Tensor:
        """Return pixels float32 [B, 3, S, S], in the model's own range, of runs.

        Raises:
            ConfigError: no pixel decoder, ids outside the vocabulary, lengths outside 1..N or not those of the ids.
            MismatchError: tokens of another vocabulary.
        """
        if self.pixel_decoder is None:
            raise ConfigError(
                "expected a model with a pixel decoder, got one that decodes to features: decode_features"
            )
        return self._decoded(tokens, lambda ids, lengths: self._to_pixels(self._decode(ids, lengths)))

    @torch.no_grad()
    def decode_features(self, tokens: TokenRuns) -> Tensor:
        """Return the teacher's features float32 [B, N, C], as runs give them back; errors as `decode`."""
        return self._decoded(tokens, self._decode)

    def _decoded(self, tokens: TokenRuns, decode: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Return what a function of ids [T] and lengths [b] gives of runs, in micro-batches."""
        ids, lengths = tokens.ids, tokens.lengths
        self.check_ids(ids, tokens.vocab_size)
        if ids.ndim != 1 or lengths.ndim != 1 or lengths.dtype != torch.int64 or ids.device != lengths.device:
            raise ConfigError(
                f"expected ids [T] and lengths int64 [B] on one device, got {list(ids.shape)} on {ids.device} and "
                f"{lengths.dtype} {list(lengths.shape)} on {lengths.device}"
            )
        if int(lengths.sum()) != len(ids) or bool(((lengths < 1) | (lengths > self.patches)).any()):
            raise ConfigError(
                f"expected lengths of 1 to {self.patches} that sum to {len(ids)}, the ids, got {lengths.tolist()[:8]}"
            )
        # Rows of one length, so that they are micro-batches as pixels are; a run's own length comes last.
        rows = torch.cat([pad_to(ids[:, None], lengths, self.patches)[..., 0], lengths[:, None]], dim=1)

        def pieces(part: Tensor) -> Tensor:
            there = torch.arange(self.patches, device=part.device) < part[:, -1:]
            return decode(*ops.compact(part[:, :-1], there))

        return self.in_equal_pieces(pieces, rows, self._pixels_each)

    def _decode(self, ids: Tensor, lengths: Tensor) -> Tensor:
        with self.autocast():
            return self.feature_decoder(self.quantizer.decode(ids), lengths).float()

    def _to_pixels(self, features: Tensor) -> Tensor:
        decoder = cast(nn.Module, self.pixel_decoder)
        with self.autocast():
            return decoder(features.transpose(1, 2).unflatten(2, (self.side, self.side))).float()

    # Steps -----------------------------------------------------------------------------------------------------------

    @property
    def _pixels_each(self) -> int:
        return self.patches * self.factor**2

    def _check(self, pixels: Tensor) -> None:
        self.check_pixels(pixels)
        if pixels.shape[2:] != (self.spec.size, self.spec.size):
            raise ConfigError(
                f"expected pixels of {self.spec.size} x {self.spec.size}, the only size of this model, got "
                f"{pixels.shape[2]} x {pixels.shape[3]}: resize them (tokenize and preprocess do)"
            )

    @torch.no_grad()
    def _features(self, pixels: Tensor) -> Tensor:
        self._check(pixels)
        with self.autocast():
            features = self.features(pixels).float()
        expected = (len(pixels), self.patches, self.merger.width)
        if features.shape != expected:
            raise ConfigError(
                f"expected features {list(expected)} of the teacher, one a patch, rows from the top, got "
                f"{list(features.shape)}. Leave out class and register tokens: PatchTokens does, of timm's models"
            )
        return features

    def _kept_latents(self, pixels: Tensor, rule: Rule, count: int) -> tuple[Tensor, Tensor]:
        """Return latents [T, D] of kept patches, and which these are, bool [B, N]; none of images from count on."""
        features = self._features(pixels)
        with torch.no_grad():
            keep = rule.keep(self._scores(features), pixels)
            # What fills a micro-batch up has no tokens to merge.
            keep &= (torch.arange(len(keep), device=keep.device) < count)[:, None]
        with self.autocast():
            merged = self.merger(features, keep)[0]
        return in_row_pieces(self._to_latents, merged, self.patches), keep

    def _to_latents(self, merged: Tensor) -> Tensor:
        with self.autocast():
            latents = self.projection(merged).float()
        return ops.normalize_latents(latents) if self.unit_latents else latents

    def _quantized(self, latents: Tensor) -> Quantized:
        if self.quantize:
            return self.quantizer(latents)
        return Quantized(latents, self.quantizer.encode(latents.detach()), {})

    # Files -----------------------------------------------------------------------------------------------------------

    def options(self) -> dict[str, object]:
        """Return how patches are selected, for the record."""
        return {"selection": self.selection, **({"tokens": self.selected_tokens} if self.selection == "topk" else {})}

    @torch.no_grad()
    def tokenize_pixels(self, pixels: Tensor) -> list[streaming.Row]:
        """Return what `encode` gives of pixels float [B, 3, S, S], image by image, with the patches that were kept."""
        runs, keep = self._encoded(pixels, self._rule(None, None, None))
        ids = (run.cpu().numpy() for run in runs.ids.split(runs.lengths.tolist()))
        return [
            streaming.Row(run, (1, self.side, self.side), kept.cpu().numpy())
            for run, kept in zip(ids, keep, strict=True)
        ]

    def detokenize_rows(self, tokens: Tokens) -> Tensor:
        """Return what `decode` gives of tokens."""
        ids, lengths = (torch.from_numpy(x).to(self.device) for x in (tokens.ids, np.diff(tokens.offsets)))
        return self.decode(TokenRuns(ids, lengths, tokens.vocab_size))

    def check_tokens(self, tokens: Tokens) -> None:
        """Raise MismatchError unless the tokens can be this model's; without a fingerprint, shapes must do."""
        self.check_origin(tokens)
        lengths = np.diff(tokens.offsets)
        if (tokens.grids != (1, self.side, self.side)).any() or (tokens.sizes != self.spec.size).any():
            raise MismatchError(f"expected grids of {self.side} x {self.side} patches of {self.spec.size} pixels")
        if ((lengths < 1) | (lengths > self.patches)).any():
            raise MismatchError(f"expected 1 to {self.patches} tokens an image, got others")


def _patches_each_way(spec: PreprocessSpec) -> int:
    if spec.size is None or spec.size % spec.multiple:
        raise ConfigError(
            f"expected images resized to a multiple of {spec.multiple} pixels, since positions are learned, "
            f"got resize {spec.resize!r} and size {spec.size}"
        )
    return spec.size // spec.multiple
