"""What every tokenizer of images is: pixels to tokens and back as tensors, images to tokens and back as files."""

from __future__ import annotations

import os
import platform
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from importlib.metadata import version
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor, nn
from typing_extensions import Self

from vqtok import images, store, streaming
from vqtok.architecture import FORMAT, ModelCard, described
from vqtok.errors import ConfigError, MismatchError
from vqtok.identity import Identity
from vqtok.images import PreprocessSpec
from vqtok.quantizers import Quantizer
from vqtok.types import Reconstruction, TokenGrid, TokenRuns, Tokens

Precision: TypeAlias = Literal["float32", "bfloat16"]
WeightDtype: TypeAlias = Literal["float32", "float16"]
STORED: dict[WeightDtype, store.StoredDtype] = {"float32": "F32", "float16": "F16"}

# Pixels that go through a network at once. The number of images this makes depends on their size and the device only,
# and the last batch is filled up with zeros: so tokens cannot depend on batch size, order or neighbours.
MICRO_BATCH_PIXELS = {"cpu": 256 * 256, "cuda": 8 * 1024 * 1024}

T = TypeVar("T")


class ImageTokenizer(nn.Module, ABC):
    """Abstract tokenizer of images; `Tokenizer`, `HierarchicalTokenizer` and `DynamicTokenizer` are its kinds.

    A kind says how tensors become tokens and pixels again (`forward`, `latents`, `encode`, `decode` and their row-wise
    twins); all that people do with images, files and fingerprints is here.

    Args:
        preprocess: how images become pixels; its ``multiple`` is the factor.

    Attributes:
        quantizer: what turns latents into codes.
        precision: ``"float32"``, or ``"bfloat16"``: the networks run under autocast, faster and with other codes near
            ties. Recorded in every token file.
        card: architecture, provenance and licence, for models that were built or loaded; `save` needs it.

    >>> import vqtok
    >>> isinstance(vqtok.build("vqvae-cifar"), ImageTokenizer)
    True
    """

    quantizer: Quantizer

    def __init__(self, preprocess: PreprocessSpec) -> None:
        super().__init__()
        self.spec = preprocess
        self.precision: Precision = "float32"
        self.card: ModelCard | None = None
        self._identity = Identity()

    @property
    def vocab_size(self) -> int:
        """Number of codes."""
        return self.quantizer.vocab_size

    @property
    def factor(self) -> int:
        """Of what number of pixels height and width are multiples: those of a token, each way."""
        return self.spec.multiple

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    # Tensors ---------------------------------------------------------------------------------------------------------

    @abstractmethod
    def forward(self, pixels: Tensor) -> Reconstruction:
        """Encode, quantize and decode pixels [B, 3, H, W] with gradients, for training."""

    @abstractmethod
    def latents(self, pixels: Tensor) -> Tensor:
        """Return what the quantizer sees of pixels [B, 3, H, W] in the model's own range: float32 [..., D]."""

    @abstractmethod
    def encode(self, pixels: Tensor) -> TokenGrid | TokenRuns:
        """Return the codes of pixels float [B, 3, H, W] in the model's own range."""

    @abstractmethod
    def decode(self, tokens: Any) -> Tensor:
        """Return pixels float32 [B, 3, H, W], in the model's own range, of what `encode` gave."""

    @abstractmethod
    def tokenize_pixels(self, pixels: Tensor) -> list[streaming.Row]:
        """Return what `encode` gives of pixels float [B, 3, H, W], image by image."""

    @abstractmethod
    def detokenize_rows(self, tokens: Tokens) -> Tensor:
        """Return what `decode` gives of tokens of images whose grids are equal."""

    @abstractmethod
    def check_tokens(self, tokens: Tokens) -> None:
        """Raise MismatchError unless the tokens can be this model's; without a fingerprint, shapes must do."""

    def autocast(self) -> Any:
        """Return the context in which networks run: the model's precision."""
        if self.precision == "bfloat16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    def in_micro_batches(self, function: Callable[[Tensor, int], T], batch: Tensor, pixels_each: int) -> list[T]:
        """Return what function gives of slices of one fixed length, the last filled up with zeros.

        Args:
            function: called with a slice on the model's device and the number of its first rows that count.
            batch: [B, ...]; of no rows, function still gets one slice, of which none counts.
            pixels_each: pixels that a row stands for.
        """
        length = self.micro_batch(pixels_each)
        # The precision is the model's, and recorded; a caller's autocast would change codes behind the record.
        with torch.autocast(self.device.type, enabled=False):
            return [
                function(_filled(part, length).to(self.device), len(part))
                for part in (batch.split(length) if len(batch) else [batch])
            ]

    def in_equal_pieces(self, function: Callable[[Tensor], Tensor], batch: Tensor, pixels_each: int) -> Tensor:
        """Return what a function of rows gives of a batch, in micro-batches."""
        return torch.cat(self.in_micro_batches(lambda x, count: function(x)[:count], batch, pixels_each))

    def micro_batch(self, pixels_each: int) -> int:
        """Return how many images of that many pixels go through the networks at once on this device."""
        return max(1, MICRO_BATCH_PIXELS.get(self.device.type, MICRO_BATCH_PIXELS["cuda"]) // max(1, pixels_each))

    def check_pixels(self, pixels: Tensor) -> None:
        """Raise ConfigError unless pixels are float [B, 3, H, W], H and W multiples of ``factor``."""
        f = self.factor
        if not isinstance(pixels, Tensor):
            raise ConfigError(f"expected a tensor of pixels, got {type(pixels).__name__}: images go to tokenize")
        if pixels.ndim != 4 or pixels.shape[1] != 3 or not pixels.is_floating_point():
            raise ConfigError(f"expected float pixels [B, 3, H, W], got {pixels.dtype} {list(pixels.shape)}")
        if pixels.shape[2] % f or pixels.shape[3] % f or 0 in pixels.shape[2:]:
            raise ConfigError(
                f"expected height and width to be multiples of {f}, got {pixels.shape[2]} x {pixels.shape[3]}: "
                "pad them (tokenize and preprocess do)"
            )

    def check_ids(self, ids: Tensor, vocab_size: int) -> None:
        """Raise unless ids are int64 codes of this model's vocabulary."""
        if vocab_size != self.vocab_size:
            raise MismatchError(f"expected tokens of a vocabulary of {self.vocab_size}, got {vocab_size}")
        if ids.dtype != torch.int64:
            raise ConfigError(f"expected ids of int64, got {ids.dtype}")
        if torch.compiler.is_compiling():
            return  # a compiled function cannot look at values
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self.vocab_size:
            raise ConfigError(f"expected ids in 0..{self.vocab_size - 1}, got {int(ids.min())}..{int(ids.max())}")

    # Images ----------------------------------------------------------------------------------------------------------

    def preprocess(self, image: images.Source) -> Tensor:
        """Return pixels float32 [1, 3, H, W] of one image, resized or padded as the spec says, for `encode`.

        >>> import vqtok
        >>> vqtok.load().preprocess(np.zeros((30, 50, 3), np.uint8)).shape
        torch.Size([1, 3, 32, 56])
        """
        array = images.to_rgb(image, self.spec)
        return torch.from_numpy(images.to_pixels(array, self.spec))[None]

    def tokenize(self, sources: images.Source | Iterable[images.Source]) -> Tokens:
        """Return the tokens of one image or of several.

        Args:
            sources: path, bytes, PIL image or uint8 array [H, W, 3], or an iterable of them; sizes may differ.

        Raises:
            ImageError: an image was refused; the message names it.

        >>> import vqtok
        >>> tokens = vqtok.load().tokenize([np.zeros((30, 50, 3), np.uint8), np.zeros((8, 8, 3), np.uint8)])
        >>> tokens.grids.tolist(), tokens.sizes.tolist()
        ([[1, 4, 7], [1, 1, 1]], [[30, 50], [8, 8]])
        """
        single = isinstance(sources, str | os.PathLike | bytes | Image.Image | np.ndarray)
        if not single and not isinstance(sources, Iterable):
            raise ConfigError(f"expected an image or several, got {type(sources).__name__}")
        listed = [sources] if single else list(sources)
        keys = streaming.unique_keys(streaming.key_of(source, i) for i, source in enumerate(listed))
        arrays = ((key, images.to_rgb(source, self.spec, name=key)) for key, source in zip(keys, listed, strict=True))
        return streaming.collect(self, streaming.tokenize(self, arrays), keys)

    def no_tokens(self) -> Tokens:
        """Return the tokens of no image: what all tokens of this model have in common."""
        none = np.zeros(0, np.int64)
        return Tokens(
            ids=none,
            offsets=np.zeros(1, np.int64),
            grids=none.reshape(0, 3),
            sizes=none.reshape(0, 2),
            vocab_size=self.vocab_size,
            keys=(),
            fingerprint=self.fingerprint,
            record=self.record(),
        )

    def detokenize(self, tokens: Tokens) -> list[Image.Image]:
        """Return the images of tokens, each in its true size.

        Raises:
            MismatchError: the tokens are another model's.

        >>> import vqtok
        >>> tokenizer = vqtok.load()
        >>> [image.size for image in tokenizer.detokenize(tokenizer.tokenize(np.zeros((30, 50, 3), np.uint8)))]
        [(50, 30)]
        """
        return [Image.fromarray(array) for array in streaming.detokenize(self, tokens)]

    def check_origin(self, tokens: Tokens) -> None:
        """Raise MismatchError when vocabulary or fingerprint are not this model's."""
        if tokens.vocab_size != self.vocab_size or tokens.fingerprint not in ("", self.fingerprint):
            raise MismatchError(
                f"expected tokens of model {self.fingerprint[:12]} (vocabulary {self.vocab_size}), got tokens of "
                f"{tokens.fingerprint[:12] or 'another'} (vocabulary {tokens.vocab_size}): load the model of those"
            )

    # Identity --------------------------------------------------------------------------------------------------------

    @property
    def fingerprint(self) -> str:
        """sha256 over the architecture and every tensor that inference uses; computed anew when a weight changed."""
        return self._fingerprints()["model"]

    def _fingerprints(self) -> dict[str, str]:
        tensors = self.inference_tensors()

        def compute() -> dict[str, str]:
            arrays = {name: x.detach().cpu().numpy() for name, x in tensors.items()}
            whole = described(self.card.architecture) if self.card else {"modules": repr(self)}
            codebook = {name: x for name, x in arrays.items() if name.startswith("quantizer.")}
            return {
                "model": store.model_fingerprint(whole, arrays),
                "codebook": store.model_fingerprint(
                    {"quantizer": whole.get("quantizer", repr(self.quantizer))}, codebook
                ),
                "preprocess": store.mapping_fingerprint(self.spec.model_dump(mode="json")),
            }

        return self._identity.of(tensors.values(), compute)

    def inference_tensors(self) -> dict[str, Tensor]:
        """Return parameters and buffers by name, without what only training reads."""
        training = {
            f"{name}.{state}"
            for name, module in self.named_modules(remove_duplicate=False)
            if isinstance(module, Quantizer)
            for state in module.training_state
        }
        return {name: x for name, x in self.state_dict(keep_vars=True).items() if name not in training}

    def record(self) -> dict[str, object]:
        """Return what a token file says of its origin: fingerprints, and what bits depend on beside model and image."""
        return {
            "fingerprints": self._fingerprints(),
            "execution": {
                "torch": torch.__version__,
                "pillow": PIL.__version__,
                "device": self.device.type,
                "machine": platform.machine(),
                "precision": self.precision,
                # Libraries split their sums by it; a code may differ where two are nearly equally near.
                "threads": torch.get_num_threads() if self.device.type == "cpu" else 0,
                "micro_batch_pixels": MICRO_BATCH_PIXELS.get(self.device.type, MICRO_BATCH_PIXELS["cuda"]),
                **self.options(),
            },
            "created_by": f"vqtok {version('vqtok')}",
        }

    def options(self) -> dict[str, object]:
        """Return what else a caller chose that codes depend on, for the record."""
        return {}

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False, dtype: WeightDtype = "float32") -> None:
        """Write a model folder: ``config.json`` and ``model.safetensors``, atomically.

        Args:
            folder: must not exist yet, unless overwrite.
            overwrite: replace an older model folder.
            dtype: ``"float16"`` halves the file; values that it rounds make another model (and fingerprint).

        Raises:
            ConfigError: the tokenizer was put together by hand, so no configuration describes it.
            OutputError: the folder exists or cannot be written.

        >>> import tempfile, vqtok
        >>> tokenizer = vqtok.build("vqvae-cifar")
        >>> tokenizer.save(folder := tempfile.mkdtemp() + "/model")
        >>> vqtok.load(folder).fingerprint == tokenizer.fingerprint
        True
        """
        if self.card is None:
            raise ConfigError(
                "expected a tokenizer from vqtok.build or vqtok.load to save, got one put together by hand"
            )
        if dtype not in STORED:
            raise ConfigError(f"expected dtype to be one of {', '.join(STORED)}, got {dtype!r}")
        tensors = {name: x.detach().cpu().numpy() for name, x in self.inference_tensors().items()}
        config = {"format": FORMAT, **self.card.model_dump(mode="json")}
        store.write_model(folder, config, tensors, dtype=STORED[dtype], overwrite=overwrite)

    # The Hugging Face Hub ---------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write a model folder, as `save` does; what `push_to_hub` uploads.

        >>> import tempfile, vqtok
        >>> vqtok.build("vqvae-cifar").save_pretrained(folder := tempfile.mkdtemp() + "/model")
        >>> sorted(os.listdir(folder))
        ['config.json', 'model.safetensors']
        """
        self.save(folder, overwrite=overwrite)

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str],
        *,
        revision: str | None = None,
        family: str | None = None,
        config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
        device: str | torch.device = "cpu",
        precision: Precision = "float32",
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """Load a tokenizer from the Hugging Face Hub or from a folder: safetensors only, and never any code.

        Repository, commit and the sha256 of each file are in ``card.provenance["loaded_from"]`` afterwards.

        Args:
            model: a repository such as ``"owner/name"``, or a local folder, which needs no ``huggingface-hub``.
            revision: branch, tag or commit of the repository. Only a commit's hash always means the same weights.
            family: as of `vqtok.load`.
            config: as of `vqtok.load`.
            device: where to put it.
            precision: as of `vqtok.load`.
            cache_dir: where downloads are kept, if not where the hub's own library keeps them.
            local_files_only: use what was downloaded before and ask nobody.

        Raises:
            InputError: there is no such repository, revision or folder, or it has no weights in safetensors.
            ResourceError: the extra ``vqtok[hub]`` is not installed.
            MismatchError: the model is of another class than this one; and all else that `vqtok.load` raises.

        >>> import tempfile, vqtok
        >>> tokenizer = vqtok.build("vqvae-cifar")
        >>> tokenizer.save_pretrained(folder := tempfile.mkdtemp() + "/model")
        >>> vqtok.Tokenizer.from_pretrained(folder).fingerprint == tokenizer.fingerprint
        True
        """
        from vqtok.hub import fetch, load_fetched

        fetched = fetch(model, revision, cache_dir, local_files_only)
        found = load_fetched(fetched, device=device, precision=precision, family=family, config=config)
        if not isinstance(found, cls):
            raise MismatchError(
                f"expected a {cls.__name__}, but {str(model)!r} is a {type(found).__name__}: load it as such, or as "
                "vqtok.ImageTokenizer"
            )
        return found

    def push_to_hub(
        self, repository: str, *, revision: str | None = None, private: bool = False, message: str = "Upload tokenizer"
    ) -> str:
        """Upload ``config.json`` and ``model.safetensors`` to the Hugging Face Hub and return the commit's hash.

        Args:
            repository: ``"owner/name"``; made when it does not exist.
            revision: the branch, if not the main one.
            private: whether a repository that is made is private.
            message: of the commit.

        Raises:
            ConfigError: the tokenizer was put together by hand, so no configuration describes it.
            OutputError: the hub refused.
            ResourceError: the extra ``vqtok[hub]`` is not installed.

        >>> import vqtok
        >>> commit = vqtok.load().push_to_hub("me/photo-f8")  # doctest: +SKIP
        """
        from vqtok.hub import push

        return push(self, repository, revision=revision, private=private, message=message)


def _filled(part: Tensor, length: int) -> Tensor:
    """Return a slice with zeros after its rows, so that it has length of them."""
    return torch.cat([part, part.new_zeros(length - len(part), *part.shape[1:])]) if len(part) < length else part
