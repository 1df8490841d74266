"""The image encoder computes what timm's TinyViT and SAM's neck do, whichever way it runs."""

import copy
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from mobile_sam_plugin import MobileSam
from mobile_sam_plugin.model.encoder_inference import InferenceEncoder
from mobile_sam_plugin.model.image_encoder import TinyVitImageEncoder

# Embeddings of these random weights reach 4; processors round differently, up to 2.6e-5 seen.
TOLERANCE = 5e-5


def reference(encoder: TinyVitImageEncoder, images: Tensor) -> Tensor:
    """What the modules compute, one after another."""
    embeddings: Tensor = encoder.neck(encoder.trunk.forward_features(images))
    return embeddings


def assert_equal_to_modules(encoder: TinyVitImageEncoder, images: Tensor) -> None:
    torch.testing.assert_close(encoder(images), reference(encoder, images), rtol=0, atol=TOLERANCE)


@pytest.fixture
def encoder() -> TinyVitImageEncoder:
    """Random weights, none of them as neutral as PyTorch's ones and zeros."""
    torch.manual_seed(0)
    encoder = TinyVitImageEncoder(img_size=256)
    with torch.no_grad():
        for name, tensor in encoder.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            elif tensor.is_floating_point():
                tensor.add_(0.1 * torch.randn_like(tensor))
    return encoder.eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(1, 3, 64, 80, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For dtypes whose depthwise convolutions start PyTorch's threads once a channel."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> list[InferenceEncoder]:
    """The encoders prepared during a test."""
    made: list[InferenceEncoder] = []
    original = InferenceEncoder.__init__

    def record(self: InferenceEncoder, trunk: nn.Module, neck: nn.Sequential) -> None:
        original(self, trunk, neck)
        made.append(self)

    monkeypatch.setattr(InferenceEncoder, "__init__", record)
    return made


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.mark.parametrize(
    "shape",
    [
        (1, 3, 16, 16),
        (1, 3, 112, 112),  # one window of 7 a side in the last stages
        (1, 3, 448, 448),  # nothing to pad in any stage
        (2, 3, 208, 336),
        (3, 3, 64, 16),
        (1, 3, 30, 50),
    ],
)
def test_equals_modules(
    encoder: TinyVitImageEncoder, shape: tuple[int, ...], prepared: list[InferenceEncoder]
) -> None:
    images = torch.randn(shape)
    assert_equal_to_modules(encoder, images)
    assert_equal_to_modules(encoder, images.contiguous(memory_format=torch.channels_last))
    assert encoder(images).is_contiguous()
    assert len(prepared) == 1


def test_equals_modules_on_trained_weights(bundled_sam: MobileSam) -> None:
    encoder = bundled_sam.image_encoder
    images = torch.randn(1, 3, 1024, 1024)
    embeddings = encoder(images)
    # Of order one, and some as large as ten.
    torch.testing.assert_close(embeddings, reference(encoder, images), rtol=1e-5, atol=4e-5)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), (torch.bfloat16, 0.3), (torch.float16, 0.04)],
)
def test_other_dtypes(
    one_thread: None,
    encoder: TinyVitImageEncoder,
    images: Tensor,
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    exact = reference(encoder.double(), images.double())
    embeddings = encoder.to(dtype)(images.to(dtype))
    assert embeddings.dtype == dtype
    torch.testing.assert_close(embeddings.double(), exact, rtol=0, atol=tolerance)


def test_weights_are_prepared_once(
    encoder: TinyVitImageEncoder, images: Tensor, prepared: list[InferenceEncoder]
) -> None:
    first = encoder(images)
    assert torch.equal(encoder(images), first)
    assert len(prepared) == 1


def load_weights(encoder: TinyVitImageEncoder) -> None:
    encoder.load_state_dict({name: tensor * 1.1 for name, tensor in encoder.state_dict().items()})


def assign_weights(encoder: TinyVitImageEncoder) -> None:
    state = {name: tensor * 1.1 for name, tensor in encoder.state_dict().items()}
    encoder.load_state_dict(state, assign=True)


def step_optimizer(encoder: TinyVitImageEncoder) -> None:
    for parameter in encoder.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD(encoder.parameters(), lr=0.01).step()


def write_running_statistics(encoder: TinyVitImageEncoder) -> None:
    encoder.trunk.patch_embed.conv1.bn.running_mean.add_(0.5)


def write_attention_biases(encoder: TinyVitImageEncoder) -> None:
    encoder.trunk.stages[1].blocks[0].attn.attention_biases.mul_(3)


def replace_parameter(encoder: TinyVitImageEncoder) -> None:
    conv = encoder.neck[2]
    assert isinstance(conv, nn.Conv2d)
    conv.weight = nn.Parameter(torch.randn_like(conv.weight))


def replace_data(encoder: TinyVitImageEncoder) -> None:
    norm = encoder.trunk.stages[3].blocks[1].mlp.norm
    # The second replacement could get the memory of the original.
    norm.weight.data = torch.zeros_like(norm.weight)
    norm.weight.data = torch.rand_like(norm.weight)


def replace_module(encoder: TinyVitImageEncoder) -> None:
    mlp = encoder.trunk.stages[2].blocks[3].mlp
    mlp.fc2 = nn.Linear(mlp.fc2.in_features, mlp.fc2.out_features).eval()


def step_fused_optimizer(encoder: TinyVitImageEncoder) -> None:
    for parameter in encoder.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.AdamW(encoder.parameters(), lr=0.01, fused=True).step()


def write_to_data(encoder: TinyVitImageEncoder) -> None:
    for parameter in encoder.parameters():
        parameter.data.mul_(1.1)


def write_through_numpy(encoder: TinyVitImageEncoder) -> None:
    encoder.get_parameter("neck.2.weight").detach().numpy()[:] *= -1


def train_with_unseen_writes(encoder: TinyVitImageEncoder) -> None:
    encoder.train()
    encoder.trunk.stages[0].blocks[0].conv1.conv.weight.data.mul_(2)
    encoder.eval()


@pytest.mark.parametrize(
    "change",
    [
        load_weights,
        assign_weights,
        step_optimizer,
        step_fused_optimizer,
        write_to_data,
        write_through_numpy,
        write_running_statistics,
        write_attention_biases,
        replace_parameter,
        replace_data,
        replace_module,
        train_with_unseen_writes,
    ],
)
def test_notices_changed_weights(
    encoder: TinyVitImageEncoder,
    images: Tensor,
    prepared: list[InferenceEncoder],
    change: Callable[[TinyVitImageEncoder], None],
) -> None:
    before = encoder(images)
    change(encoder)
    assert_equal_to_modules(encoder, images)
    assert not torch.allclose(encoder(images), before, atol=1e-3)
    assert len(prepared) == 2


def test_notices_writes_to_inference_tensors(images: Tensor) -> None:
    with torch.inference_mode():
        encoder = TinyVitImageEncoder(img_size=256).eval()
        before = encoder(images)
        encoder.get_parameter("neck.0.weight").neg_()
        assert_equal_to_modules(encoder, images)
        assert not torch.allclose(encoder(images), before, atol=1e-3)
    assert_equal_to_modules(encoder, images)


def test_weights_prepared_in_inference_mode_serve_outside(
    encoder: TinyVitImageEncoder, images: Tensor, prepared: list[InferenceEncoder]
) -> None:
    with torch.inference_mode():
        encoder(images)
    assert_equal_to_modules(encoder, images)
    assert len(prepared) == 1


@pytest.mark.parametrize("training", [False, True])
@torch.enable_grad()
def test_gradients_are_those_of_the_modules(
    encoder: TinyVitImageEncoder,
    images: Tensor,
    prepared: list[InferenceEncoder],
    training: bool,
) -> None:
    images = images.repeat(2, 1, 1, 1)
    encoder.train(training)
    twin = copy.deepcopy(encoder)
    embeddings, expected = encoder(images), reference(twin, images)
    assert torch.equal(embeddings, expected)
    embeddings.square().sum().backward()
    expected.square().sum().backward()
    for (name, parameter), other in zip(encoder.named_parameters(), twin.parameters(), strict=True):
        assert parameter.grad is not None and other.grad is not None, name
        assert torch.equal(parameter.grad, other.grad), name
    for buffer, other_buffer in zip(encoder.buffers(), twin.buffers(), strict=True):
        assert torch.equal(buffer, other_buffer)
    assert not prepared


@torch.enable_grad()
def test_gradient_of_the_images_alone(
    encoder: TinyVitImageEncoder, images: Tensor, prepared: list[InferenceEncoder]
) -> None:
    encoder.requires_grad_(False)
    assert not encoder(images).requires_grad
    assert len(prepared) == 1
    encoder(images.requires_grad_()).sum().backward()
    assert images.grad is not None


def test_training_of_one_module_is_respected(encoder: TinyVitImageEncoder, images: Tensor) -> None:
    encoder(images)
    norm = encoder.trunk.patch_embed.conv1.bn.train()
    batches = norm.num_batches_tracked.clone()
    twin = copy.deepcopy(encoder)
    assert torch.equal(encoder(images), reference(twin, images))
    assert norm.num_batches_tracked == batches + 1


def test_hooks_and_replaced_modules_are_run(encoder: TinyVitImageEncoder, images: Tensor) -> None:
    class Doubled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    plain = encoder(images)
    seen: list[torch.Size] = []
    handle = encoder.trunk.stages[1].register_forward_hook(
        lambda module, arguments, output: seen.append(output.shape)
    )
    torch.testing.assert_close(encoder(images), plain, rtol=0, atol=TOLERANCE)
    assert seen == [torch.Size([1, 128, 8, 10])]
    handle.remove()
    encoder.trunk.stages[1].blocks[0].mlp.fc1.__class__ = Doubled
    assert torch.equal(encoder(images), reference(encoder, images))
    assert not torch.allclose(encoder(images), plain, atol=1e-3)


def change_epsilon(encoder: TinyVitImageEncoder) -> None:
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.1


def change_activation(encoder: TinyVitImageEncoder) -> None:
    for module in encoder.modules():
        if isinstance(module, nn.GELU):
            module.approximate = "tanh"


def drop_running_statistics(encoder: TinyVitImageEncoder) -> None:
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = module.running_var = None


@pytest.mark.parametrize("change", [change_epsilon, change_activation, drop_running_statistics])
def test_changed_settings_are_respected(
    encoder: TinyVitImageEncoder,
    images: Tensor,
    change: Callable[[TinyVitImageEncoder], None],
) -> None:
    before = encoder(images)
    change(encoder)
    assert torch.equal(encoder(images), reference(encoder, images))
    assert not torch.equal(encoder(images), before)


def test_hooks_of_all_modules_are_run(encoder: TinyVitImageEncoder, images: Tensor) -> None:
    seen = []
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, arguments, output: seen.append(type(module))
    )
    encoder(images)
    handle.remove()
    assert nn.Conv2d in seen


def test_old_weights_are_given_back(encoder: TinyVitImageEncoder, images: Tensor) -> None:
    encoder(images)
    encoder.half()
    assert encoder._prepared is None


def test_autocast(encoder: TinyVitImageEncoder, images: Tensor) -> None:
    encoder(images)
    with torch.autocast("cpu", torch.bfloat16):
        embeddings = encoder(images)
        assert torch.equal(embeddings, reference(encoder, images))
    assert embeddings.isfinite().all()


def test_prepared_weights_stay_out_of_state_and_copies(
    encoder: TinyVitImageEncoder, images: Tensor, prepared: list[InferenceEncoder]
) -> None:
    names, size = list(encoder.state_dict()), len(pickle.dumps(encoder))
    embeddings = encoder(images)
    assert list(encoder.state_dict()) == names
    assert len(pickle.dumps(encoder)) == size
    for twin in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        assert torch.equal(twin(images), embeddings)
        twin.get_parameter("neck.0.weight").neg_()
        assert_equal_to_modules(twin, images)
        assert torch.equal(encoder(images), embeddings)
    assert len(prepared) == 5


def test_threads(encoder: TinyVitImageEncoder) -> None:
    batches = [torch.randn(1, 3, 64, 16 * side) for side in (1, 2, 3, 4) * 3]
    expected = [reference(encoder, images) for images in batches]

    def encode(images: Tensor) -> Tensor:
        with torch.no_grad():
            return encoder(images)

    with ThreadPoolExecutor(4) as threads:
        for embeddings, right in zip(threads.map(encode, batches), expected, strict=True):
            torch.testing.assert_close(embeddings, right, rtol=0, atol=TOLERANCE)


def test_traces_the_modules(encoder: TinyVitImageEncoder, images: Tensor) -> None:
    encoder(images)
    traced = torch.jit.trace(encoder, images)
    torch.testing.assert_close(traced(images), reference(encoder, images), rtol=0, atol=TOLERANCE)
    # A trace of prepared weights would hold copies of them.
    encoder.get_parameter("neck.0.weight").neg_()
    torch.testing.assert_close(traced(images), reference(encoder, images), rtol=0, atol=TOLERANCE)


@pytest.mark.slow
def test_compiles_the_modules(
    encoder: TinyVitImageEncoder, images: Tensor, prepared: list[InferenceEncoder]
) -> None:
    compiled = torch.compile(encoder, backend="eager", fullgraph=True)
    found = compiled(images)
    torch.testing.assert_close(found, reference(encoder, images), rtol=0, atol=TOLERANCE)
    assert not prepared
    torch.testing.assert_close(found, encoder(images), rtol=0, atol=TOLERANCE)
    assert prepared


def test_replicas_of_data_parallel(encoder: TinyVitImageEncoder, images: Tensor) -> None:
    before = encoder(images)
    replica = encoder._replicate_for_data_parallel()
    assert "_is_replica" in vars(replica)
    assert not replica._may_run_prepared(images)
    assert torch.equal(encoder(images), before)
