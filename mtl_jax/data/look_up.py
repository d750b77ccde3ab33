"""What codes of 8 and 16 bits stand for, read off a table: by OpenCV, in a third of NumPy's time."""

import cv2
import numpy as np

cv2.setNumThreads(0)  # examples are read in parallel already

HALVES = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)


def look_up(codes: np.ndarray, table: np.ndarray) -> np.ndarray:
    """[h,w,1] of the table's dtype: table[codes].

    Args:
      codes: uint8 or uint16 [h,w,1].
      table: a value for each of the 256 or 65536 codes.
    """
    plain = table.view(np.int16) if table.dtype == np.float16 else table  # OpenCV knows no tables of halves
    return cv2.LUT(codes, plain).view(table.dtype).reshape(codes.shape)


def to_float32(label: np.ndarray) -> np.ndarray:
    """f32[h,w,C] of any numbers [h,w,C]."""
    if label.dtype != np.float16:
        return label.astype(np.float32, copy=False)
    codes = np.ascontiguousarray(label).view(np.uint16)
    return look_up(codes.reshape(len(codes), -1, 1), HALVES).reshape(label.shape)
