"""What every kernel that does a whole step on a GPU has to show through the mixers and models that use it."""

import torch

from quatrain.infer._decoder import Decoder
from quatrain.mixers import mixer_class


def check_mixer(kind, kernel, rtol):
    """In float32 steps are the same sums as a forward pass in another order; a step is one kernel."""
    torch.manual_seed(0)
    mixer = mixer_class(kind)(width=96).cuda()
    x = torch.randn(3, 7, 96, device="cuda")
    with torch.no_grad():
        want, last = mixer(x)
        state = mixer.initial_state(3)
        for t in range(7):
            y, state = mixer.step(x[:, t], state)
            torch.testing.assert_close(y, want[:, t], rtol=rtol, atol=1e-5)
        for a, b in zip(state, last, strict=True):
            torch.testing.assert_close(a, b, rtol=rtol, atol=1e-5)
        torch.use_deterministic_algorithms(False)  # or empty memory is filled, by kernels of its own
        activity = [torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activity) as trace:
            mixer.step(x[:, 0], state)
            torch.cuda.synchronize()
    kernels = [e.name for e in trace.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    assert [name for name in kernels if "emcpy" not in name] == [kernel]


def check_model(model, batch):
    """A decoder and the model's own steps say what its forward pass does."""
    tokens = torch.randint(0, model.config.vocab, (batch, 9), device=model.device)
    dtype = next(model.parameters()).dtype
    with torch.no_grad():
        want, _ = model(tokens)
        decoder, state = Decoder(model, model.initial_state(batch)), model.initial_state(batch)
        for t in range(9):
            stepped, state = model.step(tokens[:, t], state)
            for got in (decoder(tokens[:, t]), stepped):
                worst = (got - want[:, t]).abs().max() / want[:, t].abs().max()
                assert worst < max(8 * torch.finfo(dtype).eps, 2e-5)  # a forward pass rounds more between
