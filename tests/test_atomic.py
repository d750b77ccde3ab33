"""Files are whole or not there."""

import pytest

from mtl_jax import atomic
from mtl_jax.errors import UserError


@pytest.mark.parametrize("content", ["text ü", b"\x00bytes"])
def test_contents(tmp_path, content):
    atomic.write(tmp_path / "a", "before")
    atomic.write(str(tmp_path / "a"), content)
    raw = (tmp_path / "a").read_bytes()
    assert raw == (content.encode() if isinstance(content, str) else content)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("disk"), KeyboardInterrupt()]
)
def test_a_failure_leaves_what_was_there(tmp_path, error):
    atomic.write(tmp_path / "a", "before")
    expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else UserError
    with pytest.raises(expected) as caught, atomic.writing(tmp_path / "a") as unfinished:
        unfinished.write_text("half")
        raise error
    if expected is UserError:
        assert str(tmp_path / "a") in str(caught.value) and "make room" in str(caught.value)
    assert (tmp_path / "a").read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="cannot write .*/nowhere/a"):
        atomic.write(tmp_path / "nowhere/a", "text")
