"""What the tests of human evaluation share."""

import pytest
from rated_dump import make_dump

from ablations.hype.dumps import open_dumps


@pytest.fixture(scope="session")
def dump(tmp_path_factory):
    return make_dump(tmp_path_factory.mktemp("dump") / "digits-ncsnv2")


@pytest.fixture(scope="session")
def opened(dump):
    return open_dumps(dump)[0]


@pytest.fixture
def unsynced(monkeypatch):
    """Do without waiting for the disk, in tests of something else."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
