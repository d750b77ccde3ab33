"""The one error that users meet: a sentence that names the culprit and the fix."""

import contextlib
import functools
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any


class UserError(Exception):
    """Something the user can mend: a wrong config, a missing file, a damaged checkpoint.

    The commands print its message alone and end with exit code 2; any other exception is a bug
    and keeps its traceback.
    """


class Interrupted(Exception):
    """A signal came; the state has been saved, and the same command goes on from there."""


def one_of(key: str, value: Any, known: Iterable[Any], where: str = "") -> None:
    """Raises UserError if the value of a config's key is none of those that are known."""
    if value not in (known := list(known)):
        raise UserError(f"config.{key} is {value!r}: {where}choose one of {', '.join(map(str, known))}")


@contextlib.contextmanager
def reading(path: Path | str) -> Iterator[None]:
    """Makes whatever goes wrong inside a UserError that names the file; a UserError passes as it is."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of many kinds: libraries trip over damaged files wherever they happen to be
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read {path} ({reason}): put a sound file there or leave it out") from error


def exit_on_user_error(main: Callable[[], None]) -> Callable[[], None]:
    """Makes a command's `main` end with one sentence: exit code 2 on UserError, 143 when interrupted."""

    @functools.wraps(main)
    def wrapped() -> None:
        try:
            main()
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except Interrupted as stop:
            print(f"stopped: {stop}", file=sys.stderr)
            sys.exit(143)  # 128 + SIGTERM: schedulers see that the job is not done

    return wrapped
