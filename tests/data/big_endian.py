"""Dense time series in the other byte order, which nibabel reads but does not write."""

import nibabel
import numpy as np

HEADER_BYTES = 540


def to_big_endian(content):
    """A little-endian, uncompressed CIFTI-2 file as a big-endian one: header, extension and values swapped."""
    header = nibabel.Nifti2Header(content[:HEADER_BYTES], endianness="<", check=False)
    offset, dtype = int(header["vox_offset"]), header.get_data_dtype()
    size, code = np.frombuffer(content, "<i4", 2, HEADER_BYTES + 4)
    start = HEADER_BYTES + 12
    return b"".join([
        header.as_byteswapped(">").binaryblock,
        content[HEADER_BYTES : HEADER_BYTES + 4],
        np.array([size, code], ">i4").tobytes(),
        content[start:offset],
        np.frombuffer(content, dtype, offset=offset).byteswap().tobytes(),
    ])  # fmt: skip
