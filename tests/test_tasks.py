"""Tasks and their words: what prompts say and are understood as, what examples show, and that a task of one's own is a few lines."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from pathorestore.data.task_prompts import LONGEST_PROMPT, descriptor, drawn_prompt, parse, render, spec_of
from pathorestore.data.tasks import Example, Task, builtin_tasks, named, without
from pathorestore.degradations.composed import FAULTS, Theta
from pathorestore.degradations.stain import SYNTHETIC_STAINS, synthetic_stain
from pathorestore.functional.noise import stream

TASKS = builtin_tasks()
SINGLE = {"sr": "downscale", "deblur": "blur", "denoise": "noise", "restore_jpeg": "jpeg"}
DONE = Theta(*(torch.tensor([value]) for value in (1.234, 0.5, 2.0, 10 / 255, 45.0)))


@pytest.fixture
def sharp(generator):
    return 0.2 + 0.7 * F.interpolate(torch.rand(1, 3, 24, 24, generator=generator), size=(64, 48), mode="bicubic").clamp(0, 1)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_every_way_to_ask_for_a_task_is_understood_as_it(task):
    for way in range(len(task.templates)):
        for source in ("he", "masson", "silver"):
            for theta in (None, DONE):
                prompt = render(task, source=source, way=way, scale=2.7, theta=theta)
                assert len(prompt.encode()) <= LONGEST_PROMPT
                for words in (prompt, f"  {prompt.upper() if theta is None else prompt} "):
                    spec = parse(words, TASKS)
                    assert spec.task is task
                    assert spec.source == (source.upper() if words.strip() != prompt and source == "silver" else source)
                    assert spec.target == task.target
                    if "2.7" in prompt.split(";")[0]:
                        assert spec.scale == 2.7


def test_the_words_of_a_degradation_name_what_was_done_alone():
    assert descriptor(DONE) == "; blur 1.23 0.50, reduced 2.00, noise 10.00, JPEG 45"
    assert descriptor(Theta.from_normalised(torch.zeros(1, 5))) == ""


@given(st.text(st.characters(categories=("L", "N", "P", "Zs")), min_size=1, max_size=60))
def test_free_text_goes_on_as_it_is(words):
    if not words.strip() or len(words.encode()) > LONGEST_PROMPT:
        return
    spec = parse(words, TASKS)
    assert spec.task is None
    assert spec.text.split() == words.split()


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ("", "the prompt is empty"),
        ("  ", "the prompt is empty"),
        ("a\nb", "line breaks"),
        ("a\x1b[31m", "cannot be printed"),
        ("x" * 191, "191 bytes"),
    ],
)
def test_prompts_that_cannot_be_are_refused(prompt, told):
    with pytest.raises(ValueError, match=told):
        parse(prompt, TASKS)


def test_a_task_is_asked_for_by_name_too():
    spec = spec_of(TASKS, task="stain_pas", source="ihc")
    assert spec.text == "translate the IHC image to a PAS stained image"
    assert (spec.target, spec.translates, spec.known) == ("pas", True, True)
    with pytest.raises(ValueError, match="no task 'paint'; expected one of restore, sr"):
        spec_of(TASKS, task="paint")


def test_prompts_of_training_are_empty_plain_or_described_in_their_shares():
    drawn = [drawn_prompt(named(TASKS, "restore"), DONE, stream(number)) for number in range(600)]
    assert drawn.count("") / 600 == pytest.approx(0.3, abs=0.06)
    told = [prompt for prompt in drawn if prompt]
    assert sum(";" in prompt for prompt in told) / len(told) == pytest.approx(0.5, abs=0.07)
    assert {prompt.split(";")[0] for prompt in told} == {render(named(TASKS, "restore"), way=way) for way in range(3)}


@pytest.mark.parametrize(("name", "fault"), SINGLE.items())
def test_an_example_of_one_fault_leaves_the_others(name, fault, sharp):
    """Where the fault is not there, what is given is wanted; where it is alone, the sharp image is."""
    own = {"blur": "blur_sigma_x_px", "downscale": "downscale", "noise": "noise_std", "jpeg": "jpeg_quality"}[fault]
    idle = Theta.from_normalised(torch.zeros(1, 5))
    seen = set()
    for number in range(120):
        example = named(TASKS, name).example(sharp, stream(number))
        present = not torch.equal(getattr(example.theta, own), getattr(idle, own))
        others = any(not torch.equal(value, getattr(idle, key)) for key, value in example.theta._asdict().items() if key[:4] != own[:4])
        seen.add((present, others))
        if not present:
            assert torch.equal(example.given, example.wanted)
        if not others:
            assert torch.equal(example.wanted, sharp)
        if present and not others:
            assert (example.given - sharp).abs().mean() > 1e-3
    assert seen == {(True, True), (True, False), (False, True), (False, False)}


def test_noise_that_stays_is_the_same_in_both_images(sharp):
    """Deblurring a noisy image is no denoising."""
    flat = torch.full_like(sharp, 0.5)
    for number in range(10):
        example = without("blur", flat, stream(number), present=1.0, others=1.0)
        assert torch.allclose(example.given, example.wanted, atol=1e-6)
        # compression makes weak noise flat
        assert example.wanted.std() > 0.005 or example.theta.jpeg_quality < 50 or example.theta.noise_std < 0.02


@pytest.mark.parametrize("task", [task for task in builtin_tasks() if task.example], ids=lambda task: task.name)
def test_what_a_task_is_judged_by_has_what_it_is_for_alone_and_always(sharp, task):
    own = {"sr": [2], "deblur": [0, 1], "denoise": [3], "restore_jpeg": [4]}.get(task.name)
    for number in range(40):
        given, wanted, theta = task.tried(sharp, stream(number))
        done = theta.normalised()[0].nonzero().flatten().tolist()
        if own is not None:
            assert done == own
            assert torch.equal(wanted, sharp)
        elif task.name.startswith("stain_"):
            assert torch.equal(given, sharp)
        else:
            assert done
        if task.translates:
            assert torch.equal(wanted, synthetic_stain(sharp, task.target))


def test_tasks_of_photographed_pairs_have_no_trial(sharp):
    task = next(task for task in builtin_tasks() if task.name == "stain_af")
    with pytest.raises(ValueError, match="the task stain_af learns from photographed pairs"):
        task.tried(sharp, stream(0))


@pytest.mark.parametrize("target", SYNTHETIC_STAINS)
def test_translations_want_the_stain_of_the_sharp_image(target, sharp):
    for name in (f"stain_{target}", f"restore_stain_{target}"):
        example = named(TASKS, name).example(sharp, stream(5))
        assert torch.equal(example.wanted, synthetic_stain(sharp, target))
    clean = [torch.equal(named(TASKS, f"stain_{target}").example(sharp, stream(n)).given, sharp) for n in range(60)]
    assert sum(clean) / 60 == pytest.approx(0.8, abs=0.15)


def test_all_faults_have_a_task():
    assert set(SINGLE.values()) == set(FAULTS)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"templates": ()}, "a task needs a name and templates"),
        ({"templates": ("dye it {colour}",)}, "has a place for 'colour'"),
        ({"weight": 0}, "weight must be positive"),
        ({"empty_share": 1.0}, "empty_share"),
    ],
)
def test_tasks_that_cannot_be_are_refused(change, told):
    with pytest.raises(ValueError, match=told):
        Task(**({"name": "dye", "templates": ("dye the {source} image",)} | change))


def test_a_task_of_ones_own_is_a_few_lines(sharp):
    def inverted(image, generator):
        return Example(1 - image, image, Theta.from_normalised(torch.zeros(1, 5)))

    mine = Task(name="invert", templates=("invert the colours of the {source} image",), example=inverted)
    assert parse("invert the colours of the PAS image", [*TASKS, mine]).task is mine
    assert torch.equal(mine.example(sharp, stream(0)).given, 1 - sharp)


def test_words_of_ones_own_are_known_however_their_places_are_written():
    mine = Task(name="zoom", templates=("zoom {scale:.1f} times into {source}, yes {scale:.1f} times",))
    told = parse("Zoom 2.5 times into PAS, yes 2.5 times", [mine])
    assert (told.task, told.scale, told.source) == (mine, 2.5, "pas")
    assert told.text == "zoom 2.5 times into PAS, yes 2.5 times"
    assert parse("zoom 2.5 times into PAS, yes 3 times", [mine]).task is None


def test_another_stain_leaves_what_was_done_to_the_image(sharp):
    task = named(TASKS, "stain_pas")
    done = 0
    for number in range(30):
        given, wanted, theta = task.example(sharp, stream(number))
        assert torch.equal(wanted, synthetic_stain(given, "pas"))
        done += bool(theta.normalised().any())
        assert torch.equal(given, sharp) != bool(theta.normalised().any())
    assert 5 < done < 20
