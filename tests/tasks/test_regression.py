import numpy as np
import pytest

from mtl_jax.errors import UserError
from mtl_jax.tasks import disparity, regression


def test_pictures_go_from_low_to_high():
    values = np.float32([-9, -2, 1, 4, 9, np.nan])[None, :, None]
    grey = regression.build("reshading", low=-2, high=4).colorize(values)[0, :, 0]
    np.testing.assert_allclose(grey[:5], [0, 0, 127.5, 255, 255], atol=1)
    grey = regression.build("reshading").colorize(np.float32([0, 0.5, 1])[None, :, None])[0, :, 0]
    np.testing.assert_allclose(grey, [0, 127.5, 255], atol=1)


def test_an_empty_range_is_named():
    with pytest.raises(UserError, match="task 'keypoints2d': high is 1.0, which is not above low = 1.0"):
        regression.build("keypoints2d", low=1.0)


def test_a_dataset_may_have_another_unit_of_disparity():
    assert disparity.build("disparity").unit == "px"
    assert disparity.build("disparity", unit="code / 65535").unit == "code / 65535"
