"""`pathorestore classify`: what it takes, calls and prints."""

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from pathorestore.data.labels import LabelRow
    from pathorestore.evaluation.classification import Comparison
    from pathorestore.models.classifier import Classifier

Bar = Callable[[int, int], None]
Say = Callable[[str], None]


def fill_classify(command: "ArgumentParser") -> None:
    """Declare the verb's own options."""
    images = "a version of the test images, such as restored=out/; may be given more than once"
    command.add_argument("--model", required=True, type=str, help="folder of a classifier, as export writes it, or a file of timm weights")
    command.add_argument("--labels", required=True, type=str, help="CSV with the columns file and label, maybe patient, slide and split")
    command.add_argument("--images", action="append", required=True, type=str, metavar="NAME=DIR", help=images)
    command.add_argument("-o", "--output", required=True, type=str, help="folder for scores.json and probabilities.csv")
    command.add_argument("--split", choices=("train", "val", "test"), default="test", help="rows to score, where the labels have splits")
    command.add_argument("--reference", type=str, default=None, help="version to compare with; default: clean, else the first")
    command.add_argument("--threshold", type=float, default=0.5, help="of two classes, the second is predicted above this probability")
    command.add_argument("--draws", type=int, default=2000, help="bootstrap samples of patients or slides behind each interval")
    command.add_argument("--seed", type=int, default=0, help="seed of the bootstrap")
    command.add_argument("--architecture", type=str, default=None, help="timm name, for a --model that is a file of weights")
    command.add_argument("--classes", type=str, default=None, help="its labels in the order of its outputs, parted by commas")
    command.add_argument("--side-px", type=int, default=None, help="side that its images are brought to; default: 256")
    command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute; auto takes CUDA if present")
    command.add_argument("--max-pixels", type=int, default=None, help="refuse images with more pixels than this; default: as restore")
    command.add_argument("--overwrite", action="store_true", help="replace earlier results in that folder")
    command.add_argument("--json", action="store_true", help="print scores.json on stdout, all else on stderr")
    command.add_argument("-q", "--quiet", action="store_true", help="print failures only")


def run_classify(arguments: "Namespace", bar: Bar, tell_error: Say) -> int:
    """Score every version and return the exit code: 0 all well, 1 some images could not be scored."""
    versions = parse_versions(arguments.images)
    from pathorestore.evaluation.classification import Case, Rules, check_output, compare, score_versions, write_comparison
    from pathorestore.pipelines.compute import choose_device
    from pathorestore.pipelines.raster import DEFAULT_MAX_PIXELS

    check_output(Path(arguments.output), overwrite=arguments.overwrite)
    reference = arguments.reference or ("clean" if "clean" in versions else next(iter(versions)))
    if reference not in versions:
        raise ValueError(f"--reference {reference} is no version; expected one of {', '.join(versions)}")
    device = choose_device(arguments.device)
    classifier = load_classifier(arguments)
    classes = classifier.config.classes
    rows = rows_to_score(Path(arguments.labels), classes, arguments.split)
    how = {"threshold": arguments.threshold, "draws": arguments.draws, "seed": arguments.seed}
    rules = Rules(classes=classes, reference=reference, **how)
    _check(rules.threshold, rules.draws, len(classes))
    cases = [Case(row.file, classes.index(row.label), _group(row)) for row in rows]
    scored = score_versions(
        classifier.to(device).probabilities,
        cases,
        versions,
        max_pixels=DEFAULT_MAX_PIXELS if arguments.max_pixels is None else arguments.max_pixels,
        on_failure=lambda failure: tell_error(failure.reason),
        progress=bar,
    )
    comparison = compare(scored, rules)
    facts = _facts(arguments, classifier, versions)
    write_comparison(Path(arguments.output), comparison, facts)
    if not arguments.quiet:
        print(told(comparison, grouped=any(row.patient or row.slide for row in rows)), file=sys.stderr if arguments.json else sys.stdout)
    if arguments.json:
        print(json.dumps(comparison.to_dict() | facts, indent=2))
    return 1 if scored.failures else 0


def parse_versions(words: Sequence[str]) -> dict[str, Path]:
    """Names and folders of `--images NAME=DIR`. Raises ValueError for a word without a name or folder, or a name given twice."""
    versions: dict[str, Path] = {}
    for word in words:
        name, equals, folder = word.partition("=")
        if not name.strip() or not equals or not folder:
            raise ValueError(f"--images {word!r} is no version; expected NAME=DIR, such as restored=out/")
        if name.strip() in versions:
            raise ValueError(f"--images {name.strip()!r} is named twice; give each version a name of its own")
        versions[name.strip()] = Path(folder)
    return versions


def rows_to_score(path: Path, classes: Sequence[str], split: str) -> "list[LabelRow]":
    """The rows of a split, or all of them where the table has no splits. Raises ValueError if there are none."""
    from pathorestore.data.labels import read_labels

    if not path.is_file():
        raise ValueError(f"{path}: is no file; expected a CSV with the columns file and label")
    rows = read_labels(path, classes)
    chosen = [row for row in rows if row.split == split] if any(row.split for row in rows) else rows
    if not chosen:
        raise ValueError(f"{path}: has no row with split {split}; name another with --split, or delete the column to score all rows")
    return chosen


def load_classifier(arguments: "Namespace") -> "Classifier":
    """The classifier of a folder, or of a file of weights whose architecture and classes are told. Raises ValueError."""
    from pathorestore.models.classifier import Classifier

    model = Path(arguments.model)
    described = (arguments.architecture, arguments.classes, arguments.side_px)
    if model.is_dir():
        if any(one is not None for one in described):
            raise ValueError("--architecture, --classes and --side-px are for a file of weights; a folder knows them itself")
        return Classifier.from_pretrained(_folder(model))
    if not model.is_file():
        raise ValueError(f"--model {model}: no such folder or file; expected what pathorestore export wrote, or a file of timm weights")
    if arguments.architecture is None or arguments.classes is None:
        raise ValueError(f"--model {model} is a file of weights; say what it holds with --architecture and --classes")
    classes = [name.strip() for name in arguments.classes.split(",")]
    side_px = 256 if arguments.side_px is None else arguments.side_px
    return Classifier.create(arguments.architecture, classes, side_px=side_px, checkpoint=model, fresh_head=False).eval()


def _folder(model: Path) -> Path:
    """Where the classifier lies in a model folder: export writes the parts of a stage to folders of their names."""
    inside = model / "classifier"
    return inside if (inside / "config.json").is_file() else model


def told(comparison: "Comparison", *, grouped: bool) -> str:
    """Tables and remarks for a terminal."""
    from pathorestore.pipelines.report_text import aligned

    facts = comparison.to_dict()
    counts = ", ".join(f"{count} {name}" for name, count in facts["images"].items())
    left_out = f"; {facts['excluded']} left out of all versions" if facts["excluded"] else ""
    lines = [aligned(comparison.table())]
    if comparison.differences:
        lines += ["", aligned(comparison.difference_table())]
    lines += ["", f"images: {counts}, of {facts['groups']} groups{left_out}"]
    rule = f"positive is {facts['positive']}, above {facts['threshold']:g}" if facts["positive"] else "the likeliest class is predicted"
    lines.append(f"percent, with 95 % intervals of a bootstrap over {'patients or slides' if grouped else 'images'}; {rule}")
    if not grouped:
        lines.append("note: the labels name no patient or slide; images of one patient are alike, so intervals may be too narrow")
    return "\n".join(lines)


def _group(row: "LabelRow") -> tuple[str, str]:
    """What an image shares with others that are like it: its patient, else its slide, else nothing."""
    from pathorestore.data.manifest import plain_name

    named = (("patient", plain_name(row.patient)), ("slide", plain_name(row.slide)), ("file", row.file))
    return next(pair for pair in named if pair[1])


def _check(threshold: float, draws: int, classes: int) -> None:
    if not 0 < threshold < 1 or (threshold != 0.5 and classes > 2):
        raise ValueError(f"--threshold {threshold} must lie in (0, 1), and is for two classes; of more, the likeliest is predicted")
    if draws < 1:
        raise ValueError(f"--draws {draws} must be at least 1")


def _facts(arguments: "Namespace", classifier: "Classifier", versions: dict[str, Path]) -> dict[str, Any]:
    """Which classifier and labels made the figures."""
    from pathorestore.hub import weights_sha256

    model, labels = Path(arguments.model), Path(arguments.labels)
    digest = weights_sha256(_folder(model)) if model.is_dir() else hashlib.sha256(model.read_bytes()).hexdigest()
    return {
        "classifier": {"name": classifier.config.name, "side_px": classifier.config.side_px, "weights_sha256": digest},
        "labels": {"name": labels.name, "sha256": hashlib.sha256(labels.read_bytes()).hexdigest()},
        "versions": {name: str(folder) for name, folder in versions.items()},
    }
