"""ResShift: schedule tables, algebraic identities, oracle denoisers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pathorestore.diffusion.resshift import ResShift
from pathorestore.diffusion.sampling import sample, sample_deterministic, trajectory


def _pair():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 2, 3, 4, 4, generator=generator, dtype=torch.float64)


def _noise(seed=0, shape=(2, 3, 4, 4)):
    return lambda step: torch.randn(shape, generator=torch.Generator().manual_seed(100 * seed + step), dtype=torch.float64)


def test_the_four_step_schedule_is_the_published_one():
    """ResShift, 4-step configuration: kappa 2, min_noise 0.2, p 0.3, last sqrt(eta) 0.99; numbers recomputed from the formula."""
    process = ResShift()
    close = {"abs": 1e-6}
    assert process.sqrt_eta[1:].tolist() == pytest.approx([0.1, 0.520096, 0.761382, 0.99], **close)
    assert process.eta[1:].tolist() == pytest.approx([0.01, 0.2705, 0.579703, 0.9801], **close)
    assert process.alpha[1:].tolist() == pytest.approx([0.01, 0.2605, 0.309202, 0.400397], **close)
    steps = torch.arange(1, 5)
    ones, zeros = torch.ones(4, 1, 1, 1, dtype=torch.float64), torch.zeros(4, 1, 1, 1, dtype=torch.float64)
    assert process.posterior(ones, zeros, steps).mean.flatten().tolist() == pytest.approx([0, 0.036969, 0.466619, 0.591473], **close)
    assert process.posterior(zeros, ones, steps).mean.flatten().tolist() == pytest.approx([1, 0.963031, 0.533381, 0.408527], **close)
    assert process.posterior(ones, zeros, steps).variance.flatten().tolist() == pytest.approx([0, 0.038521, 0.577119, 0.947297], **close)
    assert process.kl_weight(steps).tolist() == pytest.approx([12.979846, 12.037893, 0.246479, 0.088090], rel=1e-5)
    assert (1 / process.scale_input(ones, steps)).flatten().tolist() == pytest.approx([1.6, 4.120578, 5.568292, 6.94], **close)
    latent = ResShift(input_scale="latent")
    assert (1 / latent.scale_input(ones, steps)).flatten().tolist() == pytest.approx([1.019804, 1.442914, 1.82176, 2.218197], **close)


def test_the_fifteen_step_schedule_is_the_published_one():
    sqrt_eta = ResShift(steps=15, min_noise=0.04).sqrt_eta
    assert sqrt_eta[1:4].tolist() == pytest.approx([0.02, 0.117165, 0.176305], abs=1e-6)
    assert sqrt_eta[-2:].tolist() == pytest.approx([0.908606, 0.99], abs=1e-6)


def test_the_deterministic_coefficients_are_sinsrs():
    process, steps = ResShift(), torch.arange(1, 5)
    one, zero = torch.ones(4, 1, 1, 1, dtype=torch.float64), torch.zeros(4, 1, 1, 1, dtype=torch.float64)
    k = process.deterministic_step(zero, one, zero, steps).flatten().tolist()
    m = process.deterministic_step(one, zero, zero, steps).flatten().tolist()
    j = process.deterministic_step(zero, zero, one, steps).flatten().tolist()
    assert k == pytest.approx([1, 0.849738, 0.442397, 0.404993], abs=1e-6)
    assert m == pytest.approx([0, 0.192272, 0.683095, 0.769073], abs=1e-6)
    assert j == pytest.approx([0, -0.042010, -0.125492, -0.174066], abs=1e-6)


processes = st.builds(
    ResShift,
    steps=st.integers(2, 15),
    kappa=st.floats(0.3, 3),
    min_noise=st.floats(0.02, 0.3),
    power=st.floats(0.2, 2),
    last_sqrt_eta=st.floats(0.6, 1),
)


@given(process=processes)
def test_alphas_add_up_to_the_last_eta_and_posterior_weights_to_one(process):
    assert float(process.alpha.sum()) == pytest.approx(float(process.eta[-1]), rel=1e-12)
    steps = torch.arange(1, process.steps + 1)
    ones = torch.ones(process.steps, 1, 1, 1, dtype=torch.float64)
    assert torch.allclose(process.posterior(ones, ones, steps).mean, ones, atol=1e-12)


@given(process=processes)
def test_posterior_of_marginal_is_the_previous_marginal(process):
    """Closure: E over x_t ~ q(x_t|x_0) of q(x_{t-1}|x_t,x_0) has the mean and variance of q(x_{t-1}|x_0)."""
    clean, degraded = _pair()
    for step in range(2, process.steps + 1):
        t, before = torch.tensor([step, step]), torch.tensor([step - 1, step - 1])
        now, previous = process.marginal(clean, degraded, t), process.marginal(clean, degraded, before)
        posterior = process.posterior(now.mean, clean, t)
        keep = process.posterior(torch.ones_like(clean), torch.zeros_like(clean), t).mean[:, :1, :1, :1]
        assert torch.allclose(posterior.mean, previous.mean, atol=1e-12)
        assert torch.allclose(keep**2 * now.variance + posterior.variance, previous.variance, atol=1e-12)


@given(process=processes)
def test_transition_carries_one_marginal_into_the_next(process):
    clean, degraded = _pair()
    for step in range(2, process.steps + 1):
        t, before = torch.tensor([step, step]), torch.tensor([step - 1, step - 1])
        previous, now = process.marginal(clean, degraded, before), process.marginal(clean, degraded, t)
        moved = process.transition(previous.mean, clean, degraded, t)
        assert torch.allclose(moved.mean, now.mean, atol=1e-12)
        assert torch.allclose(previous.variance + moved.variance, now.variance, atol=1e-12)


@given(process=processes)
def test_the_deterministic_step_keeps_the_noise_of_the_marginal(process):
    clean, degraded = _pair()
    noise = _noise()(0)
    for step in range(2, process.steps + 1):
        t, before = torch.tensor([step, step]), torch.tensor([step - 1, step - 1])
        now, previous = process.marginal(clean, degraded, t), process.marginal(clean, degraded, before)
        state = now.mean + now.variance.sqrt() * noise
        expected = previous.mean + previous.variance.sqrt() * noise
        assert torch.allclose(process.deterministic_step(state, clean, degraded, t), expected, atol=1e-10)


@pytest.mark.parametrize("sampler", [sample, sample_deterministic])
@pytest.mark.parametrize("steps", [1, 2, 4, 15])
def test_a_denoiser_that_knows_the_truth_returns_it_exactly(sampler, steps):
    clean, degraded = _pair()
    restored = sampler(lambda state, t: clean, ResShift(steps=steps), degraded, _noise())
    assert torch.allclose(restored, clean, atol=1e-14, rtol=0)


def test_the_network_is_asked_at_its_training_steps_in_descending_order():
    asked = []

    def denoise(state, t):
        asked.append(int(t[0]))
        return state

    degraded = _pair()[1]
    list(trajectory(denoise, ResShift(), degraded, _noise()))
    list(trajectory(denoise, ResShift().shortened(2), degraded, _noise()))
    list(trajectory(denoise, ResShift().shortened(1), degraded, _noise()))
    assert asked == [4, 3, 2, 1, 4, 2, 4]


def test_a_shortened_chain_has_the_marginals_of_the_steps_it_keeps():
    full, short = ResShift(), ResShift().shortened(2)
    assert short.sqrt_eta.tolist() == pytest.approx(full.sqrt_eta[[0, 2, 4]].tolist(), rel=1e-12)
    assert ResShift().shortened(4).sqrt_eta.tolist() == pytest.approx(full.sqrt_eta.tolist(), rel=1e-12)


@pytest.mark.parametrize("steps", [0, 5])
def test_a_chain_cannot_be_shortened_beyond_its_ends(steps):
    with pytest.raises(ValueError, match="between 1 and the 4"):
        ResShift().shortened(steps)


@pytest.mark.parametrize(
    "change", [{"steps": 0}, {"kappa": 0.0}, {"last_sqrt_eta": 1.5}, {"power": -1.0}, {"kept": (1, 2)}, {"kept": (4, 3, 2, 1)}]
)
def test_impossible_processes_are_refused(change):
    with pytest.raises(ValueError, match="got"):
        ResShift(**change)
