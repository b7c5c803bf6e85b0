"""What vqtok keeps on disk: token files, model folders, fingerprints, and the one atomic commit for all of them.

Needs numpy only. The commits are reached as `vqtok.store.commit.commit` and `vqtok.store.commit_folder.commit_folder`.
"""

from vqtok.store.canonical import canonical_json as canonical_json
from vqtok.store.fingerprint import codebook_fingerprint as codebook_fingerprint
from vqtok.store.fingerprint import mapping_fingerprint as mapping_fingerprint
from vqtok.store.fingerprint import model_fingerprint as model_fingerprint
from vqtok.store.model_folder import CHECKSUM as CHECKSUM
from vqtok.store.model_folder import StoredDtype as StoredDtype
from vqtok.store.model_folder import read_config as read_config
from vqtok.store.model_folder import read_weights as read_weights
from vqtok.store.model_folder import tensor_shapes as tensor_shapes
from vqtok.store.model_folder import write_model as write_model
from vqtok.store.temporary import remove_stale_temporaries as remove_stale_temporaries
from vqtok.store.token_codec import TokenFile as TokenFile
from vqtok.store.token_file import load_tokens as load_tokens
from vqtok.store.token_file import read_header as read_header
from vqtok.store.token_file import read_token_file as read_token_file
from vqtok.store.token_file import save_tokens as save_tokens
from vqtok.store.token_file import tokens_from_bytes as tokens_from_bytes
from vqtok.store.token_file import tokens_to_bytes as tokens_to_bytes
from vqtok.store.token_header import TokenHeader as TokenHeader
