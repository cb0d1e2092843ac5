"""The ablations change one thing a row, give every row the same, and say what came out."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tissue_files import save, tissue
from torch import nn

from pathorestore.data.batches import PairBatch
from pathorestore.data.manifest import Row as ManifestRow
from pathorestore.data.manifest import write_manifest
from pathorestore.metrics.segmenters import Watershed
from pathorestore.metrics.statistics import Interval
from pathorestore.models.encoders import TimmEncoder
from pathorestore.models.pformer import PFormer, PFormerConfig
from pathorestore.models.prompts import Prompts
from pathorestore.training import ablation, ablation_rows, ablation_training
from pathorestore.training.ablation import Ablation, run_ablation, validation_scenes
from pathorestore.training.ablation_record import Ledger, RowRecord, lines_of, markdown, per_image
from pathorestore.training.ablation_rows import Bench, RouterStage
from pathorestore.training.ablation_tables import KINDS, encoder_row, measure_estimate, measure_fine, table_of
from pathorestore.training.ablation_training import StepTimer, phase_steps, steps_for
from pathorestore.training.prompt_stages import DefocusStage
from pathorestore.training.recipe import read_recipe
from pathorestore.training.restoration_stages import PFormerStage

NAMES = {
    "router": ["Restormer", "F", "P_D", "P_LP", "P_P", "F+P_D", "F+P_LP", "F+P_P", "F+P_D+P_LP", "F+P_D+P_P"],
    "prompts": ["none", "P_P", "P_LE", "P_E", "P_P+P_E"],
    "estimator": ["CTF", "distance", "both"],
    "encoder": ["tiny", "tiny-random"],
}


def small_recipe(name):
    """The recipe with networks and crops of a test's size."""
    recipe = read_recipe(name)
    model = json.loads(json.dumps(recipe.model))  # a deep copy; lists for tuples do not matter to these sizes
    if name.startswith("pformer"):
        model["coarse"]["init_args"]["config"] |= {"dim": 8, "blocks": (1, 1, 1, 1), "heads": (1, 2, 4, 8)}
    if name.startswith("pdiffusion"):
        model["fine"]["init_args"]["config"]["unet"] |= {"mult": (1,), "channels": 16}
        model["chain"]["repeats"] = 1
    return replace(recipe, model=model, batch_size=2, workers=0, crops=replace(recipe.crops, crop_px=32, margin_px=8, zoom=(1.0,)))


@pytest.fixture
def bench():
    return Bench(preset="tiny", parts="embedded", seed=3)


@pytest.fixture(scope="session")
def manifest(tmp_path_factory):
    """Three training images and four validation images of two patients."""
    folder = tmp_path_factory.mktemp("tissue")
    rows = []
    for index in range(7):
        save(folder / f"{index}.png", tissue(index, 72, 80))
        split, patient = ("train", f"t{index}") if index < 3 else ("val", f"v{index // 2}")
        rows.append(ManifestRow(path=f"{index}.png", patient=patient, split=split))
    write_manifest(folder / "manifest.csv", rows)
    return folder / "manifest.csv"


@pytest.fixture
def options(manifest, tmp_path, monkeypatch):
    """Options of a run of seconds, by kind and whatever else is asked for."""
    monkeypatch.setattr(ablation_rows, "read_recipe", small_recipe)

    def make(kind, **more):
        budget = {} if "minutes" in more else {"steps": 2}
        return Ablation(**{"kind": kind, "manifest": manifest, "out": tmp_path / kind, "images": 2, "crop_px": 64, **budget, **more})

    return make


def silent(line):
    del line


def stage_of(table, name, bench):
    (row,) = table.chosen([name])
    return next(row.phases(bench)).stage


# --- rows -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_table_has_the_paper_s_rows_and_its_reference_among_them(kind):
    table = table_of(kind)
    assert [row.name for row in table.rows] == NAMES[kind]
    assert table.reference in NAMES[kind]
    assert [row.name for row in table.chosen(NAMES[kind][:0:-1])] == NAMES[kind][1:]


def test_routers_are_as_wide_as_what_they_see(bench):
    seen = {"F": (0, True), "P_D": (128, False), "P_LP": (192, False), "P_P": (192, False), "F+P_D": (128, True), "F+P_LP": (192, True)}
    seen |= {"F+P_P": (192, True), "F+P_D+P_LP": (320, True), "F+P_D+P_P": (320, True)}
    for name, (width, features) in seen.items():
        coarse = stage_of(table_of("router"), name, bench).coarse
        assert (coarse.config.prompt_dim, coarse.config.route_features) == (width, features), name
        layer = coarse.expert_layers()[0]
        assert layer.router.in_features == width + features * layer.hidden


def test_rows_differ_in_their_routers_alone_and_start_alike(bench):
    table = table_of("router")
    reference = stage_of(table, "F+P_P", bench).coarse.state_dict()
    for name in NAMES["router"][1:]:
        for key, value in stage_of(table, name, bench).coarse.state_dict().items():
            alike = value.shape == reference[key].shape
            assert alike or key.endswith("router.weight"), (name, key)
            assert not alike or torch.equal(value, reference[key]), (name, key)


def test_the_restormer_has_the_p_former_s_width_and_depth_and_its_start_where_shapes_agree(bench):
    restormer, reference = (stage_of(table_of("router"), name, bench).coarse for name in ("Restormer", "F+P_P"))
    for field in ("dim", "blocks", "refinement", "heads", "gamma", "hidden_multiple", "hint_channels"):
        assert getattr(restormer.config, field) == getattr(reference.config, field)
    ours, theirs = restormer.state_dict(), reference.state_dict()
    shared = [key for key in ours if key in theirs and ours[key].shape == theirs[key].shape]
    assert len(shared) > len(ours) / 2
    assert all(torch.equal(ours[key], theirs[key]) for key in shared)


def test_another_seed_starts_elsewhere_and_the_same_seed_here():
    def first(seed):
        return stage_of(table_of("router"), "F", Bench(preset="tiny", parts="embedded", seed=seed)).coarse.patch_embed["proj"].weight

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


def prompts(seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    return Prompts(draw(2, 192), draw(2, 16, 8, 8), draw(2), draw(2), draw(2, 0, 32, 32), draw(2, 128).abs(), draw(2, 192))


@pytest.mark.parametrize("name", NAMES["router"][1:])
def test_a_router_that_does_not_see_a_vector_is_bit_equal_whatever_it_is(bench, name):
    stage = stage_of(table_of("router"), name, bench)
    nn.init.normal_(stage.coarse.output.weight, std=0.1)
    image, given = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)), prompts()

    def restored(told):
        with torch.no_grad():
            return stage.coarse(image, stage.guide(told))

    for vector, field in ablation_rows.VECTORS.items():
        changed = given._replace(**{field: getattr(prompts(seed=1), field)})
        assert torch.equal(restored(given), restored(changed)) == (vector not in name.split("+")), vector


def test_the_reference_row_is_the_package_s_own_p_former(bench):
    stage, given = stage_of(table_of("router"), "F+P_P", bench), prompts()
    assert torch.equal(stage.guide(given), PFormerStage.guide(stage, given))
    assert stage.coarse.config == PFormerConfig.tiny()


def test_several_vectors_weigh_alike_whatever_their_scale(bench):
    stage, given = stage_of(table_of("router"), "F+P_D+P_P", bench), prompts()
    guide = stage.guide(given)
    for part in guide.split([128, 192], dim=1):
        assert part.mean(dim=1).abs().max() < 1e-5
        assert part.var(dim=1, correction=0) == pytest.approx(torch.ones(2), abs=1e-3)
    louder = stage.guide(given._replace(defocus=50 * given.defocus + 7))
    assert louder == pytest.approx(guide, abs=1e-3)


def test_the_fine_stage_is_told_what_its_row_says_and_zeros_otherwise(bench):
    given = prompts()
    for name in NAMES["prompts"]:
        stage = stage_of(table_of("prompts"), name, bench)
        told = stage.told(given)
        assert told.pathology.any() == ("P_P" in name), name
        assert told.edge.any() == (name != "none" and name != "P_P"), name
        assert told._replace(pathology=given.pathology, edge=given.edge) == given
        assert stage.prompter.edge.config.weighted == (name != "P_LE")


def test_fine_stages_start_alike_and_always_from_the_coarse_image(bench):
    stages = [stage_of(table_of("prompts"), name, bench) for name in NAMES["prompts"]]
    first = stages[-1]
    for stage in stages:
        for ours, theirs in ((stage.fine, first.fine), (stage.prompter.edge, first.prompter.edge)):
            own, other = ours.state_dict(), theirs.state_dict()
            assert all(torch.equal(own[key], other[key]) for key in own)
        assert (stage.chain.degraded_share, stage.chain.prompt_dropout) == (0, 0)
        assert not any(parameter.requires_grad for parameter in stage.coarse.parameters())


def test_the_estimator_s_rows_differ_in_their_losses_alone(bench):
    stages = {name: stage_of(table_of("estimator"), name, bench) for name in NAMES["estimator"]}
    weights = {name: (stage.distance_weight, stage.ctf_weight) for name, stage in stages.items()}
    assert weights == {"CTF": (0, 1), "distance": (1, 0), "both": (1, 1)}
    initial = [stage.defocus.state_dict() for stage in stages.values()]
    assert all(torch.equal(one[key], initial[0][key]) for one in initial for key in one)


def test_an_untrained_encoder_differs_from_the_trained_one_in_its_weights_alone(bench):
    (trained, untrained) = (next(row.phases(bench)).stage for row in table_of("encoder").rows)
    assert trained.encoder.config == untrained.encoder.config
    assert not torch.equal(trained.encoder.norm.weight, untrained.encoder.norm.weight)
    ours, theirs = trained.pathology.state_dict(), untrained.pathology.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_an_encoder_row_hands_its_trained_prompt_to_the_coarse_stage(bench):
    phases = table_of("encoder").rows[0].phases(bench)
    prompt = next(phases).stage.pathology
    nn.init.constant_(prompt.out_proj.bias, 0.25)
    second = next(phases).stage
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    told = second.prompter(image)
    assert told.pathology == pytest.approx(told.degraded_pathology + 0.25, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_heaviest_row_is_one_that_takes_the_most(kind, bench):
    heaviest = max(table_of(kind).rows, key=lambda row: row.effort(bench)).name
    assert heaviest == {"router": "Restormer", "prompts": "P_P+P_E", "estimator": "CTF", "encoder": "tiny"}[kind]


# --- recipes --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ablation.PRESETS)
def test_every_preset_says_how_each_stage_trains(preset):
    import yaml

    for stage in ("pformer", "pdiffusion", "defocus", "pathology"):
        recipe = read_recipe(f"{stage}_{preset}")
        text = yaml.safe_load((Path(ablation_rows.__file__).parents[1] / "configs" / f"{stage}_{preset}.yaml").read_text())
        optimizer = recipe.optimizer([nn.Parameter(torch.zeros(1))])
        assert optimizer.param_groups[0]["lr"] == text["model"]["init_args"]["optimizer"]["init_args"]["lr"]
        assert recipe.crops.crop_px == text["data"]["init_args"]["crops"]["crop_px"]
        assert (recipe.batch_size, recipe.average_decay) == (text["data"]["init_args"]["batch_size"], text["average"]["decay"])
        assert recipe.stage_options(5)["simulation"].seed == 5


def test_all_stages_of_the_larger_preset_can_be_built(monkeypatch):
    def without_memory(self, make, like=None):
        with torch.device("meta"):
            return make()

    monkeypatch.setattr(Bench, "fresh", without_memory)
    bench = Bench(preset="base", parts="embedded", seed=0)
    for kind, name in (("router", "F+P_D+P_P"), ("prompts", "P_P+P_E"), ("estimator", "both"), ("encoder", "tiny")):
        assert stage_of(table_of(kind), name, bench).trained


# --- runs -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_of_two_steps_writes_a_table_of_all_rows(kind, options):
    run = options(kind)
    path = run_ablation(run, say=silent)
    assert path == run.folder / f"{kind}.md"
    text, content = path.read_text(), json.loads(path.with_suffix(".json").read_text())
    assert [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| ")] == [
        "| row",
        "| ---",
        *(f"| {n}" for n in NAMES[kind]),
    ]
    assert [row["name"] for row in content["rows"]] == NAMES[kind]
    table = table_of(kind)
    for row in content["rows"]:
        assert (row["differences"] == {}) == (row["name"] == table.reference)
        assert set(row["figures"]) == {figure.name for figure in table.figures}
        assert row["parameters"] > 0
        assert row["paper (not reproduced here)"]
    assert "paper (not reproduced here)" in text
    assert len({line.count("|") for line in text.splitlines() if line.startswith("| ")}) == 1
    assert "Short runs do not decide" in text
    assert f"ablate {kind} --manifest {run.manifest}" in text
    assert "steps of each row: 2" in text
    known = [row for row in content["rows"] if row["figures"][table.figures[0].name]["mean"] is not None]
    assert len(known) == len(NAMES[kind]) - (kind == "estimator")


def test_a_finished_row_is_used_again_and_stands_in_the_table_of_a_later_run(options, monkeypatch):
    run_ablation(options("estimator", rows=("distance",)), say=silent)
    record = options("estimator").folder / "rows" / "distance" / "row.json"
    before = record.read_bytes()
    trained, measured = [], []
    train, measure = ablation_training.Workshop.train, ablation.measured
    monkeypatch.setattr(
        ablation_training.Workshop, "train", lambda self, phase, **more: trained.append(phase) or train(self, phase, **more)
    )
    monkeypatch.setattr(ablation, "measured", lambda *given: measured.append(given) or measure(*given))
    path = run_ablation(options("estimator", rows=("both",)), say=silent)
    content = json.loads(path.with_suffix(".json").read_text())
    assert [row["name"] for row in content["rows"]] == ["distance", "both"]
    assert content["rows"][0]["differences"]["mae_um"]["mean"] == pytest.approx(
        content["rows"][0]["figures"]["mae_um"]["mean"] - content["rows"][1]["figures"]["mae_um"]["mean"]
    )
    run_ablation(options("estimator", rows=("distance", "both")), say=silent)
    assert len(trained) == len(measured) == 1
    assert record.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "said"),
    [({"steps": 3}, "steps=2, this run has steps=3"), ({"seed": 1}, "seed=0, this run has seed=1"), ({"images": 1}, "images=2"),
     ({"crop_px": 32}, "crop_px=64")],
)  # fmt: skip
def test_figures_made_otherwise_are_refused_before_anything_is_trained(options, monkeypatch, change, said):
    run_ablation(options("estimator", rows=("both",)), say=silent)
    monkeypatch.setattr(ablation_training.Workshop, "train", lambda *_, **__: pytest.fail("nothing should be trained"))
    with pytest.raises(ValueError, match=said) as refused:
        run_ablation(options("estimator", **change), say=silent)
    assert "name another --out, or delete that folder" in str(refused.value)


def figures_of(run, name):
    return Ledger(run.folder, {}).read(name).figures


@pytest.mark.parametrize(("kind", "name", "stop_at"), [("router", "F", 2), ("encoder", "tiny", 1), ("encoder", "tiny", 3)])
def test_an_interrupted_row_ends_as_one_that_was_not(options, monkeypatch, tmp_path, kind, name, stop_at):
    """The step that fails is counted over all trainings of the row: of the encoder's four, the first is the prompt's."""
    monkeypatch.setattr(ablation_training, "_CHECKPOINT_EVERY", 1)
    whole = options(kind, rows=(name,), steps=4, out=tmp_path / "whole")
    run_ablation(whole, say=silent)
    broken = options(kind, rows=(name,), steps=4, out=tmp_path / "broken")
    steps = []

    def stopping(usual):
        def training_step(self, batch, batch_idx):
            if len(steps) == stop_at:
                steps.append("stopped")
                raise KeyboardInterrupt
            steps.append(batch.key.tolist())
            return usual(self, batch, batch_idx)

        return training_step

    for cls in (PFormerStage, ablation_rows.PathologyPromptStage):
        monkeypatch.setattr(cls, "training_step", stopping(cls.training_step))
    with pytest.raises(KeyboardInterrupt):
        run_ablation(broken, say=silent)
    assert figures_of(broken, name) is None
    run_ablation(broken, say=silent)
    assert figures_of(broken, name) == figures_of(whole, name)
    assert len(steps) == 5  # none was taken twice


def test_an_interruption_leaves_the_table_of_the_rows_before(options, monkeypatch):
    usual = ablation_training.Workshop.train

    def stop_at_the_second(self, phase, *, folder, **more):
        if folder.name == "distance":
            raise KeyboardInterrupt
        return usual(self, phase, folder=folder, **more)

    monkeypatch.setattr(ablation_training.Workshop, "train", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        run_ablation(options("estimator"), say=silent)
    content = json.loads((options("estimator").folder / "estimator.json").read_text())
    assert [row["name"] for row in content["rows"]] == ["CTF"]
    text = (options("estimator").folder / "estimator.md").read_text()
    assert "the reference row both is not finished" in text


def test_all_rows_see_the_same_crops_put_out_of_focus_alike(options, monkeypatch):
    seen = []
    usual = RouterStage.training_step

    def spy(self, batch, batch_idx):
        pairs = self.pairs(batch)
        seen.append((batch.key.tolist(), pairs.degraded.double().sum().item()))
        return usual(self, batch, batch_idx)

    monkeypatch.setattr(RouterStage, "training_step", spy)
    run_ablation(options("router", rows=("F", "P_D", "F+P_P")), say=silent)
    assert len(seen) == 6
    assert seen[:2] == seen[2:4] == seen[4:]
    assert seen[0] != seen[1]


class Clock:
    """A clock that goes on by `seconds` whenever it is read."""

    def __init__(self, seconds):
        self.now, self.seconds, self.reads = 0.0, seconds, 0

    def __call__(self):
        self.now, self.reads = self.now + self.seconds, self.reads + 1
        return self.now


def test_minutes_become_as_many_steps_as_fit():
    assert steps_for(2.0, 0.5) == 240
    assert steps_for(1.0, 0.7) == 85
    assert steps_for(0.01, 100.0) == 1


def test_a_step_is_timed_after_the_first_ones():
    clock = iter([10.0, 100.0, 103.0, 106.0, 109.0])
    timer = StepTimer(lambda: next(clock), warm_up=2)
    for batch in range(5):
        timer.on_train_batch_end(None, SimpleNamespace(device=torch.device("cpu")), None, None, batch)
    assert timer.seconds == 3.0


def test_minutes_are_turned_into_steps_once_and_kept_by_later_runs(options):
    clock, said = Clock(2.0), []
    run_ablation(options("estimator", minutes=0.1, rows=("both",)), say=said.append, clock=clock)
    assert "both: 2.00 s a step, so 0.1 minutes a row are 3 steps" in said
    assert Ledger(options("estimator").folder, {}).read("both").settings["steps"] == 3
    run_ablation(options("estimator", minutes=0.1, rows=("CTF",)), say=silent, clock=Clock(math.nan))
    assert Ledger(options("estimator").folder, {}).read("CTF").settings["steps"] == 3


def test_a_row_of_two_trainings_shares_its_steps(bench):
    phases = table_of("encoder").rows[0].phases(bench)
    shares = [next(phases), next(phases)]
    assert sum(phase.share for phase in shares) == 1
    assert [phase_steps(phase, 400) for phase in shares] == [100, 300]
    assert [phase_steps(phase, 1) for phase in shares] == [1, 1]


def test_trained_parts_are_kept_for_use_elsewhere(options):
    run = options("router", rows=("F",))
    run_ablation(run, say=silent)
    kept = PFormer.from_pretrained(run.folder / "rows" / "F" / "coarse")
    assert kept.config.prompt_dim == 0
    assert not (run.folder / "rows" / "F" / "checkpoints").exists()


def test_what_is_measured_and_kept_is_the_average(options, monkeypatch):
    made = []

    class Watched(ablation_training.ExponentialAverage):
        def __init__(self, decay):
            super().__init__(decay)
            made.append(self)

    monkeypatch.setattr(ablation_training, "ExponentialAverage", Watched)
    live, usual = {}, ablation.measured

    def measured(table, stage, scenes):
        live.update(stage.coarse.state_dict())
        return usual(table, stage, scenes)

    monkeypatch.setattr(ablation, "measured", measured)
    run = options("router", rows=("F",), steps=3)
    run_ablation(run, say=silent)
    kept = PFormer.from_pretrained(run.folder / "rows" / "F" / "coarse").state_dict()
    for name, average in made[-1].average.items():
        key = name.removeprefix("coarse.")
        assert torch.equal(kept[key], average)
        assert torch.equal(live[key], average)


# --- measuring and telling ------------------------------------------------------------------------------------------------------------


def test_images_are_cut_around_their_centre_and_brought_to_one_pixel_size(tmp_path):
    pixels = tissue(0, 96, 96)
    save(tmp_path / "a.png", pixels)
    rows = [ManifestRow(path="a.png", split="val"), ManifestRow(path="a.png", split="val", mpp=0.125, slide="s", patient="p")]
    write_manifest(tmp_path / "m.csv", [*rows, ManifestRow(path="a.png", split="val", mpp=0.03)])
    plain, fine = validation_scenes(Ablation(kind="router", manifest=tmp_path / "m.csv", steps=1, crop_px=48))
    assert torch.equal(plain.sharp, torch.from_numpy(pixels[24:72, 24:72]).permute(2, 0, 1) / 255)
    assert fine.sharp.shape == (3, 48, 48)
    assert (plain.group, fine.group) == ("a.png", "p")
    halved = torch.nn.functional.avg_pool2d(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255, 2)[0]
    assert (fine.sharp - halved).abs().mean() < 0.02


def test_images_are_spread_over_the_manifest(tmp_path):
    save(tmp_path / "a.png", tissue(0, 40, 40))
    write_manifest(tmp_path / "m.csv", [ManifestRow(path="a.png", split="val", slide=str(index)) for index in range(10)])
    scenes = validation_scenes(Ablation(kind="router", manifest=tmp_path / "m.csv", steps=1, crop_px=32, images=5))
    assert [scene.group for scene in scenes] == ["0", "2", "4", "6", "8"]


def test_a_head_that_was_not_trained_has_no_figures(bench, nuclei_image):
    image = nuclei_image[..., :64, :64]
    pairs = PairBatch(image, image, torch.tensor([-1.0]), torch.tensor([0.5]), torch.tensor([0]))
    found = {}
    for name in NAMES["estimator"]:
        stage = stage_of(table_of("estimator"), name, bench).eval()
        for head, says in ((stage.defocus.fc, 0.3), (stage.defocus.fc2, 1.45)):
            nn.init.zeros_(head.weight)
            nn.init.constant_(head.bias, says)
        assert isinstance(stage, DefocusStage)
        with torch.no_grad():
            found[name] = measure_estimate(stage, pairs, None)
    ctf = {"mae_ctf": pytest.approx(0.2)}
    distance = {"mae_abs_um": pytest.approx(0.45), "mae_um": pytest.approx(0.45), "zacc_plane": 0.0, "zacc_half_um": 1.0}
    assert found == {"CTF": ctf, "distance": distance, "both": ctf | distance}


def test_what_the_fine_stage_loses_counts_against_it(nuclei_image):
    clean = nuclei_image[..., :64, :64]
    pairs = PairBatch(clean, clean, torch.tensor([1.0]), torch.tensor([0.5]), torch.tensor([0]))
    stage = SimpleNamespace(restore=lambda degraded, key: (0.5 * degraded, 0.25 * degraded))
    found = measure_fine(stage, pairs, Watershed())
    assert found["cost_db"] == pytest.approx(20 * math.log10(0.75 / 0.5), abs=0.05)
    assert found["l1_texture"] > 0
    assert found["l1_intensity"] > 0


def record(name, psnr, ssim=None):
    figures = {"psnr_db": psnr, "degraded_psnr_db": [[20.0, 22.0]] * 4} | ({} if ssim is None else {"ssim": ssim})
    images = [("a", "p"), ("b", "p"), ("c", "q"), ("d", "q")]
    return RowRecord(name=name, paper="9 / 9 / 9", settings={"steps": 7, "crop_px": 64}, images=images, figures=figures)


@pytest.fixture
def two_rows():
    """F is two dB behind the reference on patient p and level with it on q."""
    reference = record("F+P_P", [[30.0, 20.0], [31.0, 21.0], [26.0, 16.0], [27.0, 17.0]], [[0.5, 0.7]] * 4)
    return [record("F", [[29.0, 19.0], [28.0, 18.0], [26.0, 16.0], [27.0, 17.0]]), reference]


def test_the_table_averages_over_distances_and_pairs_rows_by_image(two_rows):
    first, second = lines_of(table_of("router"), reversed(two_rows))
    assert (first.record.name, second.record.name) == ("F", "F+P_P")
    assert second.figures["psnr_db"].mean == 23.5
    assert first.figures["psnr_db"].mean == 22.5
    # two patients: the resampled means are those of p alone, of both, of q alone
    assert first.differences["psnr_db"] == Interval(-1.0, -2.0, 0.0)
    assert second.figures["ssim"] == Interval(pytest.approx(0.6), pytest.approx(0.6), pytest.approx(0.6))
    assert second.differences == {}
    assert math.isnan(first.differences["ssim"].mean)


def test_the_table_is_written_as_it_was_reckoned(two_rows):
    text = markdown(table_of("router"), lines_of(table_of("router"), two_rows), {"steps": 7, "crop_px": 64}, {"seed": "0"})
    assert "| F | 22.50 [21.50, 23.50] | -1.00 [-2.00, +0.00] | - | - | 9 / 9 / 9 |" in text
    assert "| F+P_P | 23.50 [21.50, 25.50] | - | 0.6000 [0.6000, 0.6000] | - | 9 / 9 / 9 |" in text
    assert "4 validation images of 2 patients" in text
    assert "The degraded images themselves: 21.00 dB." in text
    assert "* seed: 0" in text


def test_distances_without_nuclei_are_left_out_of_an_image_s_mean():
    values = per_image(record("F", [[1.0, math.nan], [3.0, 5.0], [math.nan, math.nan], [0.0, 0.0]]), "psnr_db")
    assert values[:2].tolist() == [1.0, 4.0]
    assert values[2].isnan()


def test_a_record_comes_back_as_it_was_with_unknown_values(tmp_path):
    ledger = Ledger(tmp_path, {"steps": 7})
    ledger.write(record("F", [[1.0, math.nan]] * 4))
    back = ledger.read("F")
    assert str(back.figures["psnr_db"]) == str([[1.0, math.nan]] * 4)
    assert replace(back, figures=None) == replace(record("F", []), figures=None)
    assert [one.name for one in ledger.begun()] == ["F"]
    assert Ledger(tmp_path, {"steps": 8}).begun() == []
    assert Ledger(tmp_path, {}).read("G") is None


def test_a_damaged_record_is_named(tmp_path):
    for text in ("{", "[]", '{"name": "F"}'):
        (tmp_path / "rows" / "F").mkdir(parents=True, exist_ok=True)
        (tmp_path / "rows" / "F" / "row.json").write_text(text)
        with pytest.raises(ValueError, match=r"row\.json is no record of a row"):
            Ledger(tmp_path, {}).read("F")


# --- what users get wrong -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rows": ("F+P_X",)}, "has no row 'F\\+P_X'; expected some of Restormer, F, P_D"),
        ({"crop_px": 66}, "--crop=66 must be a multiple of 4 px for row Restormer; try 64"),
        ({"crop_px": 128}, "has 4 sharp images .* none has 128 px"),
        ({"encoders": ("a=b:c",)}, "adds rows to the ablation encoder, not to router"),
        ({"steps": 0}, "must be positive"),
        ({"steps": 1, "minutes": 1.0}, "give either --minutes"),
        ({"images": 0}, "--images=0 must be at least 1"),
        ({"preset": "huge"}, "expected one of"),
    ],
)
def test_options_that_do_not_fit_are_refused_with_a_remedy(options, change, said):
    with pytest.raises(ValueError, match=said):
        run_ablation(options("router", **change), say=silent)


def test_a_fine_stage_that_cannot_take_the_crop_is_found_before_training(options):
    with pytest.raises(ValueError, match=r"--crop=40 must be a multiple of 32 px for row none; try 32"):
        run_ablation(options("prompts", crop_px=40), say=silent)


def test_missing_parts_are_named_before_training(options, tmp_path):
    with pytest.raises(ValueError, match="holds no safetensors file"):
        run_ablation(options("router", parts=str(tmp_path)), say=silent)


@pytest.mark.parametrize(
    ("spec", "said"),
    [("vit", "expected NAME=TIMM_MODEL:CHECKPOINT"), ("vit=x", "expected NAME=TIMM_MODEL"), ("../v=x:y", "a name is made of letters"),
     ("..=x:y", "a name is made of letters"), ("v=test_vit:nowhere.pt", "there is no file nowhere.pt")],
)  # fmt: skip
def test_encoders_that_cannot_be_are_refused(spec, said):
    with pytest.raises(ValueError, match=said):
        encoder_row(spec)


def test_an_encoder_of_the_user_s_is_a_row_with_its_own_width(tmp_path, options, bench):
    import timm

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model("test_vit", pretrained=False, num_classes=0)
    torch.save(model.state_dict(), tmp_path / "vit.pt")
    spec = f"mine=test_vit:{tmp_path / 'vit.pt'}"
    table = table_of("encoder", encoders=[spec])
    (row,) = table.chosen(["mine"])
    phases = row.phases(bench)
    first, second = next(phases).stage, next(phases).stage
    assert isinstance(first.encoder, TimmEncoder)
    assert first.pathology.config.encoder_dim == second.coarse.config.prompt_dim == model.num_features != 192
    path = run_ablation(options("encoder", encoders=(spec,), rows=("mine",)), say=silent)
    assert "| mine |" in path.read_text()
    torch.save({key: value + 1 for key, value in model.state_dict().items()}, tmp_path / "vit.pt")
    with pytest.raises(ValueError, match=r"was made with weights=\w{12}\.\.\., this run has weights="):
        run_ablation(options("encoder", encoders=(spec,), rows=("mine",)), say=silent)


def test_gated_encoders_are_asked_for_by_name_and_never_of_their_own_accord(monkeypatch, bench):
    from pathorestore.training import ablation_tables

    asked = []
    monkeypatch.setattr(ablation_tables, "_GATED", {"uni": lambda: asked.append("uni")})
    row = encoder_row("UNI=uni")
    assert not asked
    assert row.paper.startswith("28.23")
    row.build(bench)
    assert asked == ["uni"]


def test_two_rows_cannot_share_a_name(tmp_path):
    (tmp_path / "w.pt").write_bytes(b"")
    with pytest.raises(ValueError, match="there is a row 'tiny' already"):
        table_of("encoder", encoders=[f"tiny=test_vit:{tmp_path / 'w.pt'}"])


def test_a_model_that_timm_does_not_know_is_refused_plainly(tmp_path, bench):
    (tmp_path / "w.pt").write_bytes(b"")
    with pytest.raises(ValueError, match="timm cannot build 'no_such_model'"):
        encoder_row(f"v=no_such_model:{tmp_path / 'w.pt'}").build(bench)


def test_the_command_line_of_a_run_says_what_was_asked_for(tmp_path):
    options = Ablation(kind="encoder", manifest=tmp_path / "my slides.csv", minutes=2.5, rows=("tiny",), encoders=("a=b:c",))
    assert options.command == (
        f"pathorestore ablate encoder --manifest '{tmp_path}/my slides.csv' --preset tiny --minutes 2.5 --parts embedded --seed 0 "
        "--images 16 --crop 256 --out runs/ablation-encoder --rows tiny --encoder a=b:c"
    )
