"""The real store on `tmp_path`; `open_store` again, on a copy, is what the next owner finds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.store import Layout, Store
from tests.store.samples import LAZY, OPTIONS, FaultyFiles, News, Stores


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Where the data directory is."""
    return tmp_path / "data"


@pytest.fixture
def layout(data: Path) -> Layout:
    """An empty data directory in which every folder is there."""
    layout = Layout(data)
    for directory in layout.directories:
        Path(directory).mkdir(parents=True)
    return layout


@pytest.fixture
def files() -> FaultyFiles:
    """A disk that works until it is told not to."""
    return FaultyFiles()


@pytest.fixture
def news() -> News:
    """Who is told of what `store` commits."""
    return News()


@pytest.fixture
def stores() -> Iterator[Stores]:
    """Opens stores, and closes those that are still open in the end."""
    stores = Stores()
    yield stores
    stores.close()


@pytest.fixture
def store(stores: Stores, data: Path, news: News, files: FaultyFiles) -> Store:
    """A store that writes behind at once, on `files`."""
    return stores.open(data, OPTIONS, news, files)


@pytest.fixture
def lazy_store(stores: Stores, data: Path, news: News, files: FaultyFiles) -> Store:
    """A store that writes nothing behind unless it is asked to."""
    return stores.open(data, LAZY, news, files)
