import pytest

from mtl_jax import names
from mtl_jax.errors import UserError


def test_a_name_is_a_module():
    assert names.resolve("methods", "supervised").__name__ == "mtl_jax.methods.supervised"


@pytest.mark.parametrize("name", ["supervized", "base", "../main", ""])
def test_unknown_names_list_the_known_ones(name):
    with pytest.raises(UserError, match="unknown name .* in methods: choose one of .*supervised"):
        names.resolve("methods", name)


def test_unknown_and_missing_options_are_named():
    with pytest.raises(UserError, match="methods.supervised has no option 'wieghts': it takes weights"):
        names.build("methods", "supervised", {"wieghts": {}}, None, {})
    with pytest.raises(UserError, match="data.datasets.folder needs the option 'data_dir'"):
        names.build("data.datasets", "folder", {})
