"""Training of tokenizers. Nothing on the way from an image to tokens imports this package."""

from vqtok.training.crops import PhotoCrops as PhotoCrops
from vqtok.training.loop import Recipe as Recipe
from vqtok.training.loop import fit as fit
