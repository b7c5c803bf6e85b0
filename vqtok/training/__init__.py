"""Training of tokenizers. Nothing on the way from an image to tokens imports this package."""

from vqtok.training.loop import train as train
from vqtok.training.recipe import Recipe as Recipe
from vqtok.training.recipe import read_recipe as read_recipe
