"""All positions at once; an array comes out."""

import numpy as np


def slot_mapping(block_table, start, end, block_size):
    positions = np.arange(start, end)
    return (
        np.array(block_table, dtype=np.int64)[positions // block_size] * block_size + positions % block_size
    )
