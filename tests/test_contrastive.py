"""The contrastive encoder: losses against their definitions, degradations against their vector, batches against their plan."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pathorestore.data.batches import PairBatch, SharpBatch
from pathorestore.degradations.blind import degrade_blind, summary
from pathorestore.degradations.composed import FAULTS, Composed, Theta
from pathorestore.degradations.stain import SYNTHETIC_STAINS, synthetic_stain
from pathorestore.functional.noise import stream
from pathorestore.losses import domain_lean, info_nce, supervised_contrast
from pathorestore.models.contrastive import ContrastiveEncoder, ContrastiveEncoderConfig
from pathorestore.models.encoders import PathologyEncoder
from pathorestore.training import ContrastiveStage, contrastive_stage
from pathorestore.training.contrastive_stage import Contrast
from pathorestore.training.export import describe


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1)


def batch(keys=(5, 6, 7), size=40, seed=0):
    sharp = F.avg_pool2d(torch.rand(len(keys), 3, size + 2, size + 2, generator=torch.Generator().manual_seed(seed)), 3, 1)
    return SharpBatch(sharp, torch.tensor(keys), torch.zeros(len(keys), dtype=torch.long))


def made(seed=0, **contrast):
    torch.manual_seed(0)
    encoder = ContrastiveEncoder(ContrastiveEncoderConfig.nano())
    stage = ContrastiveStage(encoder, contrast=Contrast(view_px=32, **contrast), seed=seed)
    stage.log_dict = lambda *_, **__: None
    return stage


@pytest.mark.parametrize("further", [0, 3])
def test_info_nce_is_minus_the_log_of_the_chance_of_the_right_key(further):
    query, key, negatives = unit(4, 6), unit(4, 6, seed=1), unit(3, 6, seed=2)
    loss = info_nce(query, key, temperature=0.2, negatives=negatives if further else None)
    total = 0.0
    for i in range(4):
        against = [*key, *(negatives if further else ())]
        weights = [math.exp(float(query[i] @ other) / 0.2) for other in against]
        total -= math.log(weights[i] / sum(weights)) / 4
    assert loss.item() == pytest.approx(total, abs=1e-12)


def test_supervised_contrast_is_equation_two_of_its_paper():
    vector, label = unit(7, 5), torch.tensor([0, 1, 0, 2, 1, 0, 3])
    total, anchors = 0.0, 0
    for i in range(7):
        alike = [j for j in range(7) if j != i and label[j] == label[i]]
        if not alike:
            continue
        others = sum(math.exp(float(vector[i] @ vector[j]) / 0.3) for j in range(7) if j != i)
        total -= sum(math.log(math.exp(float(vector[i] @ vector[j]) / 0.3) / others) for j in alike) / len(alike)
        anchors += 1
    loss = supervised_contrast(vector, label, temperature=0.3)
    assert loss.item() == pytest.approx(total / anchors, abs=1e-12)
    order = torch.tensor([3, 0, 6, 2, 5, 1, 4])
    assert supervised_contrast(vector[order], label[order], temperature=0.3).item() == pytest.approx(loss.item(), abs=1e-12)
    with pytest.raises(ValueError, match="no two of the 3 vectors"):
        supervised_contrast(vector[:3], torch.arange(3), temperature=0.3)


def test_lean_is_half_the_squared_distance_of_means_without_bias():
    mean = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    distances = [9.0, 16.0, 25.0]
    exact = domain_lean(mean.repeat(2, 1), torch.arange(3).repeat(2), torch.arange(6))
    # sampled vectors have one mean, and a spread that adds nothing on average
    found = [
        domain_lean(mean[label] + torch.randn(24, 2, generator=stream(seed)).double(), label, torch.arange(24)).item()
        for seed in range(300)
        for label in [torch.arange(24) % 3]
    ]
    assert exact.item() == pytest.approx(sum(distances) / 3 / 2)
    assert sum(found) / len(found) == pytest.approx(exact.item(), rel=0.03)


def test_lean_sees_no_pairs_of_a_group_and_none_where_there_is_one_domain():
    vector, domain = unit(6, 4), torch.tensor([0, 0, 0, 1, 1, 1])
    moved = torch.cat([vector, 5 * vector[:1]])
    with_twin = domain_lean(moved, torch.cat([domain, domain[:1]]), torch.tensor([0, 1, 2, 3, 4, 5, 0]))
    likeness = moved @ moved.T
    own = (2 * (likeness[0, 1] + likeness[0, 2] + likeness[1, 2] + likeness[6, 1] + likeness[6, 2])) / 10
    theirs = (likeness[3, 4] + likeness[3, 5] + likeness[4, 5]) / 3
    across = torch.stack([likeness[i, j] for i in (0, 1, 2, 6) for j in (3, 4, 5)]).mean()
    assert with_twin.item() == pytest.approx(((own + theirs) / 2 - across).item())
    assert domain_lean(vector, torch.zeros(6, dtype=torch.long), torch.arange(6)).item() == 0


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_alone_moves_its_own_entries_of_the_vector_alone(fault):
    image = batch(size=48).sharp
    told = degrade_blind(image, Composed.only(fault), generator=stream(3))
    vector = Theta.of(told.parameters).normalised()
    own = {"blur": [0, 1], "downscale": [2], "noise": [3], "jpeg": [4]}[fault]
    assert (vector[:, own] > 0).all()
    assert not vector[:, [i for i in range(5) if i not in own]].any()
    assert told.image.shape == image.shape
    assert (told.image - image).abs().mean() > 1e-3


def test_an_unknown_fault_is_refused():
    with pytest.raises(ValueError, match="expected one of blur, downscale, noise, jpeg"):
        Composed.only("dust")


def test_identity_leaves_the_image():
    image = batch().sharp
    told = degrade_blind(image, Composed(identity_probability=1.0), generator=stream(1))
    assert torch.equal(told.image, image)
    assert not Theta.of(told.parameters).normalised().any()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31))
def test_the_vector_of_a_plan_comes_back(seed):
    recipe = Composed.any() if seed % 2 else Composed.wide()
    plan = recipe.plan((64, 64), stream(seed))
    theta = Theta.of([summary(plan, (64, 64))])
    vector = theta.normalised()
    assert (vector >= 0).all()
    # a grid of whole pixels lets the scale end a little beyond its range
    assert (vector <= (1.02 if seed % 2 else 2.0)).all()
    for before, after in zip(theta, Theta.from_normalised(vector), strict=True):
        assert torch.allclose(before, after, rtol=1e-5, atol=1e-6)


def test_a_vector_of_another_length_is_refused():
    with pytest.raises(ValueError, match="expected a vector n 5; got"):
        Theta.from_normalised(torch.zeros(2, 4))


def test_every_patch_meets_every_degradation_with_noise_of_its_own():
    stage = made(faults=2, alone=1)
    views = stage.views(batch())
    assert views.image.shape == (9, 3, 32, 32)
    assert views.patch.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert views.fault.view(3, 3)[:, :2].tolist() == [[0, 1]] * 3
    assert len(set(views.fault.view(3, 3)[:, 2].tolist()) - {0, 1}) == 3
    for number in range(2):
        assert (views.theta[views.fault == number] == views.theta[number]).all()
    assert len({tuple(row) for row in views.theta.tolist()}) > 1
    again = stage.views(batch())
    assert torch.equal(views.image, again.image)
    assert not torch.equal(views.image, made(seed=1, faults=2, alone=1).views(batch()).image)
    # noise alone, on two patches that are the same grey: what they share is its level, not its grain
    noisy = ContrastiveStage(stage.contrastive, recipe=Composed.only("noise"), contrast=Contrast(view_px=32, faults=2, alone=0))
    grey = SharpBatch(torch.full((2, 3, 40, 40), 0.5), torch.tensor([1, 2]), torch.zeros(2, dtype=torch.long))
    grain = noisy.views(grey).image
    grain = grain - grain.mean((2, 3), keepdim=True)
    assert torch.allclose(grain[0].std(), grain[2].std(), rtol=0.1)
    assert (grain[0] * grain[2]).mean().abs() < 0.1 * grain[0].var()


def test_views_are_the_same_under_half_precision():
    stage = made()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        views = stage.views(batch())
    assert views.image.dtype == torch.float32
    assert torch.equal(views.image, stage.views(batch()).image)


def test_stain_pairs_are_seen_in_turns():
    stage = ContrastiveStage(
        made().contrastive, recipe=Composed(identity_probability=1.0), contrast=Contrast(view_px=40, faults=3, alone=1)
    )
    stage._view = lambda image, generator: (image, 2)
    first, second = torch.zeros(2, 3, 40, 40), torch.ones(2, 3, 40, 40)
    views = stage.views(PairBatch(first, second, torch.zeros(2), torch.zeros(2), torch.tensor([1, 2])))
    assert views.image.mean((1, 2, 3)).tolist() == [0, 1] * 4
    assert views.stain.tolist() == [4, 5] * 4


def test_a_crop_smaller_than_a_view_is_refused():
    with pytest.raises(ValueError, match=r"crops of \(24, 24\) px are smaller than view_px=32"):
        made().views(batch(size=24))


def test_views_tell_their_synthetic_stain(monkeypatch):
    monkeypatch.setattr(contrastive_stage, "_PLAIN_SHARE", 1.0)
    stage = made(faults=2, alone=8)
    stage.recipe = Composed(identity_probability=1.0)
    given = batch(size=32)
    views = stage.views(given)
    # turned and mirrored, but of one mean
    stains = [given.sharp, *(synthetic_stain(given.sharp, stain) for stain in SYNTHETIC_STAINS)]
    mean = torch.stack(stains).mean((3, 4))
    assert torch.allclose(views.image.mean((2, 3)), mean[views.stain, views.patch], atol=1e-5)
    assert set(views.stain.tolist()) == {0, 1, 2, 3}


def test_whitened_contents_vary_alike_and_follow_what_they_are():
    stage = made()
    mixed = torch.randn(4000, 8, generator=stream(1)) @ torch.randn(8, 8, generator=stream(2)) + 3
    for _ in range(400):
        stage._follow(mixed)
    assert torch.allclose(stage.covariance, mixed.T.cov(), rtol=0.02, atol=1e-3)
    spread = stage._whitened(mixed).T.cov()
    assert (spread - spread.diagonal().diag()).abs().max() < 1e-2
    strong = spread.diagonal() > 0.5  # against empty directions stands the ridge
    assert strong.sum() >= 5
    assert spread.diagonal().max() < 1.001


def test_the_loss_is_both_contrasts_the_regression_and_the_lean():
    stage = made(degradation_weight=0.5, theta_weight=2.0, stain_weight=3.0).eval()
    loss = stage.training_step(batch(), 0)
    views = stage.views(batch())
    told = stage.contrastive(views.image)
    expected = supervised_contrast(told.content, views.patch, temperature=0.1)
    expected = expected + 0.5 * supervised_contrast(told.degradation, views.fault, temperature=0.1)
    expected = expected + 2 * F.smooth_l1_loss(told.theta, views.theta)
    assert torch.allclose(loss, expected + 3 * domain_lean(stage._whitened(told.content), views.stain, views.patch))
    loss.backward()
    assert all(parameter.grad is not None for parameter in stage.contrastive.parameters())


def test_a_queue_holds_the_newest_keys_and_its_encoder_follows_slowly():
    stage = made(queue=5, momentum=0.75, degradation_weight=0.0, theta_weight=0.0)
    before = stage.queue.clone()
    keys = stage.keys(stage.views(batch()).image[1::6]).content
    told = stage.contrastive(stage.views(batch()).image).content[::6]
    assert torch.allclose(stage.training_step(batch(), 0), info_nce(told, keys, temperature=0.1, negatives=before))
    assert torch.allclose(stage.queue, torch.cat([keys, before])[:5])
    own = [parameter.clone() for parameter in stage.keys.parameters()]
    with torch.no_grad():
        for parameter in stage.contrastive.parameters():
            parameter.add_(1.0)
    stage.on_train_batch_end()
    for was, now in zip(own, stage.keys.parameters(), strict=True):
        assert torch.allclose(now, was + 0.25, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in stage.keys.parameters())
    assert describe(stage)["parts"].keys() == {"contrastive"}


@pytest.mark.parametrize(
    ("change", "told"), [({"faults": 1}, "faults >= 2"), ({"temperature": 0.0}, "temperature > 0"), ({"queue": -1}, "queue")]
)
def test_contrasts_that_cannot_be_are_refused(change, told):
    with pytest.raises(ValueError, match=told):
        Contrast(**change)


def test_the_encoder_gives_unit_vectors_image_by_image_and_comes_back(tmp_path):
    torch.manual_seed(1)
    encoder = ContrastiveEncoder(ContrastiveEncoderConfig.nano()).eval()
    image = torch.rand(3, 3, 48, 32)
    told = encoder(image)
    assert told.tokens.shape == (3, 6, 16)
    for vector in (told.content, told.degradation):
        assert torch.allclose(vector.norm(dim=1), torch.ones(3), atol=1e-6)
    assert torch.allclose(encoder(image[1:2]).content, told.content[1:2], atol=1e-6)
    assert torch.equal(encoder.estimate(image).noise_std, Theta.from_normalised(told.theta).noise_std)
    assert isinstance(encoder.trunk, PathologyEncoder)
    encoder.save_pretrained(tmp_path)
    assert torch.equal(ContrastiveEncoder.from_pretrained(tmp_path)(image).content, told.content)


def test_an_image_of_one_token_has_gradients_that_are_finite():
    encoder = ContrastiveEncoder(ContrastiveEncoderConfig.nano())
    encoder(torch.rand(2, 3, 16, 16)).content.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in encoder.parameters() if parameter.grad is not None)
