"""What the callbacks promise: budgets end runs, averages are what they say, nothing non-finite gets through, records are true."""

import hashlib
import json
import math
import signal
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from small_stage import SmallStage, crops, fit, loader, same, trainer, weights
from torch.utils.data import default_collate

from pathorestore.data.batches import PairBatch, SharpBatch
from pathorestore.training import budget as budget_module
from pathorestore.training import record as record_module
from pathorestore.training.average import ExponentialAverage
from pathorestore.training.budget import WallClockBudget
from pathorestore.training.guard import StopOnNonFinite, load_saved_batch, save_batch
from pathorestore.training.record import TrainingRecord, default_logger


class Clock:
    """Stands for the time module: every look costs `tick_s`."""

    def __init__(self, tick_s=1.0):
        self.now_s, self.tick_s = 0.0, tick_s

    def monotonic(self):
        self.now_s += self.tick_s
        return self.now_s


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(budget_module, "time", made)
    return made


# budget


@pytest.mark.parametrize("limits", [{"max_steps": 8}, {"max_epochs": 2}, {"max_steps": 8, "max_epochs": 5}])
def test_progress_without_a_budget_is_the_share_of_the_steps(tmp_path, limits):
    stage = SmallStage()
    fit(stage, tmp_path, callbacks=[WallClockBudget()], **({"max_steps": -1} | limits))
    assert [(step, progress) for step, progress, _ in stage.seen] == [(step, step / 8) for step in range(8)]


def test_progress_counts_optimiser_steps_while_gradients_accumulate(tmp_path):
    stage = SmallStage()
    fit(stage, tmp_path, callbacks=[WallClockBudget()], max_epochs=2, max_steps=-1, accumulate_grad_batches=2)
    assert [progress for _, progress, _ in stage.seen] == [0, 0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75]


def test_progress_is_the_largest_share_and_a_spent_budget_ends_the_run(tmp_path, clock):
    clock.tick_s = 6.0
    stage, budget = SmallStage(), WallClockBudget(minutes=1.0)
    running = fit(stage, tmp_path, callbacks=[budget], max_steps=1000)
    shares = [progress for _, progress, _ in stage.seen]
    assert shares == sorted(shares)
    assert all(share >= step / 1000 for step, share, _ in stage.seen)
    assert shares[-1] == 1.0
    assert 60 <= budget.spent_s < 60 + 3 * clock.tick_s
    assert running.global_step == len(stage.seen) < 20
    assert "val_mse" in running.callback_metrics  # the last weights were validated


def test_a_run_whose_budget_was_spent_before_trains_no_further(tmp_path, clock):
    stage, budget = SmallStage(), WallClockBudget(minutes=1.0)
    budget.load_state_dict({"spent_s": 60.0})
    before = weights(stage)
    fit(stage, tmp_path, callbacks=[budget], max_steps=100)
    assert stage.seen == []
    assert same(weights(stage), before)


def test_the_time_of_earlier_runs_counts(clock):
    budget = WallClockBudget(minutes=1.0)
    budget.load_state_dict({"spent_s": 30.0})
    assert budget.state_dict() == {"spent_s": 30.0}
    stage = SmallStage()
    running = SimpleNamespace(world_size=1, max_steps=-1, max_epochs=-1, estimated_stepping_batches=math.inf, current_epoch=0)
    budget.on_train_start(running, stage)
    assert stage.progress == pytest.approx(31 / 60)
    budget.on_train_end(running, stage)
    assert budget.spent_s == budget.spent_s > 30  # the clock stands still


def test_all_processes_share_the_first_ones_clock_and_stop_together(monkeypatch):
    wire = []

    def process(rank, tick_s):
        def broadcast(value, src):
            wire.extend([value] if rank == src else [])
            return wire[-1]

        running = SimpleNamespace(world_size=2, max_steps=-1, max_epochs=-1, estimated_stepping_batches=math.inf, current_epoch=0)
        running.strategy, running.should_stop = SimpleNamespace(broadcast=broadcast), False
        return running, WallClockBudget(minutes=1.0, share_every=4), SmallStage(), Clock(tick_s)

    processes = [process(0, 6.0), process(1, 50.0)]  # the second clock alone would stop at once
    stopped, shares = [], []
    for look in range(60):
        for running, budget, stage, clock in processes:
            monkeypatch.setattr(budget_module, "time", clock)
            if look == 0:
                budget.on_train_start(running, stage)
            else:
                budget.on_train_batch_start(running, stage, None, look)
        shares.append([stage.progress for _, _, stage, _ in processes])
        stopped.append([running.should_stop for running, *_ in processes])
    assert all(first == second for first, second in shares)
    assert all(first == second for first, second in stopped)
    assert stopped[-1] == [True, True]
    assert 1 < len(wire) <= 60 / 4  # one message in four looks


def test_a_run_that_nothing_ends_is_warned_of(tmp_path):
    with pytest.warns(UserWarning, match="nothing says when this run ends"):
        fit(SmallStage(), tmp_path, callbacks=[WallClockBudget(), _StopAfter(2)], max_steps=-1, max_epochs=-1)


@pytest.mark.parametrize(("minutes", "share_every"), [(0.0, 10), (-1.0, 10), (1.0, 0)])
def test_impossible_budgets_are_refused(minutes, share_every):
    with pytest.raises(ValueError, match=r"must be .* got"):
        WallClockBudget(minutes, share_every)


class _StopAfter(pl.Callback):
    """Ends a run, as a killed one ends: between two steps."""

    def __init__(self, steps):
        self.steps = steps

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.should_stop |= trainer.global_step >= self.steps


# average


class _Watch(pl.Callback):
    """Notes the weights that validation, test and prediction use; may interrupt a validation."""

    def __init__(self, error=None, save_to=None):
        self.seen, self.error, self.save_to = [], error, save_to

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        self.seen.append(weights(pl_module))
        if self.save_to:
            trainer.save_checkpoint(self.save_to)
        if self.error:
            raise self.error

    on_test_batch_end = on_predict_batch_end = on_validation_batch_end


def test_the_average_follows_its_formula_in_every_step(tmp_path):
    stage, average = SmallStage(), ExponentialAverage(0.6)
    fit(stage, tmp_path, callbacks=[average], max_steps=12)
    lives = [*stage.lives, weights(stage)]
    expected = lives[0]
    for n, live in enumerate(lives[1:]):
        decay = min(0.6, (1 + n) / (10 + n))
        expected = {name: decay * expected[name] + (1 - decay) * live[name] for name in live}
    assert average.average.keys() == expected.keys()
    for name, kept in average.average.items():
        torch.testing.assert_close(kept, expected[name], rtol=1e-5, atol=1e-6)


def test_the_average_moves_once_per_optimiser_step(tmp_path):
    average = ExponentialAverage()
    fit(SmallStage(), tmp_path, callbacks=[average], max_epochs=1, max_steps=-1, accumulate_grad_batches=2)
    assert average.state_dict()["updates"] == 2  # four batches


def test_the_average_holds_what_is_trained_and_neither_frozen_weights_nor_buffers(tmp_path):
    stage, average = SmallStage(), ExponentialAverage()
    fit(stage, tmp_path, callbacks=[average])
    assert set(average.average) == {name for name, _ in stage.coarse.named_parameters(prefix="coarse")}


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_validation_test_and_prediction_see_the_average_and_training_does_not(tmp_path, verb):
    stage, average, watch = SmallStage(), ExponentialAverage(0.5), _Watch()
    running = fit(stage, tmp_path, callbacks=[average, watch])
    live, statistics = weights(stage), stage.coarse[1].running_mean.clone()
    assert same(watch.seen[-1], average.average)
    assert not same(average.average, live)
    watch.seen.clear()
    getattr(running, verb)(stage, loader())
    assert watch.seen
    assert all(same(seen, average.average) for seen in watch.seen)
    assert same(weights(stage), live)
    assert torch.equal(stage.coarse[1].running_mean, statistics)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("the disk is full")])
def test_an_interrupted_validation_leaves_the_live_weights(tmp_path, error):
    handler = signal.getsignal(signal.SIGINT)
    stage, average = SmallStage(), ExponentialAverage(0.5)
    try:
        with pytest.raises((SystemExit, RuntimeError)):
            fit(stage, tmp_path, callbacks=[average, _Watch(error)], max_steps=4)
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning ignores Ctrl-C from here on
    last = {name: parameter.grad for name, parameter in stage.named_parameters() if parameter.requires_grad}
    assert last
    assert not same(weights(stage), average.average)
    assert same(weights(stage), _after_four_steps(tmp_path))


def _after_four_steps(folder):
    stage = SmallStage()
    fit(stage, folder, max_steps=4)
    return weights(stage)


def test_an_interruption_in_the_middle_of_the_exchange_is_undone():
    stage, average = SmallStage(), ExponentialAverage()
    live = weights(stage)
    average.load_state_dict({"average": {name: tensor + 1 for name, tensor in live.items()}, "updates": 1})
    average.average["coarse.2.weight"] = torch.zeros(7)  # a shape that does not fit: the copying breaks off there
    with pytest.raises(RuntimeError):
        average.on_validation_start(None, stage)
    assert not same(weights(stage), live)
    average.on_exception(None, stage, RuntimeError())
    assert same(weights(stage), live)


@pytest.mark.parametrize("when", ["during", "after"])
def test_checkpoints_hold_live_weights_and_the_average_whenever_they_are_written(tmp_path, when):
    path = tmp_path / "x.ckpt"
    callbacks = [average := ExponentialAverage(0.5), _Watch(save_to=path if when == "during" else None)]
    keep = ModelCheckpoint(tmp_path, filename="x", monitor="val_mse", save_top_k=1, enable_version_counter=False)
    stage = SmallStage()
    fit(stage, tmp_path, callbacks=[keep, *callbacks] if when == "after" else callbacks, enable_checkpointing=when == "after")
    stored = torch.load(path, weights_only=True)
    live = weights(stage)
    assert same({name: stored["state_dict"][name] for name in live}, live)
    assert same(stored["callbacks"]["ExponentialAverage"]["average"], average.average)


def test_a_checkpoint_is_validated_by_its_average(tmp_path):
    average = ExponentialAverage(0.5)
    fit(SmallStage(), tmp_path, callbacks=[average]).save_checkpoint(tmp_path / "x.ckpt")
    fresh, watch = SmallStage(), _Watch()
    trainer(tmp_path, callbacks=[ExponentialAverage(0.5), watch]).validate(fresh, loader(), ckpt_path=tmp_path / "x.ckpt")
    assert same(watch.seen[0], average.average)


def test_the_average_of_bfloat16_weights_is_kept_in_float32(tmp_path):
    stage, average = SmallStage(), ExponentialAverage(0.999)
    fit(stage, tmp_path, callbacks=[average], precision="bf16-true", max_steps=6)
    assert {tensor.dtype for tensor in average.average.values()} == {torch.float32}
    assert {parameter.dtype for parameter in stage.coarse.parameters()} == {torch.bfloat16}
    # a value that bfloat16 cannot hold shows that no rounding took place
    assert not torch.equal(average.average["coarse.0.weight"], average.average["coarse.0.weight"].bfloat16().float())


def test_a_run_that_was_killed_and_resumed_equals_one_that_was_not(tmp_path):
    def callbacks():
        return [WallClockBudget(), ExponentialAverage(0.9), StopOnNonFinite(), TrainingRecord()]

    whole, whole_average = SmallStage(), callbacks()
    fit(whole, tmp_path / "whole", callbacks=whole_average, max_steps=16)
    # killed after two epochs: the length of the schedule is that of the whole run
    first = SmallStage()
    killed = fit(first, tmp_path / "parts", callbacks=[*callbacks(), _StopAfter(8)], max_steps=16)
    killed.save_checkpoint(tmp_path / "killed.ckpt")
    second, average = SmallStage(), callbacks()
    fit(second, tmp_path / "parts", callbacks=average, max_steps=16, ckpt_path=tmp_path / "killed.ckpt")
    assert first.seen + second.seen == whole.seen
    assert same(weights(second), weights(whole))
    assert same(average[1].average, whole_average[1].average)
    assert average[3].facts["images_seen"] == whole_average[3].facts["images_seen"] == 32


def test_a_decay_outside_its_range_is_refused():
    with pytest.raises(ValueError, match="decay must be"):
        ExponentialAverage(1.0)


# guard


def test_a_loss_that_is_not_finite_stops_before_it_reaches_the_weights_and_its_batch_is_kept(tmp_path):
    stage = SmallStage(break_at=2)
    with pytest.raises(FloatingPointError, match=r"loss became nan at step 2.*learning rate.*gradient_clip_val.*32-true") as caught:
        fit(stage, tmp_path, callbacks=[StopOnNonFinite()])
    path = tmp_path / "nonfinite" / "step_000002_rank0.safetensors"
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert same(weights(stage), stage.lives[-1])
    saved = load_saved_batch(path)
    expected = default_collate(crops()[4:6])
    assert isinstance(saved.batch, SharpBatch)
    assert all(torch.equal(kept, given) for kept, given in zip(saved.batch, expected, strict=True))
    facts = saved.facts
    assert (facts["step"], facts["epoch"], facts["rank"], facts["keys"], facts["loss"]) == (2, 0, 0, [4, 5], "nan")
    assert facts["precision"] == "32-true"
    assert facts["learning_rate"] == pytest.approx([0.01])
    json.loads(path.with_suffix(".json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_a_kept_batch_can_be_replayed(tmp_path):
    stage = SmallStage(break_at=1, broken=lambda loss: loss / 0)
    with pytest.raises(FloatingPointError, match="became inf"):
        fit(stage, tmp_path, callbacks=[StopOnNonFinite()])
    saved = load_saved_batch(next((tmp_path / "nonfinite").glob("*.json")))
    again = SmallStage()
    again.load_state_dict(stage.state_dict())
    assert torch.isfinite(again.training_step(saved.batch, 0))  # the fault was in the stage, which a replay shows


def test_gradients_that_are_not_finite_stop_before_the_optimiser(tmp_path):
    # the root of zero: a finite loss, an infinite slope
    stage = SmallStage(break_at=3, broken=lambda loss: loss + (loss - loss.detach()).abs().sqrt())
    with pytest.raises(FloatingPointError, match=r"gradients became NaN or infinite in coarse\.0\.weight.* at step 3"):
        fit(stage, tmp_path, callbacks=[StopOnNonFinite()])
    assert same(weights(stage), stage.lives[-1])
    facts = load_saved_batch(tmp_path / "nonfinite" / "step_000003_rank0.safetensors").facts
    assert "coarse.0.weight" in facts["gradients"]
    assert math.isfinite(float(facts["loss"]))


def test_the_loss_is_told_as_it_was_before_accumulation_divided_it(tmp_path):
    stage = SmallStage(break_at=0, broken=lambda loss: 0 * loss + 3.0 + (loss - loss.detach()).abs().sqrt())
    with pytest.raises(FloatingPointError):
        fit(stage, tmp_path, callbacks=[StopOnNonFinite()], accumulate_grad_batches=2)
    assert load_saved_batch(next((tmp_path / "nonfinite").glob("*.safetensors"))).facts["loss"] == "3"


def test_a_batch_that_is_broken_itself_is_named_and_unknown_labels_are_not_blamed(tmp_path):
    guard = StopOnNonFinite()
    running, stage = _process(tmp_path, rank=0, world_size=1)
    guard.setup(running, stage, "fit")
    unknown = torch.full((2,), float("nan"))
    for broken, blamed in ((0.5, "lower the learning rate"), (float("nan"), "NaN or infinite values in degraded")):
        degraded = torch.full((2, 3, 8, 8), broken)
        batch = PairBatch(degraded, torch.zeros(2, 3, 8, 8), unknown, unknown, torch.tensor([7, 8]))
        guard.on_train_batch_start(running, stage, batch, 0)
        with pytest.raises(FloatingPointError, match=blamed):
            guard.on_before_backward(running, stage, torch.tensor(float("nan")))


def _process(folder, *, rank, world_size, others=False):
    """A trainer as one of several processes sees it. others: whether another process failed."""
    running = SimpleNamespace(
        log_dir=str(folder),
        default_root_dir=str(folder),
        global_step=5,
        current_epoch=1,
        global_rank=rank,
        world_size=world_size,
        accumulate_grad_batches=1,
        precision="32-true",
        precision_plugin=SimpleNamespace(scaler=None),
        optimizers=[],
        strategy=SimpleNamespace(reduce_boolean_decision=lambda mine, all: mine or others),
    )
    return running, SmallStage()


def test_only_the_process_that_sees_the_failure_writes_and_all_stop_at_the_same_step(tmp_path):
    batch = default_collate(crops()[:2])
    seeing, other = StopOnNonFinite(), StopOnNonFinite()
    sees, stage = _process(tmp_path, rank=1, world_size=2)
    meets, same_stage = _process(tmp_path, rank=0, world_size=2, others=True)
    optimizer = torch.optim.SGD(stage.parameters())
    for guard, running in ((seeing, sees), (other, meets)):
        guard.setup(running, stage, "fit")
        guard.on_train_batch_start(running, stage, batch, 0)
    seeing.on_before_backward(sees, stage, torch.tensor(float("nan")))  # no error yet: the other waits in the backward pass
    other.on_before_backward(meets, same_stage, torch.tensor(1.0))
    with pytest.raises(FloatingPointError, match="step_000005_rank1"):
        seeing.on_before_optimizer_step(sees, stage, optimizer)
    with pytest.raises(FloatingPointError, match="another process"):
        other.on_before_optimizer_step(meets, same_stage, optimizer)
    assert sorted(path.name for path in (tmp_path / "nonfinite").iterdir()) == ["step_000005_rank1.json", "step_000005_rank1.safetensors"]


@pytest.mark.parametrize(("scale", "stops"), [(1024.0, False), (1.0, True)])
def test_infinite_gradients_are_left_to_a_scaler_while_it_has_scale(tmp_path, scale, stops):
    guard = StopOnNonFinite()
    running, stage = _process(tmp_path, rank=0, world_size=1)
    running.precision_plugin.scaler = SimpleNamespace(get_scale=lambda: scale)
    guard.setup(running, stage, "fit")
    guard.on_train_batch_start(running, stage, default_collate(crops()[:2]), 0)
    stage.coarse[0].weight.grad = torch.full_like(stage.coarse[0].weight, float("inf"))
    optimizer = torch.optim.SGD(stage.coarse.parameters())
    if not stops:
        guard.on_before_optimizer_step(running, stage, optimizer)
        return
    with pytest.raises(FloatingPointError):
        guard.on_before_optimizer_step(running, stage, optimizer)


def test_a_failure_is_told_even_if_its_batch_cannot_be_saved(tmp_path):
    (tmp_path / "nonfinite").write_text("a file where the folder should be")
    with pytest.raises(FloatingPointError, match=r"loss became nan.*could not be saved"):
        fit(SmallStage(break_at=0), tmp_path, callbacks=[StopOnNonFinite()])


@pytest.mark.parametrize(
    "batch",
    [
        torch.rand(2, 3),
        {"image": torch.rand(2, 3), "nested": {"z": torch.arange(2)}},
        [torch.rand(2), torch.ones(1, dtype=torch.bfloat16)],
        PairBatch(*torch.rand(4, 2), torch.arange(2)),
    ],
)
def test_batches_of_any_kind_survive_the_round_trip(tmp_path, batch):
    save_batch(tmp_path / "b.safetensors", batch, {"step": 1})
    saved = load_saved_batch(tmp_path / "b.safetensors")
    assert saved.facts["step"] == 1
    if isinstance(batch, torch.Tensor):
        assert torch.equal(saved.batch, batch)
    elif isinstance(batch, PairBatch):
        assert isinstance(saved.batch, PairBatch)
        assert all(map(torch.equal, saved.batch, batch))
    elif isinstance(batch, dict):
        assert torch.equal(saved.batch["image"], batch["image"])
        assert torch.equal(saved.batch["nested.z"], batch["nested"]["z"])
    else:
        assert torch.equal(saved.batch["1"], batch[1])


def test_a_kept_batch_that_is_damaged_is_told_in_one_line(tmp_path):
    save_batch(tmp_path / "b.safetensors", torch.rand(2), {})
    (tmp_path / "b.json").unlink()
    with pytest.raises(ValueError, match=r"b\.json cannot be read"):
        load_saved_batch(tmp_path / "b.safetensors")
    (tmp_path / "b.safetensors").write_bytes(b"\x80\x04")
    with pytest.raises(ValueError, match="refuse to unpickle"):
        load_saved_batch(tmp_path / "b.safetensors")


# record


def test_the_record_says_what_a_model_card_needs_and_stands_in_checkpoint_and_log_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(record_module.sys, "argv", ["/somewhere/bin/pathorestore", "fit", "--config", "my file.yaml"])
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    manifest = tmp_path / "tiles.csv"
    manifest.write_text("path\na.png\n")
    stage, record = SmallStage(), TrainingRecord()
    stage.simulation = SimpleNamespace(seed=5)

    class Data(pl.LightningDataModule):
        def __init__(self):
            super().__init__()
            self.manifest, self.seed = manifest, 4

        def train_dataloader(self):
            return loader()

        def val_dataloader(self):
            return loader()

    running = trainer(tmp_path, callbacks=[record], accumulate_grad_batches=2, max_steps=2)
    running.fit(stage, datamodule=Data())
    running.save_checkpoint(tmp_path / "x.ckpt")
    facts = torch.load(tmp_path / "x.ckpt", weights_only=True)["callbacks"]["TrainingRecord"]
    assert facts == json.loads((tmp_path / "training_record.json").read_text())
    expected = {
        "stage": "SmallStage",
        "trained": ["coarse"],
        "commands": ["pathorestore fit --config 'my file.yaml'"],
        "seeds": {"weights": 3, "data": 4, "simulation": 5},
        "steps": 2,
        "images_seen": 8,
        "batch": 2,
        "accumulate": 2,
        "processes": 1,
        "runs": 1,
        "precision": "32-true",
        "torch": str(torch.__version__),
        "manifest": {"name": "tiles.csv", "sha256": hashlib.sha256(manifest.read_bytes()).hexdigest()},
        "validation_step": 2,
    }
    assert {name: facts[name] for name in expected} == expected
    assert facts["validation"]["val_mse"] == pytest.approx(float(running.callback_metrics["val_mse"]))
    assert f"{torch.get_num_threads()} thread" in facts["machine"]
    assert facts["peak_memory_gib"] > 0
    assert facts["commit"] is None or len(facts["commit"].removesuffix("+changes")) == 40


def test_a_resumed_run_adds_to_its_record(tmp_path, clock):
    fit(SmallStage(), tmp_path, callbacks=[TrainingRecord()], max_steps=4).save_checkpoint(tmp_path / "x.ckpt")
    before = json.loads((tmp_path / "training_record.json").read_text())
    fit(SmallStage(), tmp_path, callbacks=[TrainingRecord()], max_steps=8, ckpt_path=tmp_path / "x.ckpt")
    after = json.loads((tmp_path / "training_record.json").read_text())
    assert (before["steps"], before["images_seen"], before["runs"]) == (4, 8, 1)
    assert (after["steps"], after["images_seen"], after["runs"]) == (8, 16, 2)
    assert after["minutes"] > before["minutes"] > 0
    assert after["commands"] == before["commands"]  # the same command, told once


def test_an_interrupted_run_leaves_its_record(tmp_path):
    with pytest.raises(FloatingPointError):
        fit(SmallStage(break_at=3), tmp_path, callbacks=[TrainingRecord(), StopOnNonFinite()])
    assert json.loads((tmp_path / "training_record.json").read_text())["steps"] == 3


def test_figures_that_are_not_finite_stay_readable_json(tmp_path):
    class Broken(SmallStage):
        def validation_step(self, batch, batch_idx):
            self.log("val_gain", torch.tensor(float("inf")), batch_size=2)

    fit(Broken(), tmp_path, callbacks=[TrainingRecord()])
    text = (tmp_path / "training_record.json").read_text()
    assert json.loads(text, parse_constant=lambda name: pytest.fail(name))["validation"] == {"val_gain": "inf"}


def test_a_package_below_a_strangers_repository_reports_no_commit(tmp_path, monkeypatch):
    record_module._git(tmp_path, "init", "--quiet")
    monkeypatch.setattr(record_module, "_SOURCE", tmp_path / "version.py")
    assert record_module._commit() is None
    monkeypatch.setenv("PATH", "")
    assert record_module._commit() is None


# loggers


def test_the_default_loggers_share_one_folder_that_is_new_for_every_run(tmp_path):
    for version in range(2):
        loggers = default_logger(tmp_path)
        running = fit(SmallStage(), tmp_path, logger=loggers)
        folder = tmp_path / "logs" / f"version_{version}"
        assert running.log_dir == str(folder)
        assert (folder / "metrics.csv").is_file()
        assert list((folder / "tensorboard").glob("events*"))


def test_without_tensorboard_figures_go_to_the_table_and_a_line_says_so(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(record_module.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(record_module, "rank_zero_info", told.append)
    (table,) = default_logger(tmp_path, "x")
    assert table.log_dir == str(tmp_path / "x" / "version_0")
    assert len(told) == 1
    assert "pip install" in told[0]


def test_a_killed_run_has_every_row_that_it_logged(tmp_path):
    table = default_logger(tmp_path)[0]
    table.log_metrics({"loss": 1.0}, step=7)
    assert "7" in (tmp_path / "logs" / "version_0" / "metrics.csv").read_text()
