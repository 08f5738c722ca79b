"""The page of a study: what the records say, as text and nothing else; looked at by a real browser."""

import base64
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from PIL import Image

from vlmpeft.__main__ import main
from vlmpeft.study.pictures import DataThumbnails
from vlmpeft.study.report.info import Row
from vlmpeft.study.report.page.predictions import worst_of
from vlmpeft.study.report.page.report import report
from vlmpeft.study.report.plots.view import views
from vlmpeft.study.report.records import read_study

from ..conftest import ROOT
from .browser import CHROMIUM, measure
from .records import (
    failed_record,
    make_item,
    make_record,
    run_folder,
    write_losses,
    write_run_items,
    write_study,
)

EVIL = '<script>document.title = 1</script>"><img src=http://example.invalid/x.png onerror=alert(1)>\x1b[31m'
COLOURS = {0: (200, 30, 30), 1: (30, 30, 200)}


def write_data(folder):
    """Three conversations about pictures, of which one is no picture; returns the file."""
    folder.mkdir(parents=True)
    for number, colour in COLOURS.items():
        Image.new("RGB", (300, 200), colour).save(folder / f"{number}.png")
    (folder / "2.png").write_text("no picture")
    turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "gear"}]
    data = [{"id": f"item-{n}", "image": f"{n}.png", "conversations": turns} for n in range(3)]
    (folder / "test.json").write_text(json.dumps(data))
    return folder / "test.json"


def write_example(folder, losses=(1.0, 3.0, 2.0)):
    """A study of two rows on two tasks, with everything in it that is not ours to trust."""
    data = write_data(folder / "data")

    def config(r):
        lora = {"class_path": "vlmpeft.LoRA", "init_args": {"r": r}}
        return {
            "seed_everything": 7,
            "model": {"plan": {"language": lora}},
            "data": {"test": str(data), "train": str(data), "batch_size": 16},
        }

    rows = [Row("a", EVIL), Row("b", "b" * 90, illegal={"style": "no such layer"})]
    records = [
        make_record(row, seed, task, score=0.5, trainable=1000 * (1 + seed), config=config(r))
        for row, r in (("a", 4), ("b", 8))
        for seed in (0, 1)
        for task in ("format", "style")
    ]
    records[0]["versions"] = {"python": "3.12.1", "torch": EVIL}
    records.append(failed_record("b", 2, f"RuntimeError: {EVIL}"))
    write_study(folder, rows, records, title=f"A study {EVIL}", reference="a")
    for record in records[:-1]:
        items = [
            make_item(n, 0, image=[f"{n}.png"], loss=loss, generated=EVIL, prompt=f"{n} {EVIL}")
            for n, loss in enumerate(losses)
        ]
        write_run_items(folder, record, [*items, make_item(9, 1.0, image=["gone.png"])])
        write_losses(run_folder(folder, record), [3.0, 2.0, 1.0])
    damaged = folder / "runs" / "tiny" / "format" / "a" / "seed8"
    damaged.mkdir()
    (damaged / "result.json").write_text("{")
    return folder


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    return write_example(tmp_path_factory.mktemp("study") / "s")


@pytest.fixture(scope="module")
def page(example):
    return report(read_study(example), DataThumbnails())


class Reader(HTMLParser):
    """Tags with their attributes, and the text between them."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


def test_texts_of_records_are_text_on_the_page(page):
    read = Reader(page)
    assert not {"script", "iframe", "object", "link", "form"} & {tag for tag, _ in read.tags}
    assert not any(name.startswith("on") for _, attrs in read.tags for name in attrs)
    shown = EVIL.replace("\x1b", "\\x1b")
    assert "".join(read.text).count(shown) >= 10
    assert "\x1b" not in page


def test_the_page_loads_nothing_from_elsewhere(page):
    tags = Reader(page).tags
    places = [attrs[name] for _, attrs in tags for name in ("src", "href") if name in attrs]
    assert len(places) > 10
    assert all(place.startswith(("data:image/", "#")) for place in places)
    assert "@import" not in page
    assert "url(" not in page


def test_the_worst_predictions_are_the_wrong_ones_with_the_largest_loss_first(example):
    (view, _) = views(read_study(example))
    found = list(worst_of(view, None, cells=4))
    assert [one.seed for one in found] == [0, 0]
    for one in found:
        assert (one.items, one.wrong) == (4, 3)
        assert [prediction.id for prediction in one.predictions] == ["item-1", "item-2", "item-0"]
        assert [prediction.loss for prediction in one.predictions] == [3.0, 2.0, 1.0]


def test_thumbnails_are_the_pictures_of_the_data_and_small(example):
    run = read_study(example).of("a")[0]
    thumbnails = DataThumbnails()
    for number, colour in COLOURS.items():
        source = thumbnails(run, f"{number}.png")
        picture = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
        assert picture.width * picture.height <= 160 * 160
        assert picture.width / picture.height == pytest.approx(1.5, rel=0.05)
        middle = picture.getpixel((picture.width // 2, picture.height // 2))
        assert middle == pytest.approx(colour, abs=8)


def test_a_picture_that_cannot_be_read_is_its_name(page):
    pictures = [attrs for tag, attrs in Reader(page).tags if tag == "img"]
    shown = {attrs["alt"] for attrs in pictures}
    assert {"0.png", "1.png"} <= shown
    assert "2.png" not in shown
    missing = [attrs for tag, attrs in Reader(page).tags if attrs.get("class") == "none"]
    assert len(missing) == 4  # one a row and task
    assert all("2.png" in attrs["title"] for attrs in missing)


def test_pictures_stay_off_the_page_if_they_are_not_wanted(example, tmp_path):
    out = tmp_path / "page.html"
    assert main(["report", str(example), "--out", str(out), "--pictures=false"]) == 0
    assert "data:image/jpeg" not in out.read_text()
    assert "data:image/svg+xml" in out.read_text()


def test_settings_that_differ_stand_apart_from_the_common_ones(page):
    settings = re.search('<h2 id="settings">(.*?)<h2', page, re.DOTALL)[1]
    apart, _, common = settings.partition("have in common")
    for r in (4, 8):
        assert f"model.plan.language.r: {r}" in apart
        assert f"model.plan.language.r: {r}" not in common
    assert "data.batch_size: 16" in common
    assert "data.batch_size" not in apart
    assert "seed_everything" not in settings


def test_failures_are_on_the_page_with_their_reasons(page):
    failures = re.search('<h2 id="failed">(.*?)<h2', page, re.DOTALL)[1]
    assert "RuntimeError: &lt;script&gt;" in failures
    assert "seed8/result.json" in failures
    assert "no such layer" in failures


def test_the_paragraph_counts_runs_and_hours(page):
    text = "".join(Reader(page).text)
    hours = 8 * (1 + 60 + 3) / 3600
    assert f"8 runs finished, 2 failed; {hours:.3g} hours" in text


def test_mixed_versions_are_counted(page):
    environment = page.partition('<h2 id="environment">')[2]
    assert "3.11.7 (7 runs)" in environment
    assert "3.12.1 (1 run)" in environment


def test_a_study_of_failures_has_a_page(tmp_path):
    write_study(tmp_path, ["a"], [failed_record("a", 0, "boom")])
    page = report(read_study(tmp_path))
    assert "No run has finished yet." in page
    assert "boom" in page


def test_damaged_items_are_said_where_they_are_missed(tmp_path):
    record = make_record("a", 0, score=0.5)
    write_study(tmp_path, ["a"], [record])
    assert "items.jsonl.gz cannot be read" in report(read_study(tmp_path))
    (run_folder(tmp_path, record) / "items.jsonl.gz").write_bytes(b"\x1f\x8b rubbish")
    assert "items.jsonl.gz cannot be read" in report(read_study(tmp_path))


def test_another_process_writes_the_same_page_without_torch_or_pyplot(example, page, tmp_path):
    code = (
        "import sys; from vlmpeft.__main__ import main; main(sys.argv[1:]); "
        "print({'torch', 'transformers', 'matplotlib.pyplot'} & {*sys.modules})"
    )
    args = [sys.executable, "-c", code, "report", str(example), "--out", str(tmp_path / "p.html")]
    done = subprocess.run(args, capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
    assert (tmp_path / "p.html").read_text() == page


# -- in a browser ----------------------------------------------------------------------------------

browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium to open the page in")


@browser
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_it_at_both_widths_in_light_and_dark(page, dark):
    wide, narrow = measure(page, [1280, 390], dark=dark)
    for found, width in ((wide, 1280), (narrow, 390)):
        assert found["width"] == width
        assert found["scroll_width"] == width  # what is wider scrolls in its own box
        assert len(found["pictures"]) >= 10
        assert min(found["pictures"]) > 0
        assert found["requests"] == []
        assert any(EVIL.replace("\x1b", "\\x1b") in rows for rows in found["tables"])
    red, green, blue = map(int, re.findall(r"\d+", wide["background"])[:3])
    assert (max(red, green, blue) < 64) if dark else (min(red, green, blue) > 192)
