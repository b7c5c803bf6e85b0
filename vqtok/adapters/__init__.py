"""Published checkpoints of others: opened without running any of them, by tables of renames that read both ways.

Each family is one table in a file of its own, with the facts beside it that no tensor tells.
"""

from vqtok.adapters.checkpoint import FAMILIES as FAMILIES
from vqtok.adapters.checkpoint import ForeignModel as ForeignModel
from vqtok.adapters.checkpoint import export as export
from vqtok.adapters.checkpoint import find_family as find_family
from vqtok.adapters.checkpoint import open_checkpoint as open_checkpoint
from vqtok.adapters.checkpoint import reread as reread
