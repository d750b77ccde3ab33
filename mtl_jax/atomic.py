"""Files that are written at once: a reader, or a crash, never sees half of one."""

import os
import uuid
from pathlib import Path


def write(path: str | Path, content: str | bytes) -> None:
    """Writes a small file; of several processes that write it at the same time the last one wins."""
    own = f"{path}.{uuid.uuid4().hex}"
    Path(own).write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(own, path)
