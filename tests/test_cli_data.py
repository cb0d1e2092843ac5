"""`pathorestore data make|check` as a user meets them: tables, exit codes, and clear lines for what went wrong."""

import json
from pathlib import Path

import pytest
from tissue_files import save, tissue

from pathorestore import cli
from pathorestore.data.check import stamp_path
from pathorestore.data.manifest import read_manifest, write_manifest


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run a command line in the folder; returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> tuple[int, str, str]:
        code = cli.main([str(word) for word in words])
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def images(tmp_path):
    """Sharp images of six patients, facts about them, and a slide too many."""
    lines = ["file,case,stain,licence"]
    for number in range(6):
        save(tmp_path / "in" / f"{number}.png", tissue(number, 96, 96 + number))
        lines.append(f"in/{number}.png,P{number},{'H&E' if number < 4 else 'IHC'},{'free' if number < 5 else 'closed'}")
    (tmp_path / "in" / "slide.svs").write_bytes(b"")
    (tmp_path / "facts.csv").write_text("\n".join(lines))
    return tmp_path / "in"


def test_a_folder_becomes_a_checked_manifest_that_says_what_it_holds(images, run):
    words = ("--facts", "facts.csv", "--patient-column", "case", "--where", "licence=free", "--mpp", 0.5, "--split", "3:1:1")
    code, out, err = run("data", "make", "in", "-o", "m.csv", *words)
    assert (code, err) == (0, "")
    for line in (
        "note: recognised as sharp images; --layout sharp says so, or name another",
        "note: whole slides left out, which --layout slides lists: slide.svs",
        "note: files left out, for their facts do not say licence=free: 1",
        "manifest: m.csv, 5 rows",
        "next: pathorestore data check m.csv, then pathorestore fit --config NAME --data.manifest m.csv",
    ):
        assert line in out
    table = {line.split()[0]: line.split() for line in out.splitlines() if line.split()[0] in ("train", "val", "test")}
    assert [table[split][1] for split in ("train", "val", "test")] == ["3", "1", "1"]
    assert [table[split][3] for split in ("train", "val", "test")] == ["3", "1", "1"], "patients"
    rows = read_manifest(Path("m.csv")).rows
    widths = sorted(96 + int(Path(row.path).stem) for row in rows if row.split == "train")
    assert table["train"][-6:] == [str(widths[0]), "x", "96", str(widths[-1]), "x", "96"]
    assert [row.path for row in rows] == [f"in/{number}.png" for number in range(5)]
    assert {(row.mpp, row.patient[0]) for row in rows} == {(0.5, "P")}
    assert run("data", "check", "m.csv", "--crop", 96) == (0, "m.csv: 5 rows, no defects\n", "")
    assert stamp_path(Path("m.csv")).exists()


def test_where_may_be_said_again_and_parquet_is_as_good(images, run):
    code, _, err = run("data", "make", "in", "-o", "m.parquet", "--facts", "facts.csv", "--where", "licence=free", "--where", "stain=IHC")
    assert (code, err) == (0, "")
    assert [row.path for row in read_manifest(Path("m.parquet")).rows] == ["in/4.png"]
    assert run("data", "check", "m.parquet")[0] == 0


def test_defects_are_told_row_by_row_and_counted(images, run):
    run("data", "make", "in", "-o", "m.csv")
    rows = list(read_manifest(Path("m.csv")).rows)
    (images / "1.png").unlink()
    (images / "2.png").write_bytes((images / "2.png").read_bytes()[:300])
    write_manifest(Path("m.csv"), rows)
    code, out, err = run("data", "check", "m.csv", "--crop", 98, "--workers", 1)
    assert (code, err) == (1, "")
    lines = out.splitlines()
    assert lines[0].split() == ["row", "path", "kind", "reason"]
    assert [line.split()[:2] for line in lines[1:7]] == [
        ["2", "in/0.png"],
        ["3", "in/1.png"],
        ["4", "in/2.png"],
        ["5", "in/3.png"],
        ["6", "in/4.png"],
        ["7", "in/5.png"],
    ]
    assert "missing file" in lines[2]
    assert "unreadable" in lines[3]
    assert "less than a crop of 98 px" in lines[4]
    assert lines[-1] == "m.csv: 6 rows, 6 defects"
    assert any(line.split()[:3] == ["4", "wrong", "size"] for line in lines)


def test_json_is_alone_on_stdout(images, run):
    run("data", "make", "in", "-o", "m.csv")
    (images / "1.png").unlink()
    code, out, err = run("data", "check", "m.csv", "--json")
    assert code == 1
    told = json.loads(out)
    assert (told["rows"], told["manifest"]) == (6, "m.csv")
    assert [(one["row"], one["path"], one["kind"]) for one in told["defects"]] == [(3, "in/1.png", "missing file")]
    assert err == "m.csv: 6 rows, 1 defect\n"


def test_duplicates_and_shifts_are_looked_for_unless_told_otherwise(tmp_path, run):
    clean = tissue(3, 262, 262)
    save(tmp_path / "in" / "train" / "lq" / "a.png", clean[3:-3, :-6])
    save(tmp_path / "in" / "train" / "gt" / "a.png", clean[3:-3, 3:-3])
    for role in ("lq", "gt"):
        save(tmp_path / "in" / "val" / role / "b.png", clean[3:-3, 3:-3][::-1])
    run("data", "make", "in", "-o", "m.csv")
    code, out, _ = run("data", "check", "m.csv")
    assert code == 1
    assert [line.split()[:3] for line in out.splitlines()[1:3]] == [
        ["2", "in/train/lq/a.png", "unregistered"],
        ["3", "in/val/lq/b.png", "duplicate"],
    ]
    assert run("data", "check", "m.csv", "--max-shift-px", 4, "--no-duplicates")[0] == 0


def test_a_manifest_is_not_replaced_unasked(images, run):
    assert run("data", "make", "in", "-o", "m.csv")[0] == 0
    before = Path("m.csv").read_bytes()
    code, out, err = run("data", "make", "in", "-o", "m.csv", "--mpp", 0.5)
    assert (code, out) == (2, "")
    assert "m.csv: exists already; --overwrite replaces it" in err
    assert Path("m.csv").read_bytes() == before
    assert run("data", "make", "in", "-o", "m.csv", "--mpp", 0.5, "--overwrite")[0] == 0
    assert Path("m.csv").read_bytes() != before


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["data"], "make,check"),
        (["data", "mend"], "invalid choice: 'mend'"),
        (["data", "make"], "required: FOLDER, -o/--output"),
        (["data", "make", "in"], "-o/--output"),
        (["data", "check"], "required: MANIFEST"),
        (["data", "make", "in", "-o", "m.txt"], "expected .csv or .parquet"),
        (["data", "make", "in", "-o", "m.csv", "--layout", "heap"], "invalid choice: 'heap'"),
        (["data", "make", "in", "-o", "m.csv", "--split", "8:1"], "split '8:1' is no ratio"),
        (["data", "make", "in", "-o", "m.csv", "--mpp", "0"], "mpp=0.0 must be a positive number"),
        (["data", "make", "in", "-o", "m.csv", "--patient-regex", "P("], "no regular expression"),
        (["data", "make", "in", "-o", "m.csv", "--where", "a=b"], "name it with --facts"),
        (["data", "make", "in", "-o", "m.csv", "--facts", "facts.csv", "--where", "licence"], "expected COLUMN=VALUE"),
        (["data", "make", "in", "-o", "m.csv", "--shuffle"], "unrecognized arguments: --shuffle"),
        (["data", "check", "facts.csv"], "column path is missing"),
        (["data", "check", "facts.csv", "--crop", "big"], "--crop: Expected a int"),
        (["data", "check", "facts.csv", "--crop", "-1"], "crop_px=-1"),
        (["data", "check", "facts.csv", "--max-shift-px", "-1"], "max_shift_px=-1.0"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_one_clear_line_and_exit_code_2(images, run, words, expected):
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert expected in err
    assert not Path("m.csv").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["make", "gone", "-o", "m.csv"], "gone: is no folder"),
        (["make", "empty", "-o", "m.csv"], "holds neither images"),
        (["make", "in", "-o", "m.csv", "--facts", "gone.csv"], "gone.csv"),
        (["make", "in", "-o", "m.csv", "--facts", "facts.csv", "--where", "lizenz=x"], "its columns are file, case, stain, licence"),
        (["make", "in", "-o", "m.csv", "--layout", "paired"], "holds no pairs"),
        (["make", "in", "-o", "facts.csv/m.csv"], "facts.csv"),
        (["check", "gone.csv"], "gone.csv: no such file"),
        (["check", "in"], "in: is a folder"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
def test_what_is_not_there_is_one_line_and_exit_code_2_for_1_means_defects(images, run, words, expected):
    Path("empty").mkdir()
    code, _, err = run("data", *words)
    assert (code, len(err.splitlines())) == (2, 1)
    assert expected in err
    assert not Path("m.csv").exists()


def test_every_option_of_both_verbs_says_what_it_is_for(run):
    for verb in ("make", "check"):
        code, out, _ = run("data", verb, "--help")
        assert code == 0
        assert out.count("  --") >= 5
