"""DynamicTokenizer: as many tokens as an image needs; features are selected, merged, quantized and reconstructed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Self

from vqtok import ops, streaming
from vqtok.errors import ConfigError, MismatchError
from vqtok.image_tokenizer import ImageTokenizer
from vqtok.images import PreprocessSpec
from vqtok.losses import cosine_feature_loss, keep_ratio_loss
from vqtok.networks import (
    FeatureDecoder,
    Selection,
    SelectionKind,
    SelectionRule,
    TokenMerger,
    TokenSelector,
    sample_keep,
)
from vqtok.networks.ragged import in_row_blocks
from vqtok.quantizers import Quantizer
from vqtok.types import Quantized, Reconstruction, TokenRuns, Tokens


class DynamicTokenizer(ImageTokenizer):
    """LaVIT's dynamic tokenizer (Jin et al. 2023, section 3.1) for images of one size, N = h * w patches.

    A frozen teacher sees the image; the selector says which of its N features are kept; the merger lets these take in
    what the dropped ones know; each becomes one code. The decoder reconstructs all N features from the run of codes,
    and a head, where there is one, makes pixels of them. Tokens do not depend on an image's neighbours, bit for bit.

    Args:
        features: the teacher, pixels [B, 3, H, W] to features [B, N, C]: `EvaVit`, `TokensOfVit`, or any such module.
            It is frozen here: no gradients, always in eval mode.
        selector: features to keep probabilities.
        merger: features and selection to merged vectors [T, C].
        projection: merged vectors to latents [T, dim]; Linear, Tanh, Linear in LaVIT.
        quantizer: one code a latent.
        decoder: runs of codebook vectors to features [B, N, C]; it knows the grid (h, w).
        preprocess: how images become pixels: ``multiple`` is the pixels a patch, each way, ``size`` that of the grid.
        pixel_head: features [B, C, h, w] to pixels [B, 3, H, W], any decoder of `vqtok.networks`; None leaves `decode`
            undefined, and `decode_features` is all that comes back.

    Attributes:
        rule: how to select where a call does not say; recorded in every token file.

    Raises:
        ConfigError: parts do not fit together.

    >>> from vqtok import VectorQuantizer
    >>> from vqtok.networks import EvaVit
    >>> sizes = {"width": 8, "depth": 1, "heads": 2, "mlp_width": 16}
    >>> tokenizer = DynamicTokenizer(
    ...     features=EvaVit(**sizes, patch=8, grid=(2, 2)), selector=TokenSelector(8), merger=TokenMerger(**sizes),
    ...     projection=nn.Linear(8, 4), quantizer=VectorQuantizer(4, 16),
    ...     decoder=FeatureDecoder(**sizes, dim=4, grid=(2, 2)), preprocess=PreprocessSpec(multiple=8))
    >>> tokenizer.encode(torch.zeros(2, 3, 16, 16), "topk", tokens=3).lengths.tolist()
    [3, 3]
    """

    def __init__(
        self,
        *,
        features: nn.Module,
        selector: TokenSelector,
        merger: TokenMerger,
        projection: nn.Module,
        quantizer: Quantizer,
        decoder: FeatureDecoder,
        preprocess: PreprocessSpec,
        pixel_head: nn.Module | None = None,
    ) -> None:
        super().__init__(preprocess)
        if quantizer.codebooks != 1 or quantizer.dim != decoder.dim or selector.width != merger.width:
            raise ConfigError(
                "expected one codebook, a decoder of its dim and a merger of the selector's width, got "
                f"{quantizer.codebooks} codebooks of dim {quantizer.dim} beside {decoder.dim}, and widths "
                f"{merger.width} beside {selector.width}"
            )
        if preprocess.size is not None and any(n * preprocess.multiple != preprocess.size for n in decoder.grid):
            raise ConfigError(
                f"expected preprocess.size to be that of a grid of {decoder.grid} patches of {preprocess.multiple} "
                f"pixels, got {preprocess.size}"
            )
        self.features = features.requires_grad_(False).eval()
        self.selector, self.merger, self.projection = selector, merger, projection
        self.quantizer, self.decoder, self.pixel_head = quantizer, decoder, pixel_head
        self.rule = SelectionRule()

    def train(self, mode: bool = True) -> Self:
        """Set training or eval mode of all parts but the teacher, which stays in eval mode."""
        super().train(mode)
        self.features.eval()
        return self

    # Pixels to tokens ------------------------------------------------------------------------------------------------

    def forward(self, pixels: Tensor, *, quantize: bool = True, temperature: float = 1.0) -> Reconstruction:
        """Select, merge, quantize and reconstruct pixels [B, 3, H, W] with gradients, for training.

        In training mode the selection is sampled (`sample_keep`) and learns as the weight of keys in the merger, which
        then runs dense on all patches; in value that is the ragged merger of eval mode. A selector whose parameters
        need no gradient is not sampled densely: then the ragged merger runs in training, too.

        Args:
            pixels: float [B, 3, H, W] in the model's own range.
            quantize: False leaves the quantizer out, so that selector and merger can learn before the codebook does.
            temperature: of the sampled selection's gradient.

        Returns:
            `Reconstruction`; quantized is ragged (vectors [T, D], codes [T]); pixels are [B, 3, 0, 0] without a head;
            statistics are what `losses` needs: ``features`` and ``teacher`` [B, N, C], ``keep`` [B, N] of zeros and
            ones with the sampler's gradient.
        """
        teacher = self._teacher(pixels)
        scores = self._log_probabilities(teacher)
        keep = sample_keep(scores, temperature) if self.training else SelectionRule().keep(scores, pixels).float()
        latents = self._project(self._merge(teacher, keep))
        quantized = self.quantizer(latents) if quantize else self._continuous(latents)
        features = self._reconstruct(quantized.vectors, (keep > 0).sum(1))
        decoded = pixels.new_zeros(len(pixels), 3, 0, 0) if self.pixel_head is None else self._head(features)
        return Reconstruction(decoded, quantized, {"features": features, "teacher": teacher, "keep": keep})

    def losses(self, reconstruction: Reconstruction, *, keep_ratio: float = 1 / 3) -> Mapping[str, Tensor]:
        """Return unweighted losses of what `forward` gave, by name.

        ``features`` is the mean of 1 - cos of reconstructed and teacher's features, ``keep_ratio`` the squared distance
        of an image's kept share from rho; LaVIT weighs them 1 and 2. The others are the quantizer's.

        Args:
            reconstruction: of `forward`.
            keep_ratio: rho, the share of patches that should be kept; a third in LaVIT.
        """
        found = reconstruction.statistics
        return {
            "features": cosine_feature_loss(found["features"], found["teacher"]),
            "keep_ratio": keep_ratio_loss(found["keep"], keep_ratio),
            **reconstruction.quantized.losses,
        }

    def latents(self, pixels: Tensor) -> Tensor:
        """Return what the quantizer sees of pixels [B, 3, H, W]: float32 [T, D], a row a kept patch."""
        teacher = self._teacher(pixels)
        return self._project(self._merge(teacher, self.rule.keep(self._log_probabilities(teacher), pixels).float()))

    @torch.no_grad()
    def select(
        self,
        pixels: Tensor,
        selection: SelectionKind | None = None,
        *,
        tokens: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Selection:
        """Return which patches of pixels [B, 3, H, W] are kept.

        Args:
            pixels: float, in the model's own range.
            selection: ``"threshold"``, ``"topk"`` or ``"gumbel"``, see `SelectionRule`; ``rule`` when not given.
            tokens: the budget of ``"topk"``.
            generator: for ``"gumbel"``; its initial seed and the image's content decide, its state is not touched.

        Raises:
            ConfigError: pixels of another shape, or a selection without what it needs.
        """
        self._check_size(pixels)
        rule = self._rule(selection, tokens, generator)
        parts = self.in_micro_batches(
            lambda x, count: self._keep(self._teacher(x), x, count, rule), pixels.float(), self._pixels_each
        )
        return Selection(torch.cat(parts), torch.cat(parts).sum(1))

    @torch.no_grad()
    def encode(
        self,
        pixels: Tensor,
        selection: SelectionKind | None = None,
        *,
        tokens: int | None = None,
        generator: torch.Generator | None = None,
    ) -> TokenRuns:
        """Return the codes of pixels float [B, 3, H, W] in the model's own range; arguments are those of `select`.

        Raises:
            ConfigError: another shape, or a selection without what it needs.
            NonFiniteLatents: the networks gave NaN or infinity.
        """
        parts = self._encoded(pixels, self._rule(selection, tokens, generator))
        lengths = torch.cat([keep.sum(1) for _, keep in parts])
        return TokenRuns(torch.cat([ids for ids, _ in parts]), lengths, self.vocab_size)

    def tokenize_pixels(self, pixels: Tensor) -> list[streaming.Row]:
        """Return what `encode` gives of pixels float [B, 3, H, W], image by image."""
        with torch.no_grad():
            parts = self._encoded(pixels, self.rule)
        keep = torch.cat([keep for _, keep in parts]).cpu()
        runs = torch.cat([ids for ids, _ in parts]).cpu().split(keep.sum(1).tolist())
        return [
            streaming.Row(ids.numpy(), (1, *self.decoder.grid), row.numpy())
            for ids, row in zip(runs, keep, strict=True)
        ]

    def options(self) -> dict[str, object]:
        """Return what else a caller chose that codes depend on, for the record."""
        chosen = {"selection": self.rule.kind, "tokens": self.rule.tokens, "seed": self.rule.seed}
        return {} if self.rule == SelectionRule() else {name: x for name, x in chosen.items() if x is not None}

    def _rule(
        self, selection: SelectionKind | None, tokens: int | None, generator: torch.Generator | None
    ) -> SelectionRule:
        if selection is None and tokens is None and generator is None:
            return self.rule
        return SelectionRule(selection or "threshold", tokens, None if generator is None else generator.initial_seed())

    def _encoded(self, pixels: Tensor, rule: SelectionRule) -> list[tuple[Tensor, Tensor]]:
        """Return ids [T] and keep [b, N] of each micro-batch."""
        self._check_size(pixels)
        return self.in_micro_batches(
            lambda x, count: self._encode_slice(x, count, rule), pixels.float(), self._pixels_each
        )

    def _encode_slice(self, pixels: Tensor, count: int, rule: SelectionRule) -> tuple[Tensor, Tensor]:
        teacher = self._teacher(pixels)
        keep = self._keep(teacher, pixels, count, rule)
        # What fills the batch up is computed, so that shapes are fixed, and keeps nothing.
        merged = self._merge(teacher, F.pad(keep.float(), (0, 0, 0, len(pixels) - count)))
        return self.quantizer.encode(self._project(merged)), keep

    def _keep(self, teacher: Tensor, pixels: Tensor, count: int, rule: SelectionRule) -> Tensor:
        return rule.keep(self._log_probabilities(teacher)[:count], pixels[:count])

    def _teacher(self, pixels: Tensor) -> Tensor:
        self._check_size(pixels)
        with torch.no_grad(), self.autocast():
            features = self.features(pixels).float()
        if features.shape != (len(pixels), self.decoder.patches, self.merger.width):
            raise ConfigError(
                f"expected features [{len(pixels)}, {self.decoder.patches}, {self.merger.width}] of the teacher, "
                f"patches alone (no class token) and in rows, got {list(features.shape)}"
            )
        return features

    def _log_probabilities(self, features: Tensor) -> Tensor:
        # In float32 whatever the precision: a flipped decision moves every token after it.
        with torch.autocast(features.device.type, enabled=False):
            return self.selector(features)

    def _merge(self, features: Tensor, keep: Tensor) -> Tensor:
        """Return merged vectors [T, C]; dense where keep has a gradient, which the ragged merger cannot give it."""
        kept = keep > 0
        with self.autocast():
            if keep.requires_grad:
                return ops.compact(self.merger.dense(features, keep), kept)[0]
            return self.merger(features, kept)

    def _project(self, merged: Tensor) -> Tensor:
        with self.autocast():
            return in_row_blocks(self.projection, merged).float()

    def _continuous(self, latents: Tensor) -> Quantized:
        """Return latents in the place of vectors, as the quantizer compares them; codes are for looking at only."""
        unit = getattr(self.quantizer, "metric", "") == "cosine" or getattr(self.quantizer, "unit_latents", False)
        with torch.no_grad():
            codes = self.quantizer.encode(latents)
        return Quantized(ops.normalize_latents(latents) if unit else latents, codes, {})

    def _check_size(self, pixels: Tensor) -> None:
        self.check_pixels(pixels)
        height, width = (n * self.factor for n in self.decoder.grid)
        if tuple(pixels.shape[2:]) != (height, width):
            raise ConfigError(
                f"expected pixels of {height} x {width}, the only size of this model, got {pixels.shape[2]} x "
                f"{pixels.shape[3]}: set resize and size in the PreprocessSpec, so that preprocess makes them"
            )

    # Tokens to features and pixels -----------------------------------------------------------------------------------

    @torch.no_grad()
    def decode_features(self, tokens: TokenRuns) -> Tensor:
        """Return features float32 [B, N, C] of runs of codes.

        Raises:
            ConfigError: ids or lengths of another dtype or shape, ids outside the vocabulary, runs without a token or
                with more than N.
            MismatchError: tokens of another vocabulary.
        """
        return self.in_equal_pieces(self._features_of, self._rows_of(tokens), self._pixels_each)

    @torch.no_grad()
    def decode(self, tokens: TokenRuns) -> Tensor:
        """Return pixels float32 [B, 3, H, W], in the model's own range, of runs of codes.

        Raises:
            ConfigError: as of `decode_features`; or the model has no pixel head.
            MismatchError: tokens of another vocabulary.
        """
        rows = self._rows_of(tokens)
        return self.in_equal_pieces(lambda x: self._head(self._features_of(x)), rows, self._pixels_each)

    def detokenize_rows(self, tokens: Tokens) -> Tensor:
        """Return what `decode` gives of tokens of images whose grids are equal."""
        lengths = torch.from_numpy(np.diff(tokens.offsets))
        return self.decode(TokenRuns(torch.from_numpy(tokens.ids), lengths, tokens.vocab_size))

    def check_tokens(self, tokens: Tokens) -> None:
        """Raise MismatchError unless the tokens can be this model's; without a fingerprint, shapes must do."""
        self.check_origin(tokens)
        lengths = np.diff(tokens.offsets)
        fits = (
            (lengths >= 1) & (lengths <= self.decoder.patches) & (tokens.grids == (1, *self.decoder.grid)).all(axis=1)
        )
        if not fits.all() or (-(-tokens.sizes // self.factor) != self.decoder.grid).any():
            raise MismatchError(
                f"expected runs of 1 to {self.decoder.patches} tokens for grids of {self.decoder.grid} patches of "
                f"{self.factor} x {self.factor} pixels, got others"
            )

    @property
    def _pixels_each(self) -> int:
        return self.decoder.patches * self.factor**2

    def _rows_of(self, tokens: TokenRuns) -> Tensor:
        """Return runs as int64 [B, N]: codes plus 1, and 0 where no token is, which is what fills a batch up."""
        ids, lengths, patches = tokens.ids, tokens.lengths, self.decoder.patches
        self.check_ids(ids, tokens.vocab_size)
        if ids.ndim != 1 or lengths.ndim != 1 or lengths.dtype != torch.int64 or int(lengths.sum()) != len(ids):
            raise ConfigError(
                f"expected ids [T] and lengths int64 [B] that sum to T, got ids {list(ids.shape)} and lengths "
                f"{lengths.dtype} {list(lengths.shape)}"
            )
        if len(lengths) and not 1 <= int(lengths.min()) <= int(lengths.max()) <= patches:
            raise ConfigError(
                f"expected runs of 1 to {patches} tokens, got {int(lengths.min())} to {int(lengths.max())}"
            )
        rows = ops.pad(ids + 1, lengths)[0] if len(lengths) else ids.reshape(0, 0)
        return F.pad(rows, (0, patches - rows.shape[1]))

    def _features_of(self, rows: Tensor) -> Tensor:
        ids, lengths = ops.compact(rows, rows > 0)
        return self._reconstruct(self.quantizer.decode(ids - 1), lengths)

    def _reconstruct(self, vectors: Tensor, lengths: Tensor) -> Tensor:
        with self.autocast():
            return self.decoder(vectors, lengths).float()

    def _head(self, features: Tensor) -> Tensor:
        if self.pixel_head is None:
            raise ConfigError(
                "expected a tokenizer with a pixel head, but this one reconstructs features only: decode_features "
                "gives them, and a pixel_head that is trained on them gives pixels"
            )
        with self.autocast():
            return self.pixel_head(features.transpose(1, 2).unflatten(2, self.decoder.grid)).float()
