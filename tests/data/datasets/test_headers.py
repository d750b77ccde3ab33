"""The head of each reader tells where its data come from, on what terms, and how they must lie."""

import pytest

from mtl_jax import names
from mtl_jax.data import prepare

PUBLIC = sorted({*names.available("data.datasets")} - {"scenes", "prepared", "folder", "corpus"})


@pytest.mark.parametrize("name", PUBLIC)
def test_source_terms_and_layout(name):
    header = names.resolve("data.datasets", name).__doc__
    assert "http" in header and "data_dir" in header
    assert any(word in header.lower() for word in ("licen", "research", "terms of")), "on what terms?"


@pytest.mark.parametrize("name", PUBLIC)
def test_an_empty_folder_is_answered_with_the_header(name, tmp_path):
    config = prepare.configs.default()
    config.data.name = name
    config.data.options = {"data_dir": str(tmp_path)}
    with pytest.raises(prepare.UserError) as caught:
        prepare.prepare(config, tmp_path / "out", (), (), "never", 0)
    assert names.resolve("data.datasets", name).__doc__ in str(caught.value)
    assert str(tmp_path) in str(caught.value)
