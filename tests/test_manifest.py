"""The manifest says what it said when it was written, and a wrong one says where."""

import string
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathorestore.data.manifest import COLUMNS, SPLITS, Manifest, Row, read_manifest, write_manifest

FULL = Row(
    path="a/b.png", slide="S1", patient="P 1", tissue="breast", stain="H&E", mpp=0.25, z_um=-1.6, ctf=0.5, target="a/c.png", split="val"
)

# what a cell of a table may hold: commas, quotes, line breaks, any script, but no lone surrogates and no NUL
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
NUMBER = st.none() | st.floats(allow_nan=False, allow_infinity=False)
NAME = st.text(string.ascii_letters, min_size=1, max_size=5).map(lambda name: f"x {name}")


@st.composite
def tables(draw) -> list[Row]:
    names = draw(st.lists(NAME, unique=True, max_size=2))
    row = st.builds(
        Row,
        path=TEXT.filter(str.strip),
        slide=TEXT,
        patient=TEXT,
        tissue=TEXT,
        stain=TEXT,
        mpp=NUMBER,
        z_um=NUMBER,
        ctf=NUMBER,
        target=TEXT,
        split=st.sampled_from(SPLITS),
        extra=st.tuples(*(st.tuples(st.just(name), TEXT) for name in names)),
    )
    return draw(st.lists(row, min_size=1, max_size=4))


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@given(rows=tables())
def test_what_is_written_is_read_back(tmp_path, suffix, rows):
    path = tmp_path / f"manifest.{suffix}"
    write_manifest(path, rows)
    assert read_manifest(path) == Manifest(path, tuple(rows))


def test_only_the_path_is_needed_and_columns_may_stand_in_any_order(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("ctf,path\n0.5,a.png\n,b.png\n")
    assert read_manifest(path).rows == (Row(path="a.png", ctf=0.5), Row(path="b.png"))


def test_a_byte_order_mark_spaces_in_the_header_and_empty_last_rows_are_what_spreadsheets_leave(tmp_path):
    path = tmp_path / "m.csv"
    path.write_bytes("\ufeffpath , split\r\na.png,val\r\n,\r\n,\r\n".encode())
    assert read_manifest(path).rows == (Row(path="a.png", split="val"),)


def test_further_columns_are_kept(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("path,scanner,note\na.png,Aperio,\nb.png,,soft\n")
    rows = read_manifest(path).rows
    assert rows[0].extra == (("scanner", "Aperio"), ("note", ""))
    write_manifest(tmp_path / "n.csv", rows)
    assert (tmp_path / "n.csv").read_text().splitlines()[0] == ",".join([*COLUMNS, "scanner", "note"])


def test_names_are_resolved_from_the_manifest_and_rows_told_apart_by_split(tmp_path):
    manifest = Manifest(tmp_path / "m.csv", (Row(path="a.png"), FULL, Row(path="/far/c.png")))
    assert manifest.resolve("a.png") == tmp_path / "a.png"
    assert manifest.resolve("/far/c.png") == Path("/far/c.png")
    assert [len(manifest.of(split)) for split in SPLITS] == [2, 1, 0]
    with pytest.raises(ValueError, match="expected one of train, val, test"):
        manifest.of("validation")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path,split\na.png,train\nb.png,Train\n", ["row 3", "column split", "'Train'", "train, val, test"]),
        ("path,split\na.png,\n", ["row 2", "column split", "''"]),
        ("path,mpp\na.png,0.25\nb.png,40x\n", ["row 3", "column mpp", "'40x'", "leave the cell empty"]),
        ('path,mpp\na.png,"0,25"\n', ["row 2", "column mpp", "a point, not a comma"]),
        ("path,z_um\na.png,inf\n", ["row 2", "column z_um", "inf", "finite"]),
        ("path,ctf\na.png,nan\n", ["row 2", "column ctf", "nan"]),
        ("path,mpp\n,0.25\n", ["row 2", "column path", "''"]),
        ("file,split\na.png,train\n", ["row 1", "column path is missing", "'file'"]),
        ("path;split\na.png;train\n", ["row 1", "column path is missing", "part the cells by commas"]),
        ("path,path\na,b\n", ["row 1", "'path' more than once"]),
        ("path,split\na.png,train\n\nb.png,val\n", ["row 3", "an empty row", "delete"]),
        ("path,split\na.png\n", ["row 2", "1 cells", "expected 2"]),
        ("path,split\na.png,train,x\n", ["row 2", "3 cells", "expected 2"]),
        ('path,split\n"a.png,train\n', ["no CSV table"]),
        ("", ["is empty", "column `path`"]),
        ("\n\n", ["is empty"]),
        ("path,split\n", ["header without rows", "data make"]),
    ],
)
def test_a_wrong_table_names_file_row_and_column_and_what_to_do(tmp_path, text, words):
    path = tmp_path / "m.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"m\.csv") as caught:
        read_manifest(path)
    for word in words:
        assert word in str(caught.value)


def test_bytes_that_are_no_text_are_named(tmp_path):
    path = tmp_path / "m.csv"
    path.write_bytes("path,tissue\na.png,Gewebe f\xfcr\n".encode("latin-1"))
    with pytest.raises(ValueError, match="no UTF-8 text"):
        read_manifest(path)


def test_a_file_that_is_not_there_or_not_a_manifest_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.csv: no such file"):
        read_manifest(tmp_path / "gone.csv")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        read_manifest(tmp_path)
    (tmp_path / "m.xlsx").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"'\.xlsx', expected \.csv or \.parquet"):
        read_manifest(tmp_path / "m.xlsx")
    (tmp_path / "m.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(ValueError, match="no Parquet table"):
        read_manifest(tmp_path / "m.parquet")


def test_parquet_of_other_makers_is_read_with_its_own_types(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.table({"path": ["a.png", "b.png"], "mpp": [0.5, None], "patient": [7, 8], "z_um": ["1.5", ""]})
    parquet.write_table(table, tmp_path / "m.parquet")
    assert read_manifest(tmp_path / "m.parquet").rows == (
        Row(path="a.png", mpp=0.5, patient="7", z_um=1.5),
        Row(path="b.png", patient="8"),
    )


def test_without_pyarrow_the_error_says_how_to_get_it_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    path = tmp_path / "m.parquet"
    with pytest.raises(ImportError, match=r'pip install "pathorestore\[parquet\]"'):
        write_manifest(path, [FULL])
    assert not path.exists()
    path.write_bytes(b"PAR1")
    with pytest.raises(ImportError, match=r"m\.parquet.*pip install"):
        read_manifest(path)


@pytest.mark.parametrize(
    ("name", "rows", "words"),
    [
        ("m.txt", [FULL], "expected .csv or .parquet"),
        ("m.csv", [], "no rows to write"),
        ("m.csv", [Row(path="a", extra=(("split", "x"),))], "names of the schema"),
        ("m.csv", [Row(path="a\udcff.png")], "is no text"),
    ],
)
def test_what_cannot_be_written_leaves_the_old_file(tmp_path, name, rows, words):
    (tmp_path / name).write_text("old")
    with pytest.raises(ValueError, match=words):
        write_manifest(tmp_path / name, rows)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]
