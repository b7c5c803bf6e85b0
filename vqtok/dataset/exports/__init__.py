"""Token runs in the formats of others, and back: one format a file, each a writer and a reader of rows."""

from vqtok.dataset.exports.convert import FORMATS as FORMATS
from vqtok.dataset.exports.convert import Source as Source
from vqtok.dataset.exports.convert import export as export
from vqtok.dataset.exports.convert import open_source as open_source
from vqtok.dataset.exports.convert import read_export as read_export
from vqtok.dataset.exports.foreign import read_foreign as read_foreign
