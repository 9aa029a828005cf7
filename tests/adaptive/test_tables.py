"""Tables as they lie on disk: layouts found, columns described, targets read, encoders kept; whatever is broken is named."""

import bz2
import gzip
import io
import lzma
import random
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import meristem as ms
from meristem.adaptive.learn import learn, new_estimator
from meristem.adaptive.learned import Learned, fitted_encoder
from meristem.adaptive.tables import build_encoder, describe, encode, load_encoder, open_table, save_encoder
from meristem.adaptive.tables.columns import describe_column
from meristem.adaptive.tables.header import looks_like_header
from meristem.adaptive.tables.layout import find_layout
from meristem.cli.options import read_options

pd = pytest.importorskip("pandas")

ROWS = [[f"{i / 7:.3f}", "xyz"[i % 3], str(i % 5), "yes" if i % 2 else "no"] for i in range(60)]
NAMES = ["length", "colour", "count", "sold"]


def text(separator=",", header=True, rows=ROWS):
    return "".join(separator.join(row) + "\n" for row in ([NAMES] if header else []) + rows)


# -- layouts --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("separator", [",", ";", "\t", "|", " "])
@pytest.mark.parametrize("header", [True, False])
def test_separators_and_headers(write, separator, header):
    table = open_table(write(text(separator, header)))
    assert table.x.shape == (60, 3)
    assert table.names == (NAMES[:3] if header else ["column_1", "column_2", "column_3"])
    assert table.x.iloc[3].tolist() == [0.429, "x", 3]
    assert table.y.tolist()[:2] == ["no", "yes"]
    assert [column.kind for column in table.columns] == ["number", "category", "number"]


PACKED = {
    "t.csv.xz": lzma.compress,
    "t.csv.gz": gzip.compress,
    "t.csv.bz2": bz2.compress,
    "without_a_suffix": lzma.compress,
}


@pytest.mark.parametrize("name", PACKED)
def test_compression_is_seen_by_content(write, name):
    assert open_table(write(PACKED[name](text().encode()), name)).x.shape == (60, 3)


def test_archives(write):
    def archive(*names):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as file:
            for name in names:
                file.writestr(name, text())
        return buffer.getvalue()

    assert open_table(write(archive("a.csv"), "t.zip")).x.shape == (60, 3)
    for names, said in ((("a.csv", "b.csv"), "archive of 2 files"), (("xl/workbook.xml",), "Excel")):
        with pytest.raises(ms.MeristemError, match=said):
            open_table(write(archive(*names), "t.zip"))


def test_quotes_decimals_and_encodings(write):
    assert open_table(write("'a','b','it is'\n" * 3 + "'c','d','it was'\n" * 3)).y.tolist()[-1] == "it was"
    comma = open_table(write("a;b;c\n1,5;2;x\n2,5;3;y\n-0,25;4;x\n"))
    assert comma.x["a"].tolist() == [1.5, 2.5, -0.25]
    german = open_table(write("größe;art\n1;süß\n2;herb\n3;süß\n".encode("cp1252")))
    assert german.names == ["größe"]
    assert "Windows-1252" in german.notes[0]
    assert open_table(write("größe,art\n1,süß\n2,herb\n".encode("utf-16"))).y.tolist() == ["süß", "herb"]
    quoted = open_table(write('a,b,c\n"1,5",x,u\n"2,5",y,v\n'))
    assert quoted.x.shape == (2, 2)


@pytest.mark.parametrize(
    ("rows", "header"),
    [
        (["5.1,3.5,a", "4.9,3.0,b", "4.7,3.1,a"], False),
        (["width,height,kind", "4.9,3.0,b", "4.7,3.1,a"], True),
        (["red,small,a", "blue,large,b", "red,large,a", "blue,small,a"], False),
        (["colour,size,kind", "blue,large,b", "red,large,a", "blue,small,a"], True),
        (["?,3.5,a", "4.9,3.0,b", "4.7,3.1,a"], False),
        (["1,64,1", "2,62,1"], False),
        (["a,b", "c,d"], True),
    ],
)
def test_header_or_not(rows, header):
    assert looks_like_header([row.split(",") for row in rows]) is header


def test_what_is_told_counts_more_than_what_is_found(write):
    path = write("1999,2000,y\n1,2,3\n2,3,4\n")
    assert open_table(path, header=True, task="regression").names == ["1999", "2000"]
    assert find_layout_of(write("a b,c d\n1 2,3 4\n"), " ").fields == 3
    with pytest.raises(ms.MeristemError, match="no ';' in its first rows"):
        open_table(write(text()), separator=";")
    with pytest.raises(ms.MeristemError, match="one character"):
        open_table(write(text()), separator=";;")


def find_layout_of(path, separator):
    from pathlib import Path

    return find_layout(Path(path), separator)


# -- columns --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "kind", "said"),
    [
        (np.arange(50), "left out", "row numbers"),
        (np.arange(50) * 2.0, "number", "scaled"),
        (np.linspace(0, 1, 50), "number", "number: scaled"),
        ([0, 1] * 25, "number", "^0 and 1$"),
        ([0.0] * 99 + [1e6], "number", "long tail"),
        ([1.0, None, 3.0, 5.0] * 10, "number", "25.0% missing: median and a mark"),
        ([1.0, np.inf, 3.0, 5.0] * 10, "number", "10 infinite read as missing"),
        (["1", "2", "3", "4", "5"] * 9 + ["unknown"], "number", "'unknown' read as missing"),
        (["a", "b", None] * 10, "category", "2 categories: one-hot, 33.3% missing: a value of its own"),
        ([f"c{i % 40}" for i in range(400)], "many categories", "40 categories: encoded by the target"),
        ([f"Mr {i}" for i in range(50)], "left out", "all differ"),
        ([f"word {i // 2 if i < 20 else i}" for i in range(80)], "left out", "free text"),
        ([f"2024-0{1 + i % 9}-1{i % 3}" for i in range(50)], "date", "2024-01-10 to 2024-09-12"),
        ([True, False] * 10, "category", "true or false"),
        ([None] * 10, "left out", "no values"),
        ([7] * 10, "left out", "one value"),
    ],
)
def test_columns(values, kind, said):
    column = describe_column("c", pd.Series(values))
    assert column.kind == kind
    assert pytest.importorskip("re").search(said, column.said), column.said


def test_names_of_ids():
    draw = np.random.default_rng(0).permutation(5000)[:100]
    kinds = [
        describe_column(name, pd.Series(draw)).kind for name in ("customer_id", "ID", "Unnamed: 0", "width", "column_1")
    ]
    assert kinds == ["left out", "left out", "left out", "number", "number"]


# -- targets --------------------------------------------------------------------------------------------------------------


def targets(values, task="auto"):
    from meristem.adaptive.tables.table import of_frame

    return of_frame(pd.DataFrame({"a": range(0, 2 * len(values), 2), "t": values}), "t", task)


def test_what_a_target_is():
    prices = [0.5 + i for i in range(100)]
    assert targets(prices).task == "regression"
    gap = targets([*prices, None])
    assert gap.task == "regression"
    assert len(gap.y) == 100
    assert gap.unlabelled["a"].tolist() == [200]
    assert "1 row has no 't'" in gap.notes[-1]
    letters = [i % 26 for i in range(300)]
    assert targets(letters).task == "regression"
    assert targets(letters, "classification").y.dtype.kind == "i"
    assert targets([1, 2, 3, 4, 5] * 4).task == "classification"
    assert targets([1, 2, 3, 4, 5] * 4, "regression").y.tolist()[:5] == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert targets([True, False] * 5).y.tolist()[:2] == ["True", "False"]
    assert set(targets(["cat", "dog", None] * 5).y) == {"cat", "dog"}


@pytest.mark.parametrize(
    ("values", "task", "message"),
    [
        (["a", "b"] * 9, "regression", "'a', 'b' are no numbers"),
        ([0.5, 1.5] * 9, "classification", "0.5 is not a class; --task regression"),
        ([1.0, np.inf, 2.0], "auto", "infinite"),
        ([3] * 9, "auto", "'3' in all rows"),
        ([None] * 9, "auto", "no values"),
        ([*range(100), "oops"], "auto", "'oops' among numbers"),
        ([f"text {i}" for i in range(50)], "auto", "50 different words in 50 rows cannot be classes"),
    ],
)
def test_targets_that_cannot_be_learned(values, task, message):
    with pytest.raises(ms.MeristemError, match=message):
        targets(values, task)


def test_targets_by_number(write):
    path = write(text(header=False))
    assert open_table(path, "2").target == "column_2"
    assert set(open_table(path, "2").y) == {"x", "y", "z"}
    with pytest.raises(ms.MeristemError, match="no column '5'"):
        open_table(path, "5")


# -- encoding -------------------------------------------------------------------------------------------------------------


def people(rows=200):
    draw = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "age": np.where(draw.random(rows) < 0.1, np.nan, draw.integers(18, 80, rows)),
            "income": np.exp(3 * draw.normal(size=rows)),
            "town": draw.choice([f"town {i}" for i in range(40)], rows),
            "job": np.where(draw.random(rows) < 0.1, None, draw.choice(["baker", "smith", "miller"], rows)),
            "since": pd.Timestamp("2020-01-01") + pd.to_timedelta(draw.integers(0, 900, rows), "D"),
            "key": np.arange(rows),
        }
    )


def test_an_encoder_says_the_right_numbers(tmp_path):
    frame = people()
    y = np.arange(200) % 2
    columns = describe(frame)
    encoder = build_encoder(columns, "classification")
    numbers = fitted_encoder(encoder, frame, y, columns)
    assert "key" not in numbers.columns
    assert np.isfinite(numbers.to_numpy()).all()
    median = frame["age"].median()
    filled = frame["age"].fillna(median)
    np.testing.assert_allclose(numbers["age"], (filled - filled.mean()) / filled.std(ddof=0), rtol=1e-4, atol=1e-5)
    assert numbers["job_baker"].tolist() == (frame["job"] == "baker").astype(float).tolist()
    assert numbers["job_missing"].tolist() == frame["job"].isna().astype(float).tolist()
    assert (
        numbers["income"].abs().max() < frame["income"].sub(frame["income"].mean()).abs().max() / frame["income"].std()
    )
    month = numbers["since_month"].to_numpy()
    assert np.corrcoef(month, frame["since"].dt.month)[0, 1] == pytest.approx(1, abs=1e-5)
    save_encoder(encoder, tmp_path / "encoder.skops")
    again = load_encoder(tmp_path / "encoder.skops")
    pd.testing.assert_frame_equal(encode(again, frame, columns), encode(encoder, frame, columns))
    strange = frame.assign(job="astronaut", town="nowhere", age=np.inf)
    assert np.isfinite(encode(again, strange, columns).to_numpy()).all()
    with pytest.raises(ms.MeristemError, match="no column 'income'"):
        encode(again, frame.drop(columns="income"), columns)


def test_names_that_meet():
    frame = pd.DataFrame({"a": ["b_c", "d"] * 20, "a_b": ["c", "e", "f", "e"] * 10, "a_b_c": np.arange(40) / 3})
    frame["a"] = ["b_c", "d", "g", "d"] * 10
    columns = describe(frame)
    names = list(fitted_encoder(build_encoder(columns, "classification"), frame, np.arange(40) % 2, columns).columns)
    assert len(set(names)) == len(names)


def test_an_encoder_file_of_something_else(tmp_path):
    import skops.io
    from sklearn.preprocessing import FunctionTransformer

    skops.io.dump(FunctionTransformer(describe), tmp_path / "encoder.skops")
    with pytest.raises(ms.MeristemError, match="types that no encoder of Meristem uses"):
        load_encoder(tmp_path / "encoder.skops")
    (tmp_path / "encoder.skops").write_text("nothing")
    with pytest.raises(ms.MeristemError, match="holds no encoder"):
        load_encoder(tmp_path / "encoder.skops")


# -- the whole way --------------------------------------------------------------------------------------------------------

QUICK = {"width": 4, "max_rounds": 1, "max_steps": 10}


def test_learned_from_categories_and_gaps_and_loaded(tmp_path):
    frame = people()
    frame["bought"] = np.where(frame["job"] == "smith", "yes", "no")
    frame.to_csv(tmp_path / "t.csv.gz", index=False)
    table = open_table(str(tmp_path / "t.csv.gz"))
    learned = learn("adanet", table, tmp_path / "out", {"width": 8, "max_rounds": 2})
    assert learned.metrics["test_score"] == 1.0
    loaded = Learned.load(tmp_path / "out")
    np.testing.assert_array_equal(loaded.predict(frame), learned.predict(frame))
    np.testing.assert_array_equal(loaded.predict(tmp_path / "t.csv.gz"), learned.predict(frame))
    np.testing.assert_array_equal(loaded.predict_proba(frame), learned.predict_proba(frame))
    assert "key     row numbers" in (tmp_path / "out" / "summary.txt").read_text()
    assert not [path for path in (tmp_path / "out").rglob("*") if path.suffix in (".pkl", ".pickle", ".joblib")]
    with pytest.raises(ms.MeristemError, match="nothing that `meristem learn` wrote"):
        Learned.load(tmp_path)


@pytest.mark.parametrize(
    ("share", "seed", "message"),
    [(0.999, 0, "leaves 0 of 60 rows"), (float("nan"), 0, "between 0 and 1"), (0.2, -1, "the seed is a whole number")],
)
def test_shares_and_seeds(write, tmp_path, share, seed, message):
    with pytest.raises(ms.MeristemError, match=message):
        learn("adanet", open_table(write(text())), tmp_path / "out", QUICK, seed=seed, test_share=share)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("word", "value"), [("false", False), ("no", False), ("0", False), ("True", True), ("on", True), ("1", True)]
)
def test_yes_and_no_in_words(word, value):
    assert new_estimator("adanet", True, read_options({}, [f"standardize={word}"])).standardize is value


def test_options_that_are_no_options():
    for entry, message in (
        ("standardize=maybe", "true or false, got 'maybe'"),
        ("learning_rate=nan", "above 0, got nan"),
        ("max_depth=0", "at least 1"),
    ):
        with pytest.raises(ms.MeristemError, match=message):
            new_estimator("adanet", True, read_options({}, [entry]))
    assert new_estimator("adanet", True, read_options({}, ["n_jobs=none"])).n_jobs is None


def mutated(seed):
    """A table with one to three things wrong with it."""
    draw = random.Random(seed)
    content = text(draw.choice(",;\t"), draw.random() < 0.7).encode()
    for _ in range(draw.randint(1, 3)):
        place = draw.randrange(len(content) + 1)
        what = draw.randrange(9)
        if what == 0:
            content = content[:place]
        elif what == 1:
            content = content[:place] + draw.randbytes(draw.randint(1, 6)) + content[place:]
        elif what == 2:
            content = content[:place] + draw.choice([b'"', b"'", b"\n", b"\r", b"\0", b",", b";"]) + content[place:]
        elif what == 3:
            content = content.replace(b"yes", draw.choice([b"", b"no", b"nan", b"inf", b"?", b"1e400"]))
        elif what == 4:
            content = content.replace(b"x", draw.choice([b"", b"7", b"#", b"\xff"]))
        elif what == 5:
            content = draw.choice([lzma.compress, gzip.compress, bz2.compress])(content)[: draw.choice([30, 10**6])]
        elif what == 6:
            content = content.replace(b"colour", b"length")
        elif what == 7:
            lines = content.splitlines(keepends=True)
            draw.shuffle(lines)
            content = b"".join(lines[: draw.choice([1, 2, 5, 40])])
        else:
            content = content.replace(b"0.", draw.choice([b"0,", b"abc", b"1e999", b""]))
    return content


@pytest.mark.parametrize("seed", range(60))
def test_mutated_tables_are_learned_or_named(seed, tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(mutated(seed))
    said = None
    try:
        learn("adanet", open_table(str(path)), tmp_path / "out", QUICK)
    except ms.MeristemError as error:
        said = str(error)
    assert (tmp_path / "out").exists() == (said is None)
    assert said is None or "\n" not in said


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_named(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("bytes") / "t.csv"
    path.write_bytes(content)
    said = ""
    try:
        open_table(str(path))
    except ms.MeristemError as error:
        said = str(error)
    assert "\n" not in said
