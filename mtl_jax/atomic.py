"""Files that are written at once: a reader, or a crash, never sees half of one."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from mtl_jax.errors import UserError


def write(path: str | Path, content: str | bytes) -> None:
    """Writes a small file; of several processes that write it at the same time the last one wins."""
    with writing(path) as own:
        own.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[Path]:
    """The path of a file to write, which becomes `path` if all goes well, else goes away.

    Raises:
      UserError: it could not be written, as when the disk is full.
    """
    own = Path(f"{path}.{uuid.uuid4().hex}")
    try:
        yield own
        os.replace(own, path)
    except (OSError, RuntimeError) as error:  # ArrayRecord raises RuntimeError
        raise UserError(f"cannot write {path} ({error}): make room, or choose another folder") from error
    finally:
        own.unlink(missing_ok=True)
