"""What a study's files say is text in every format, and what a command line asks wrongly is one line."""

import csv
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest
import yaml

from vlmpeft.runtime.records import write_json
from vlmpeft.study.report.appendix.sections import make_appendix
from vlmpeft.study.report.document import Heading, Listing, Paragraph
from vlmpeft.study.report.formats.csv_lines import as_csv
from vlmpeft.study.report.formats.html_page import html
from vlmpeft.study.report.formats.latex import latex
from vlmpeft.study.report.formats.markdown import markdown
from vlmpeft.study.report.formats.terminal import terminal_notes, terminal_tables
from vlmpeft.study.report.layout import make_table
from vlmpeft.study.report.records import read_study
from vlmpeft.study.report.spec import Spec, read_spec

from ..conftest import ROOT, call
from .made_study import write_made_study

HOSTILE = [
    "a|b [x](javascript:alert(1))",
    "<script>alert(1)</script>",
    r"\input{/etc/passwd} \end{verbatim}",
    "50% _of_ #1 $x^2$ {~} & `rm`",
    "\x1b[31mred\x1b[0m \x07 \u202e",
    "\u6f22\u5b57 R\u00fcckl\u00e9 ``` ++",
]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A study whose titles, groups, task and errors are hostile."""
    folder = write_made_study(tmp_path_factory.mktemp("study") / "hostile")
    info = json.loads((folder / "study.json").read_text())
    for row, text in zip(info["rows"], HOSTILE, strict=False):
        row |= {"title": text, "group": text, "illegal": {"gauge": text}}
    write_json(folder / "study.json", info | {"title": HOSTILE[1]})
    failed = folder / "runs" / "tiny" / "gauge" / "lora_v" / "seed2" / "result.json"
    error = {"error": HOSTILE[-2] + HOSTILE[1] + HOSTILE[-1]}
    write_json(failed, json.loads(failed.read_text()) | error)
    first = folder / "runs" / "tiny" / "format" / "lora_l" / "seed0" / "result.json"
    write_json(first, json.loads(first.read_text()) | {"device": HOSTILE[2]})
    return folder


def parts_of(folder):
    study = read_study(folder)
    return [make_table(study), *make_appendix(study)]


class Page(HTMLParser):
    """The tags of a page, and the texts of its first cells."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.titles, self.attributes, self.is_title = [], [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.is_title = dict(attrs).get("scope") == "row"

    def handle_data(self, data):
        if self.is_title:
            self.titles.append(data)
        self.is_title = False


# -- formats ---------------------------------------------------------------------------------------


def test_every_row_of_a_markdown_table_has_the_same_cells(hostile):
    lines = markdown([make_table(read_study(hostile))]).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    bars = {len(re.findall(r"(?<!\\)\|", line)) for line in rows}
    assert len(rows) == 2 + 6 + 5
    assert len(bars) == 1
    assert any(r"a\|b [x]\(javascript" in line for line in rows)
    assert not any("<script" in line for line in lines)


def test_a_page_has_the_texts_as_texts_and_no_script(hostile):
    page = Page(html(parts_of(hostile), HOSTILE[1]))
    assert not {"script", "img", "iframe", "link", "a"} & {*page.tags}
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert {HOSTILE[0], HOSTILE[1], HOSTILE[2], HOSTILE[3]} <= {*page.titles}


@pytest.mark.parametrize("write", [markdown, latex, lambda parts: html(parts, "t")])
def test_nothing_that_acts_on_a_terminal_is_written(hostile, write):
    text = write(parts_of(hostile)) + as_csv(make_table(read_study(hostile)))
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", text)
    assert r"x1b" in text


def test_csv_reads_back_as_the_titles(hostile):
    lines = list(csv.DictReader(as_csv(make_table(read_study(hostile))).splitlines()))
    assert {HOSTILE[0], HOSTILE[1], HOSTILE[2], HOSTILE[3]} <= {line["title"] for line in lines}
    assert all(None not in line and None not in line.values() for line in lines)


def test_a_listing_with_fences_stays_one_listing():
    lines = markdown([Listing("```\n# no heading\n````")]).splitlines()
    assert lines == ["`````", "```", "# no heading", "````", "`````"]


def test_a_table_fits_the_terminal_and_shows_every_column(folder):
    table = make_table(read_study(folder))
    for width in (60, 100, 140):
        shown = list(terminal_tables(table, width))
        heads = [str(column.header) for one in shown for column in one.columns]
        assert {column.title for column in table.columns} == {*heads}
        sizes = [2 + max(len(str(c)) for c in (col.header, *col.cells)) for col in shown[0].columns]
        assert sum(sizes) + len(sizes) + 1 <= width
    assert len(list(terminal_tables(table))) == 2  # one a task
    assert next(terminal_notes(table)).startswith("[a] seed 2 failed")


def test_texts_are_shown_once_and_alike_in_every_format(folder):
    table = make_table(read_study(folder))
    scores = {cell.text for row in table.rows for cell in row.cells if "+-" in cell.text}
    page, tex, md = html([table], "t"), latex([table]), markdown([table])
    assert len(scores) > 9
    for text in scores:
        assert text in md
        assert text.replace("+-", "\u00b1") in page
        assert text.replace("+-", r"$\pm$") in tex


# -- LaTeX -----------------------------------------------------------------------------------------


def compiled(tmp_path, text):
    """Compile a document around the text; the log, and whether it went well."""
    if not shutil.which("pdflatex"):
        pytest.skip("pdflatex is not installed (apt-get install texlive-latex-recommended)")
    (tmp_path / "table.tex").write_text(text, encoding="utf-8")
    packages = re.findall(r"\\usepackage\{\w+\}", text.splitlines()[0])
    assert packages == [r"\usepackage{booktabs}", r"\usepackage{graphicx}"]
    lines = [r"\documentclass{article}", *packages, r"\begin{document}", r"\input{table}"]
    (tmp_path / "paper.tex").write_text("\n".join([*lines, r"\end{document}"]))
    command = ["pdflatex", "-halt-on-error", "-no-shell-escape", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=120)
    return done.stdout.decode("latin-1"), done.returncode == 0 and (
        tmp_path / "paper.pdf"
    ).is_file()


def test_latex_compiles_with_booktabs(folder, tmp_path):
    narrow = make_table(read_study(folder), Spec(columns=dict.fromkeys(["row", "score", "p"])))
    log, is_fine = compiled(tmp_path, latex([*parts_of(folder), narrow]))
    assert is_fine, log[-1500:]


def test_latex_of_hostile_texts_compiles_and_reads_no_file(hostile, tmp_path):
    log, is_fine = compiled(tmp_path, latex(parts_of(hostile)))
    assert is_fine, log[-1500:]
    assert "/etc/passwd" not in log


def test_a_wide_table_is_set_as_one_panel_a_block(folder):
    study = read_study(folder)
    narrow = Spec(columns=dict.fromkeys(["row", "score", "p"]))
    assert latex([make_table(study)]).count(r"\begin{tabular}") == 2
    assert latex([make_table(study, narrow)]).count(r"\begin{tabular}") == 1
    assert r"\cmidrule" in latex([make_table(study, narrow)])


# -- command line ----------------------------------------------------------------------------------


def test_the_example_of_the_documentation_is_a_spec(folder, tmp_path):
    page = (ROOT / "docs" / "studies.md").read_text()
    page = page.partition("\n## Tables\n")[2].partition("\n## ")[0]
    example, grid = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "paper.yaml").write_text(example)
    spec = read_spec(tmp_path / "paper.yaml")
    assert {*yaml.safe_load(example), *yaml.safe_load(grid), "groups", "metrics", "bases"} == {
        *Spec.__dataclass_fields__
    }
    table = make_table(read_study(folder), spec)
    assert [row.name for row in table.rows] == ["base", "full", "lora_v", "lora_l"]
    assert [c.title for c in table.columns][:3] == ["method", "parameters", "exact match, %"]
    assert [title for title, _ in next(table.headings())] == ["", "New answers", "New skill"]
    assert (table.caption, table.label) == (spec.caption, "tab:where")
    (tmp_path / "grid.yaml").write_text(grid)
    assert make_table(read_study(folder), read_spec(tmp_path / "grid.yaml")).rows[0].name == "LoRA"


def test_the_format_is_the_ending_s_and_the_file_is_what_is_printed(folder, tmp_path, capsys):
    for ending, format in {"md": "md", "tex": "tex", "csv": "csv", "html": "html"}.items():
        out = tmp_path / f"t.{ending}"
        assert call("table", folder, "--out", out) == 0
        assert call("table", folder, "--format", format) == 0
        assert capsys.readouterr().out == out.read_text()
    assert call("table", folder) == 0
    assert "Where to adapt: gauge" in capsys.readouterr().out
    assert call("table", folder, "--appendix", "--task", "gauge") == 0
    assert "## References" in capsys.readouterr().out


def test_one_task_and_metric_may_be_asked_for(folder, capsys):
    assert call("table", folder, "--task", "gauge", "--metric", "loss", "--format", "csv") == 0
    lines = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert {(line["task"], line["metric"]) for line in lines} == {("gauge", "loss")}
    assert {line["row"] for line in lines} >= {"base", "lora_v"}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("columns: [row, scor]", "there is no column 'scor'. Did you mean score?"),
        ("cols: [row]", "unknown key cols. Did you mean columns?"),
        ("pivot: {rows: method, column: component}", "unknown key pivot.column. Did you mean columns?"),
        ("pivot: {rows: method, columns: kind}", "no variable 'kind'. There is: component, method."),
        ("rows: [lora_w]", "there is no row 'lora_w'. Did you mean lora_v?"),
        ("reference: lora", "has no row 'lora'"),
        ("tasks: [formt]", "there is no task 'formt'. Did you mean format?"),
        ("metrics: [exact]", "there is no metric 'exact'"),
        ("family: all", "family: "),
        ("decimals: 9", "decimals: 9 is greater than the maximum of 6"),
        ("columns: score", "columns is neither a list of names nor name: title"),
        ("[1, 2]", "the file: [1, 2] is not of type 'object'"),
        ("columns: [", "is not valid YAML"),
    ],
)  # fmt: skip
def test_a_wrong_spec_is_one_line_and_exit_code_2(folder, tmp_path, capsys, spec, message):
    (tmp_path / "paper.yaml").write_text(spec)
    assert call("table", folder, "--spec", tmp_path / "paper.yaml") == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert not printed.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["FOLDER", "--spec", "no.yaml"], "spec no.yaml is not a file"),
        (["FOLDER", "--out", "t.docx"], "ends with none of .md, .tex, .csv, .html; give --format"),
        (["FOLDER", "--format", "docx"], "docx is not one of md, tex, csv, html"),
        (["FOLDER", "--appendix", "--format", "csv"], "an appendix is more than one table"),
        (["FOLDER", "--metrc", "loss"], "unknown argument --metrc. Did you mean metric?"),
        (["FOLDER", "--out", "/proc/t.md"], "/proc/t.md could not be written"),
        (["EMPTY"], "has no record yet"),
        (["EMPTY/no"], "is not a folder"),
        ([], "folder"),
    ],
)
def test_a_wrong_command_is_one_line_and_exit_code_2(folder, tmp_path, capsys, arguments, message):
    named = {"FOLDER": str(folder), "EMPTY": str(tmp_path)}
    words = [named.get(word, word.replace("EMPTY", str(tmp_path))) for word in arguments]
    assert call("table", *words) == 2
    assert message in (printed := capsys.readouterr().err)
    assert printed.count("\n") == 1


def test_a_folder_whose_records_are_all_damaged_and_a_damaged_study_file_are_one_line(
    copied, capsys
):
    content = json.loads((copied / "study.json").read_text())
    write_json(copied / "study.json", content | {"rows": [{"name": "a", "title": 3}]})
    assert call("table", copied) == 2
    assert "study.json has as rows[0].title not text; run the study" in capsys.readouterr().err
    (copied / "study.json").unlink()
    for path in copied.rglob("result.json"):
        path.write_text("[]")
    assert call("table", copied) == 2
    printed = capsys.readouterr().err
    assert "no record that can be read: record" in printed
    assert printed.count("\n") == 1


def test_a_table_imports_no_torch(folder, tmp_path):
    code = (
        "import sys; from vlmpeft.__main__ import main\n"
        "code = main(['table', sys.argv[1], '--out', sys.argv[2]])\n"
        "heavy = {'torch', 'transformers', 'peft', 'lightning', 'matplotlib', 'scipy.stats', 'pandas'}\n"
        "sys.exit(code or ', '.join(heavy & {*sys.modules}) or None)"
    )
    for ending in ("html", "md"):
        command = [sys.executable, "-c", code, str(folder), str(tmp_path / f"t.{ending}")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_headings_and_paragraphs_are_what_they_are_in_each_format():
    parts = [Heading("a & b"), Paragraph("c_d")]
    assert markdown(parts) == "## a &amp; b\n\nc_d\n"
    assert latex(parts).splitlines()[1:] == [r"\subsection*{a \& b}", "", r"c\_d\par"]
    assert "<h2>a &amp; b</h2>" in html(parts, "t")
