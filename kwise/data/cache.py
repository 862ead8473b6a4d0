"""Where kwise keeps what it need not make twice, and by what it knows a file again: its content."""

import os
from pathlib import Path

import xxhash

PIECE = 2**24  # bytes hashed at a time


def cache_folder() -> Path:
    """``$KWISE_CACHE``, else ``kwise`` in ``$XDG_CACHE_HOME`` or ``~/.cache``. It may be removed whenever nothing runs."""
    own = os.environ.get("KWISE_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "kwise")


def content_hash(path: Path) -> str:
    """XXH3 (128 bits, hexadecimal) of a file's bytes."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    return str(digest.hexdigest())
