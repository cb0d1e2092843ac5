"""Compiled and exported networks equal eager ones."""

from dataclasses import replace

import pytest
import torch

from pathorestore.models.pformer import PFormer, PFormerConfig

pytestmark = pytest.mark.compile


@pytest.mark.parametrize("impl", ["folded", "taps"])
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_p_former_equals_the_eager_one(impl):
    torch.manual_seed(0)
    network = PFormer(replace(PFormerConfig.tiny(), moe_impl=impl)).eval()
    image, prompt = torch.rand(2, 3, 64, 64), torch.randn(2, 192)
    with torch.no_grad():
        assert torch.allclose(torch.compile(network)(image, prompt), network(image, prompt), atol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_the_taps_form_exports_with_a_dynamic_batch_and_equals_eager(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    network = PFormer(replace(PFormerConfig.tiny(), moe_impl="taps")).eval()
    example = (torch.rand(2, 3, 64, 64), torch.randn(2, 192))
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.onnx.export(network, example, dynamo=True, dynamic_shapes=({0: batch}, {0: batch}))
    program.save(tmp_path / "pformer.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "pformer.onnx")
    for size in (1, 3):
        image, prompt = torch.rand(size, 3, 64, 64), torch.randn(size, 192)
        names = [entry.name for entry in session.get_inputs()]
        (exported,) = session.run(None, dict(zip(names, (image.numpy(), prompt.numpy()), strict=True)))
        with torch.no_grad():
            assert torch.allclose(torch.from_numpy(exported), network(image, prompt), atol=1e-4)
