import csv
import io

from mtl_jax.table import Column, Table, Value

TABLE = Table(
    "run",
    [
        Column("semseg mIoU [%]", 1),
        Column("depth rmse [m]", -1),
        Column("normals mErr [°]"),
        Column("seeds", decimals=0),
    ],
    {
        "a_b": [Value(45.1234, 0.5), Value(0.61234), Value(20.0), Value(3)],
        "c|d": [Value(9.9), Value(0.6126), None, Value(1)],
        "e & f": [None, Value(0.7), Value(19.0), Value(1)],
    },
)


def cells(line):
    return [cell.strip() for cell in line.replace(r"\|", "/").strip("|\n ").split("|")]


def test_markdown_marks_the_best_and_all_that_print_the_same():
    lines = TABLE.markdown().splitlines()
    assert [cells(line) for line in lines if not line.startswith("| ---")] == [
        ["run", "semseg mIoU [%] ↑", "depth rmse [m] ↓", "normals mErr [°]", "seeds"],
        ["a_b", "**45.12** ± 0.50", "**0.6123**", "20.00", "3"],
        ["c/d", "9.90", "0.6126", "–", "1"],
        ["e & f", "–", "0.7000", "19.00", "1"],
    ]
    assert len({len(line.replace(r"\|", "\\|")) for line in lines}) == 1  # aligned
    tied = Table(
        "run", [Column("x", -1)], {"a": [Value(0.61231)], "b": [Value(0.61229)], "c": [Value(0.6124)]}
    )
    assert [cells(line)[1] for line in tied.markdown().splitlines()[2:]] == [
        "**0.6123**",
        "**0.6123**",
        "0.6124",
    ]


def test_a_single_value_is_not_the_best_of_anything():
    assert "**" not in Table("run", [Column("x", 1)], {"a": [Value(1.0)], "b": [None]}).markdown()


def test_digits_follow_the_largest_value():
    def shown(*values):
        table = Table("run", [Column("x")], {str(i): [Value(v)] for i, v in enumerate(values)})
        return [cells(line)[1] for line in table.markdown().splitlines()[2:]]

    assert shown(0.01234567, 0.1) == ["0.0123", "0.1000"]
    assert shown(-123.456, 1) == ["-123.5", "1.0"]
    assert shown(123456.7) == ["123457"]
    assert shown(0.0) == ["0"]
    assert shown(-1e-9, 1.0) == ["0.000", "1.000"]


def test_csv_holds_all_digits_and_reads_back():
    header, *rows = csv.reader(io.StringIO(TABLE.csv()))
    assert header == [
        "run",
        "semseg mIoU [%]",
        "std of semseg mIoU [%]",
        "depth rmse [m]",
        "normals mErr [°]",
        "seeds",
    ]
    assert rows[0] == ["a_b", "45.1234", "0.5", "0.61234", "20.0", "3"]
    assert rows[1] == ["c|d", "9.9", "", "0.6126", "", "1"]


def test_latex_is_escaped_and_has_a_cell_for_each_column():
    text = TABLE.latex()
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert body[0].startswith(
        r"run & semseg mIoU [\%] $\uparrow$ & depth rmse [m] $\downarrow$ & normals mErr [$^\circ$] &"
    )
    assert body[1] == r"a\_b & \textbf{45.12} $\pm$ 0.50 & \textbf{0.6123} & 20.00 & 3 \\"
    assert body[3].startswith(r"e \& f & -- & ")
    assert all(line.replace(r"\&", "").count("&") == 4 for line in body)
    assert text.startswith("\\begin{tabular}{lrrrr}\n\\toprule")


def test_write(tmp_path):
    TABLE.write(str(tmp_path / "new"))
    for ending, text in (("md", TABLE.markdown()), ("csv", TABLE.csv()), ("tex", TABLE.latex())):
        assert (tmp_path / "new" / f"table.{ending}").read_text(encoding="utf-8") == text
