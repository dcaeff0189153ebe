import pytest
import torch

from kernels.precision import float32_precision

BACKENDS = {
    "cuda matmul": torch.backends.cuda.matmul,
    "cudnn conv": torch.backends.cudnn.conv,
    "mkldnn matmul": torch.backends.mkldnn.matmul,
    "mkldnn conv": torch.backends.mkldnn.conv,
}


def read():
    return {name: backend.fp32_precision for name, backend in BACKENDS.items()}


@pytest.mark.parametrize("cuda", ["ieee", "tf32"])
def test_every_backend_is_set_inside_and_restored_outside(cuda):
    before = read()
    with float32_precision(cuda):
        for name, value in read().items():
            assert value == (cuda if "cu" in name.split()[0] else "ieee")
        with float32_precision():
            assert set(read().values()) == {"ieee"}
        assert read()["cudnn conv"] == cuda
    assert read() == before


def test_an_error_restores_too():
    before = read()
    with pytest.raises(RuntimeError, match="inside"), float32_precision("tf32"):
        raise RuntimeError("inside")
    assert read() == before
