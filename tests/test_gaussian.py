"""Gaussian diffusion from its definition: schedule, steps, samplers; and tiles of a step."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pathorestore._torchvision import ensure_torchvision
from pathorestore.diffusion.gaussian import GaussianDiffusion, sample
from pathorestore.diffusion.tiled import blended, gaussian_weights, stride

PROCESS = GaussianDiffusion()


def by_hand():
    """The product of 1 - beta over 1000 betas of the published schedule, in plain Python."""
    kept, product = [], 1.0
    for t in range(1000):
        root = 0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) * t / 999
        product *= 1 - root**2
        kept.append(product)
    return kept


@pytest.fixture
def diffusers():
    ensure_torchvision()
    return pytest.importorskip("diffusers", reason="the extra `diffusion`")


@pytest.fixture
def states(generator):
    """A state and a predicted noise."""
    return (torch.randn(1, 4, 6, 5, dtype=torch.float64, generator=generator) for _ in range(2))


def test_the_schedule_is_that_of_stable_diffusion():
    assert torch.allclose(PROCESS.kept, torch.tensor(by_hand(), dtype=torch.float64), rtol=1e-12)
    # what is left of an image's power at the end, as published: sqrt(a_T) = 0.0682
    assert float(PROCESS.kept[-1]) ** 0.5 == pytest.approx(0.0682, abs=1e-4)


def test_fifty_steps_are_evenly_rounded_from_999_to_0():
    ladder = PROCESS.ladder(50)
    assert ladder[:4] == (999, 979, 958, 938)
    assert ladder[-3:] == (41, 20, 0)
    assert ladder == tuple(round(999 * index / 49) for index in reversed(range(50)))
    assert PROCESS.ladder(1000) == tuple(range(999, -1, -1))
    assert PROCESS.ladder(1) == (999,)


@pytest.mark.parametrize("steps", [0, 1001])
def test_a_ladder_beyond_the_process_is_refused(steps):
    with pytest.raises(ValueError, match="between 1 and the 1000"):
        PROCESS.ladder(steps)


def test_a_step_is_the_posterior_of_the_respaced_chain(states):
    state, predicted = states
    kept = by_hand()
    before, now = kept[958], kept[979]
    beta = 1 - now / before
    clean = (state - (1 - now) ** 0.5 * predicted) / now**0.5
    mean = before**0.5 * beta / (1 - now) * clean + (now / before) ** 0.5 * (1 - before) / (1 - now) * state
    found = PROCESS.posterior(state, PROCESS.clean(state, predicted, 979), 979, 958)
    assert torch.allclose(found.mean, mean, atol=1e-6, rtol=0)
    assert float(found.variance) == pytest.approx((1 - before) / (1 - now) * beta, abs=1e-6)


def test_steps_and_states_are_those_of_diffusers_scheduler(diffusers, states):
    scheduler = diffusers.DDPMScheduler(
        1000, 0.00085, 0.012, "scaled_linear", timestep_spacing="linspace", variance_type="fixed_small", clip_sample=False
    )
    scheduler.set_timesteps(50)
    assert tuple(scheduler.timesteps.tolist()) == PROCESS.ladder(50)
    state, predicted = states
    theirs = scheduler.step(predicted, 979, state, generator=torch.Generator().manual_seed(3)).prev_sample
    noise = torch.randn(state.shape, dtype=state.dtype, generator=torch.Generator().manual_seed(3))
    ours = PROCESS.posterior(state, PROCESS.clean(state, predicted, 979), 979, 958)
    assert torch.allclose(ours.mean + ours.variance.sqrt() * noise, theirs, atol=1e-5)


def test_noised_states_have_the_share_of_noise_of_their_own_step(generator):
    clean, noise = torch.ones(2, 4, 3, 3), torch.randn(2, 4, 3, 3, generator=generator)
    made = PROCESS.noised(clean, torch.tensor([0, 999]), noise)
    for row, t in enumerate((0, 999)):
        assert torch.allclose(made[row], by_hand()[t] ** 0.5 + (1 - by_hand()[t]) ** 0.5 * noise[row], atol=1e-6)
        assert torch.allclose(PROCESS.clean(made[row], noise[row], t), clean[row], atol=1e-5)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm++"])
@pytest.mark.parametrize("steps", [1, 4, 50])
def test_a_denoiser_that_knows_the_clean_state_is_led_to_it(sampler, steps, generator, diffusers):
    clean = torch.randn(1, 4, 5, 5, dtype=torch.float64, generator=generator)

    def predict(state, t):
        kept = float(PROCESS.kept[t])
        return (state - kept**0.5 * clean) / (1 - kept) ** 0.5

    start = torch.randn(1, 4, 5, 5, dtype=torch.float64, generator=generator)
    reached = sample(predict, PROCESS, start, lambda step: torch.randn_like(start), sampler=sampler, steps=steps)
    assert torch.allclose(reached, clean, atol=1e-4)


# of data N(0, s^2) the best prediction is known: the state times sqrt(1 - a) / (a s^2 + 1 - a); with many steps chains give s again
@pytest.mark.parametrize(("sampler", "steps", "within"), [("ddpm", 400, 0.02), ("ddim", 200, 0.01), ("dpm++", 100, 0.01)])
def test_samples_of_gaussian_data_have_its_deviation(sampler, steps, within, generator, diffusers):
    def predict(state, t):
        kept = float(PROCESS.kept[t])
        return (1 - kept) ** 0.5 / (kept * 0.5**2 + 1 - kept) * state

    def draw(step=0):
        return torch.randn(1, 1, 200, 200, generator=generator)

    reached = sample(predict, PROCESS, draw(), draw, sampler=sampler, steps=steps)
    assert float(reached.std()) == pytest.approx(0.5, abs=within)


def test_ddpm_asks_for_the_noise_of_every_step_that_it_goes_to_once_but_the_last():
    asked, told = [], []

    def noise(step):
        asked.append(step)
        return torch.zeros(1, 1, 2, 2)

    sample(lambda state, t: state, PROCESS, torch.ones(1, 1, 2, 2), noise, steps=5, progress=lambda done, total: told.append((done, total)))
    assert asked == [749, 500, 250, 0]
    assert told == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        ({"sampler": "euler"}, r"one of ddpm, ddim, dpm\+\+; got 'euler'"),
        ({"sampler": "dpm++", "steps": 1000}, "at most 999"),
        ({"steps": 0}, "1000"),
    ],
)
def test_samplers_that_cannot_be_are_refused(wish, says):
    with pytest.raises(ValueError, match=says):
        sample(lambda state, t: state, PROCESS, torch.ones(1, 1, 2, 2), torch.zeros, **wish)


@pytest.mark.parametrize("change", [{"steps": 1}, {"first_beta": 0.0}, {"first_beta": 0.1, "last_beta": 0.01}, {"last_beta": 1.0}])
def test_processes_that_are_none_are_refused(change):
    with pytest.raises(ValueError, match="0 < first_beta <= last_beta < 1"):
        GaussianDiffusion(**change)


# exp(-(u - mid)^2 / (n^2 2 0.01)) for n = 64
def test_the_weights_of_a_tile_are_the_published_gaussian():
    weights = gaussian_weights(64)
    assert torch.equal(weights, weights.flip(0))
    assert float(weights[0]) == pytest.approx(2.718281828459045 ** (-(31.5**2) / (64**2 * 2 * 0.01)), rel=1e-5)


@given(height=st.integers(1, 50), width=st.integers(1, 50), half=st.integers(1, 12), times=st.sampled_from([1, 3]))
def test_what_tiles_agree_on_is_what_is_blended(height, width, half, times):
    field = torch.arange(height * width, dtype=torch.float32).reshape(1, 1, height, width)
    seen = []

    def make(rows, columns):
        seen.append((rows.start, columns.start))
        assert rows.stop - rows.start <= 2 * half
        return field[..., rows, columns].repeat_interleave(times, 2).repeat_interleave(times, 3)

    whole = blended(make, (height, width), 2 * half)
    assert torch.allclose(whole, field.repeat_interleave(times, 2).repeat_interleave(times, 3), rtol=1e-5)
    starts = [*range(0, max(1, height - 2 * half + 1), half)]
    assert {y for y, _ in seen} == {*starts, max(0, height - 2 * half)}
    assert stride(2 * half) == half


@given(height=st.integers(1, 60), width=st.integers(1, 60), half=st.integers(4, 12), overlap=st.integers(1, 6))
def test_tiles_with_less_overlap_start_where_the_others_do(height, width, half, overlap):
    field = torch.arange(height * width, dtype=torch.float32).reshape(1, 1, height, width)
    seen = []

    def make(rows, columns):
        seen.append(rows)
        return field[..., rows, columns]

    assert torch.allclose(blended(make, (height, width), 2 * half, overlap=overlap), field, rtol=1e-5)
    if height > 2 * half:
        side = min(2 * half, half + overlap)
        assert {rows.stop - rows.start for rows in seen} == {side}
        assert {rows.start for rows in seen} == {*range(0, height - side + 1, half), height - side}
    else:
        assert all(rows == slice(0, height) for rows in seen)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("t", [0, 37, 500, 999])
def test_what_is_predicted_tells_the_noise_and_the_clean_state(prediction, t, generator):
    """Diffusers' scheduler defines the velocity."""
    from diffusers import DDPMScheduler

    process = GaussianDiffusion(prediction=prediction)
    clean, noise = (torch.randn(2, 4, 5, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    steps = torch.full((2,), t)
    state, said = process.noised(clean, steps, noise), process.target(clean, noise, steps)
    assert torch.allclose(process.noise_in(state, said, t), noise, atol=1e-9)
    assert torch.allclose(process.clean(state, process.noise_in(state, said, t), t), clean, atol=1e-6)
    theirs = DDPMScheduler(1000, 0.00085, 0.012, "scaled_linear")
    expected = noise if prediction == "epsilon" else theirs.get_velocity(clean, noise, steps)
    assert torch.allclose(said, expected, atol=1e-5)


def test_an_unknown_prediction_is_refused():
    with pytest.raises(ValueError, match="prediction must be one of epsilon, v_prediction; got 'sample'"):
        GaussianDiffusion(prediction="sample")
