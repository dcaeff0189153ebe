"""What the tests of training share."""

import pytest
from tiny_training import SETTINGS

from scorekit.data.registry import prepare
from scorekit.training.trainer import Trainer


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return prepare("digits", tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def undisturbed(digits, tmp_path_factory) -> Trainer:
    trainer = Trainer(SETTINGS, digits, tmp_path_factory.mktemp("whole"), compile=False)
    trainer.run()
    return trainer
