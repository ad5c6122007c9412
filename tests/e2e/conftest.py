"""One platform for all tests of the whole."""

from collections.abc import Iterator

import pytest

from tests.e2e.running import Platform, servery_up


@pytest.fixture(scope="session")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with servery_up(tmp_path_factory.mktemp("up")) as platform:
        yield platform
