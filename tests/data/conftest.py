import pytest
from small_store import HEADER, fill, make_parts, make_vertex

from mindvideo.data.writing import StoreWriter


@pytest.fixture
def parts():
    return make_parts()


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """A small complete store; read only."""
    with StoreWriter(tmp_path_factory.mktemp("store") / "store.zarr", vertex=make_vertex(), **HEADER) as writer:
        fill(writer, make_parts())
        writer.add_step("trim", first=1)
        writer.add_step("trim", first=2)
        writer.add_sources({"stimuli/seg1.mp4": "00ff"})
        return writer.finish()
