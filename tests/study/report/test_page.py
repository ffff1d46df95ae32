"""The report of a study: its content, that injected text is harmless, and that it works in a browser."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
import threading
from functools import cache
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from jinja2 import UndefinedError
from made_tables import asked, study
from markupsafe import escape
from PIL import Image

from results.table import write
from study.claims.paper_claims import judge_claims
from study.report.html.page import ENVIRONMENT, page, write_page

SECTIONS = ("headline", "claims", "runs", "figures", "samples", "protocol", "provenance", "cost")
VOID = ("meta", "link", "img", "input", "br")
HOSTILE = "<script>document.title='owned'</script>\"'><img src=x onerror=alert(1)>&amp;"
EMPTY_CELL = '<td class="n"></td>'


@pytest.fixture(scope="module")
def table():
    """Four tokenizers and a generator on each, drawn from after three numbers of images, with every number."""
    judges = (("efficientnet_lite2", 64), ("classifier", 32))
    found = study(marks=(4800, 9600, 19200), judges=judges, train_seconds=40.0, evaluate_seconds=30.0)
    generator = found["kind"] == "generator"
    found.loc[generator, "run"] = found["tokenizer"] + " + " + found["generator"]
    for name, scale in (("kid", 50), ("precision", 5000), ("recall", 10_000)):
        found.loc[generator, name] = found["gfid"] / scale
    found.loc[~generator, "perceptual"] = found["rfid"] / 1000
    places = found[generator].groupby(["fingerprint", "images_seen"]).ngroup()
    found.loc[generator, "sheet"] = [f"samples-{number:02}.png" for number in places]
    return found


@pytest.fixture
def drawn(tmp_path):
    """A folder of figures: three of FIGURES, and an unknown one in a subfolder."""
    return draw_figures(tmp_path / "figures" / "made")


def draw_figures(folder: Path) -> Path:
    for name in ("scaling", "frontier", "dilemma", "search/width of it"):
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 20), "white").save(path)
    return folder


@pytest.fixture(scope="module")
def plain(table, tmp_path_factory):
    """The page of the table as it is; two figures have not been drawn."""
    folder = tmp_path_factory.mktemp("plain")
    figures = draw_figures(folder / "figures" / "made")
    return page(save(table, folder / "made"), figures, {"samples": "no sheet", "guidance": "<b> differs"})


@cache
def sheet(number: int) -> bytes:
    """Eight rows of eight pictures, no two sheets alike."""
    noise = np.random.default_rng(number).integers(0, 4, (8 * 32, 8 * 32, 1), dtype=np.uint8) * 80
    Image.fromarray(noise.repeat(3, axis=2)).save(memory := io.BytesIO(), "PNG")
    return memory.getvalue()


def draw_sheets(folder: Path) -> None:
    """Those that the table names for its generators."""
    folder.mkdir()
    for number in range(12):
        (folder / f"samples-{number:02}.png").write_bytes(sheet(number))


def save(table: pd.DataFrame, folder: Path, sheets: bool = True) -> Path:
    """results/<study> with this table and its sheets."""
    write(table, folder / "table.csv")
    if sheets:
        draw_sheets(folder / "sheets")
    return folder


class Reader(HTMLParser):
    """Elements with their attributes; fails if they are not nested correctly."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        assert len({name for name, _ in attrs}) == len(attrs), (tag, attrs)
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, self.getpos()

    def all(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


def section(text: str, name: str) -> str:
    return text.split(f'<section id="{name}"')[1].split("</section>")[0]


def test_the_page_has_all_parts_and_needs_nothing_else(plain):
    read = Reader(plain)
    assert tuple(one["id"] for one in read.all("section")) == SECTIONS
    ids = [attributes["id"] for _, attributes in read.found if "id" in attributes]
    assert len(set(ids)) == len(ids)
    links = [one["href"] for one in read.all("a")]
    assert links == ["#main", *(f"#{name}" for name in SECTIONS)]
    assert {link[1:] for link in links} <= set(ids)
    for tag, attributes in read.found:
        for name in ("src", "href", "srcset", "action", "data", "style"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, name)
    assert all(image["alt"] and image["width"] for image in read.all("img"))
    assert not re.search(r"@import|url\(|fetch\(", plain)
    assert len(read.all("script")) == len(read.all("style")) == 1


def test_figures_stand_in_their_order_and_those_of_others_after_them(plain):
    assert 'id="figure-frontier"' in section(plain, "headline")
    shown = section(plain, "figures")
    assert re.findall(r'id="figure-([^"]+)"', shown) == ["dilemma", "scaling", "search/width-of-it"]
    assert "The dilemma itself: what a wider latent does" in shown
    assert "width of it. Files: <code>figures/made/search/width of it.png" in shown
    assert "samples: no sheet" in shown
    assert "guidance: &lt;b&gt; differs" in shown


def test_claims_have_the_verdicts_of_the_command(table, plain):
    shown = section(plain, "claims")
    judged = [one for one in judge_claims(table) if one.places]
    assert len(judged) > 3
    assert re.findall(r'class="verdict (\w+)"', shown) == [one.verdict.split()[0] for one in judged]
    assert all(escape(line) in shown for one in judged for line in one.numbers())


def test_runs_have_every_number_of_the_table_once(table, plain):
    text = section(plain, "runs")
    shown = re.findall(r'data-v="([^"]+)"', text)
    for name in ("gfid", "rfid", "kid", "recall"):
        for value in table[name].dropna().unique():
            expected = int((table[name] == value).sum())
            assert shown.count(f"{value:.7g}") >= expected, (name, value)
    assert EMPTY_CELL not in text
    assert len(re.findall(r"<tr data-", text)) == len(table) / 2  # two judges share a line


def test_a_missing_number_is_an_empty_cell_and_too_few_samples_are_marked(table, drawn, tmp_path):
    changed = table.copy()
    changed.loc[0, "kid"] = np.nan
    changed.loc[1, "comparable"] = False
    text = section(page(save(changed, tmp_path / "made"), drawn, {}), "runs")
    assert text.count(EMPTY_CELL) == 1
    assert "nan" not in text.lower()
    assert "† not comparable" in text


def test_a_tokenizer_that_shifts_colours_or_does_not_fit_its_weights_has_a_warning(table, plain, drawn, tmp_path):
    assert "Warnings" not in plain
    table = table.copy()
    first, second = table[table["kind"] == "tokenizer"]["run"].unique()[:2]
    table.loc[table["run"] == first, "colour_shift"] = 3.25
    table.loc[table["run"] == second, "pretrained_weights"] = "w.pt 0123"
    table.loc[table["run"] == second, "psnr"] = 12.5
    text = section(page(save(table, tmp_path / "made"), drawn, {}), "runs")
    listed = re.findall(r"<li>(.*?)</li>", text.split("Warnings")[1])
    assert len(listed) == 2  # one a tokenizer, whoever judges it
    assert listed[0].startswith(f"{first}: ") and "3.2/255" in listed[0]
    assert listed[1].startswith(f"{second}: ") and "12.5 dB PSNR" in listed[1]
    assert "colour shift, 1/255" in text


def test_trials_of_searches_are_counted_and_not_listed(table, plain, drawn, tmp_path):
    trials = asked(table[table["kind"] == "generator"], "search-sampling").assign(guidance_scale=1.5)
    trials["protocol"] = trials["protocol"] + "s"
    with_trials = page(save(pd.concat([table, trials]), tmp_path / "made"), drawn, {})
    assert f"{len(trials)} rows of searches" in section(with_trials, "runs")
    assert "rows of searches" not in plain
    for name in ("claims", "samples", "protocol", "cost"):
        assert section(with_trials, name) == section(plain, name)


def test_what_is_varied_has_a_column(table, plain, drawn, tmp_path):
    more = asked(table[table["kind"] == "generator"], "guidance").assign(guidance_scale=1.5)
    more["protocol"] = more["protocol"] + "g"
    text = page(save(pd.concat([table, more]), tmp_path / "made"), drawn, {})
    assert ">guidance scale</button>" in section(text, "runs")
    assert ">guidance scale</button>" not in section(plain, "runs")
    assert '<option value="guidance">' in section(text, "runs")
    assert section(text, "samples").count('class="strip"') == 12  # tries of a scale are not training


def test_everything_from_outside_is_escaped(table, drawn, tmp_path):
    changed = table.copy()
    columns = ("run", "tokenizer", "generator", "extractor", "reference", "device", "commit", "solver", "data", "scale")
    for name in (*columns, "foundation_model", "pretrained_weights", "versions", "weights", "label_scheme"):
        changed[name] = changed[name].where(changed[name] == "", changed[name] + HOSTILE)
    changed["ablations"] = [("frontier", "<script>x</script>")] * len(changed)
    changed.loc[0, ["state", "reason", "log", "gfid"]] = ["failed", HOSTILE, HOSTILE, np.nan]
    changed.loc[1, "sheet"] = f"../{HOSTILE.replace('/', '')}.png"
    study = save(changed, tmp_path / "a<script>b")
    (drawn / "<script>alert(1)<").mkdir()
    Image.new("L", (9, 9)).save(drawn / "<script>alert(1)<" / '"onload=x.png')
    text = page(study, drawn, {HOSTILE: HOSTILE})
    read = Reader(text)
    assert len(read.all("script")) == 1
    assert not [attributes for _, attributes in read.found if any(name.startswith("on") for name in attributes)]
    assert text.count(escape(HOSTILE)) > 50


def test_a_value_that_the_template_does_not_get_is_an_error():
    with pytest.raises(UndefinedError, match="'study' is undefined"):
        ENVIRONMENT.get_template("page.html").render(style="", style_hash="", script="", script_hash="")


def test_the_same_table_gives_the_same_bytes(table, drawn, tmp_path):
    study = save(table, tmp_path / "a" / "made")
    first = write_page(study, drawn).read_bytes()
    again = save(table.sample(frac=1, random_state=0), tmp_path / "b" / "made")
    assert write_page(again, drawn).read_bytes() == first
    assert [path.name for path in study.iterdir() if path.suffix != ".csv"] != []
    assert not list(study.glob(".*"))


def test_a_study_without_a_finished_run_says_why(table, tmp_path):
    lost = table.assign(state="pending", sheet="")
    numbers = [name for name in table if table[name].dtype == "float64"]
    lost[numbers] = np.nan
    lost.loc[lost["kind"] == "tokenizer", ["state", "reason"]] = ["failed", "no room on the disk"]
    text = page(save(lost, tmp_path / "made", sheets=False), tmp_path / "nowhere", {})
    assert tuple(one["id"] for one in Reader(text).all("section")) == SECTIONS[:3] + SECTIONS[4:]
    assert "No figure has been drawn" in text
    assert section(text, "runs").count("<strong>failed: no room on the disk</strong>") == 4
    assert section(text, "runs").count("after 4,800, 9,600, 19,200 images: <strong>pending</strong>") == 4
    assert "No claim can be judged" in section(text, "claims")
    assert "No generator has drawn samples yet" in section(text, "samples")
    assert "Nothing has been measured yet" in section(text, "protocol")
    assert "Nothing has been trained" in section(text, "cost")


def test_an_empty_table_is_a_page(table, tmp_path):
    Reader(page(save(table[:0], tmp_path / "made", sheets=False), tmp_path, {}))


def test_without_sheets_or_with_damaged_ones_the_page_says_so(table, drawn, tmp_path):
    study = save(table, tmp_path / "made", sheets=False)
    assert "results/made/sheets/ is gone" in section(page(study, drawn, {}), "samples")
    names = sorted(set(table.loc[table["kind"] == "generator", "sheet"]))
    draw_sheets(study / "sheets")
    (study / "sheets" / names[0]).write_bytes(sheet(0)[:900])
    (study / "sheets" / names[1]).unlink()
    Image.new("L", (5, 5)).save(study / "sheets" / names[2])
    (drawn / "dilemma.png").write_bytes(b"\x89PNG")
    text = page(study, drawn, {})
    assert f"{names[0]} cannot be read" in section(text, "samples")
    assert f"{names[1]} is not there" in section(text, "samples")
    assert f"{names[2]} is no sheet" in section(text, "samples")
    assert section(text, "samples").count("<img") == len(names) - 3
    assert "dilemma.png cannot be read" in section(text, "figures")


def test_samples_are_the_first_row_of_each_sheet_and_large_ones_are_reduced(table, drawn, tmp_path):
    study = save(table, tmp_path / "made")
    large = table.loc[table["images_seen"] == 19200, "sheet"].iloc[0]
    Image.effect_noise((8 * 256, 8 * 256), 80).convert("RGB").save(study / "sheets" / large)
    shown = re.findall(r'src="data:image/(\w+);base64,([^"]+)"', section(page(study, drawn, {}), "samples"))
    assert len(shown) == 12
    sheets = [np.asarray(Image.open(path))[:32] for path in (study / "sheets").glob("samples-*") if path.name != large]
    for form, data in shown:
        picture = Image.open(io.BytesIO(base64.b64decode(data)))
        if form == "jpeg":
            assert picture.size == (512, 64)
            assert len(data) < 60_000
        else:
            assert any(np.array_equal(sheet, np.asarray(picture)) for sheet in sheets)
    assert [form for form, _ in shown].count("jpeg") == 1


def test_cost_counts_a_training_once_and_a_judgement_once(table, drawn, tmp_path):
    changed = table.assign(train_seconds=3600.0, evaluate_seconds=60.0)
    text = section(page(save(changed, tmp_path / "made"), drawn, {}), "cost")
    assert "Training took <strong>8.0 h</strong>" in text  # 4 tokenizers, 4 generators
    assert "judging <strong>16 min</strong>" in text  # 4 tokenizers, 4 generators after 3 numbers of images


# In a browser

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed (Debian: apt install chromium)")
NO_POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')


def open_page(path: Path, *options: str) -> str:
    """The document as headless Chromium has it after its scripts have run."""
    command = [
        CHROMIUM,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={path.parent / 'profile'}",
    ]
    command += ["--disable-background-networking", "--disable-component-update", "--no-first-run"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", *options]
    done = subprocess.run([*command, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def drive(text: str, script: str, folder: Path) -> dict:
    """Run a script in a page; returns the object that the script returns."""
    text = NO_POLICY.sub("", text)  # which would refuse this script
    found = f"(() => {{ try {{ {script} }} catch (error) {{ return String(error); }} }})()"
    probe = f"document.documentElement.dataset.probe = JSON.stringify({found})"
    path = folder / "driven.html"
    path.write_text(text.replace("</body>", f"<script>{probe}</script></body>"))
    attributes = Reader(open_page(path).replace("<!DOCTYPE html>", "")).all("html")[0]
    return json.loads(attributes["data-probe"])


STEPS = """
const table = document.querySelectorAll("table.filtered")[1], body = table.tBodies[0];
const button = (title) => [...table.querySelectorAll("thead button")].find((one) =>
  (one.getAttribute("aria-label") || one.textContent).includes(title));
const column = (title) => Number(button(title).dataset.column);
const cells = (title) => [...body.rows].filter((row) => !row.hidden).map((row) => row.cells[column(title)].textContent);
const found = {};
"""


@browser
def test_sorting_works_and_says_so(table, drawn, tmp_path):
    changed = table.copy()
    changed.loc[changed[changed["kind"] == "generator"].index[0], "kid"] = np.nan
    text = page(save(changed, tmp_path / "made"), drawn, {})
    script = """
    const judged = "KID-5K\u00a0↓, EfficientNet-Lite2";
    found.planned = cells(judged);
    for (const state of ["up", "down", "back"]) {
      button(judged).click();
      found[state] = cells(judged);
      found[state + "_said"] = [...table.querySelectorAll("[aria-sort]")].map((head) => head.ariaSort);
    }
    button("generator").click();
    found.names = cells("generator");
    button("images seen").click();
    found.seen = cells("images seen");
    found.sorted = table.querySelectorAll("[aria-sort]").length;
    return found;
    """
    found = drive(text, STEPS + script, tmp_path)
    numbers = sorted(float(cell.replace(",", "")) for cell in found["planned"] if cell)
    judge = changed["extractor"] == "efficientnet_lite2"
    assert len(numbers) == int(changed.loc[judge, "kid"].notna().sum()) >= 11
    for name, order in (("up", numbers), ("down", numbers[::-1])):
        shown = [float(cell.replace(",", "")) for cell in found[name] if cell]
        assert shown == order
        assert len(numbers) == 12 or found[name][-1] == ""  # what is missing comes last either way
    assert (found["up_said"], found["down_said"], found["back_said"]) == (["ascending"], ["descending"], [])
    assert found["back"] == found["planned"]
    names = [name.split(" ")[0] for name in found["names"]]
    assert list(dict.fromkeys(names)) == ["f4d4", "f4d4-lite0", "f4d16", "f4d16-lite0"]  # numbers as numbers
    assert found["seen"] == ["4,800"] * 4 + ["9,600"] * 4 + ["19,200"] * 4
    assert found["sorted"] == 1


@browser
def test_filtering_works_and_says_how_many_are_left(plain, tmp_path):
    script = """
    const form = document.getElementById("filter"), said = () => document.getElementById("shown").textContent;
    const change = (name, key, value) => {
      form.elements[name][key] = value;
      form.dispatchEvent(new Event("input"));
      return [said(), cells("generator").length];
    };
    found.all = said();
    found.words = change("words", "value", " LITE0  f4d16 ");
    found.last = change("last", "checked", true);
    found.none = change("words", "value", "no such run");
    form.elements.words.value = "";
    found.one = change("tokenizer", "value", "f4d4");
    found.hidden = getComputedStyle(body.rows[0]).display;
    return found;
    """
    found = drive(plain, STEPS + script, tmp_path)
    assert found["all"] == "16 of 16 rows"
    assert found["words"] == ["4 of 16 rows", 3]  # a tokenizer and its generator after three numbers of images
    assert found["last"] == ["2 of 16 rows", 1]
    assert found["none"] == ["0 of 16 rows", 0]
    assert found["one"] == ["2 of 16 rows", 1]  # not the aligned one, whose name begins alike
    assert found["hidden"] == "none"


@browser
def test_controls_are_reached_by_keyboard_and_have_names(plain, tmp_path):
    script = """
    const first = document.querySelector("a"), all = document.querySelectorAll("input, select, button, .scroll");
    return {
      first: first.getAttribute("href"), count: all.length,
      unreachable: [...all].filter((one) => one.tabIndex < 0).length,
      unnamed: [...all].filter((one) => !(one.ariaLabel || one.labels?.[0]?.textContent || one.textContent)).length,
      outside: [...document.querySelectorAll("[aria-sort], thead button")].filter((one) => !one.closest("th")).length,
    };
    """
    found = drive(plain, script, tmp_path)
    assert found["first"] == "#main"
    assert found["count"] > 20
    assert (found["unreachable"], found["unnamed"], found["outside"]) == (0, 0, 0)


@browser
def test_no_script_but_ours_runs_whatever_a_name_holds(table, drawn, tmp_path):
    changed = table.assign(run=table["run"] + HOSTILE, tokenizer=table["tokenizer"] + HOSTILE)
    text = page(save(changed, tmp_path / "made"), drawn, {})
    path = tmp_path / "injected.html"
    path.write_text(text.replace("</main>", f"</main>{HOSTILE}"))  # had we forgotten to escape it
    shown = open_page(path)
    assert "16 of 16 rows" in shown  # ours has run
    assert "<title>Study made</title>" in shown
    assert '<html lang="en" class="js">' in shown


@browser
def test_the_page_asks_the_network_for_nothing(plain, tmp_path):
    asked = []

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        do_CONNECT = do_POST = do_GET

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        proxy = f"--proxy-server=http://127.0.0.1:{server.server_port}"
        control = tmp_path / "control.html"
        control.write_text('<img src="http://asked.invalid/picture.png">')
        open_page(control, proxy)
        assert "http://asked.invalid/picture.png" in asked
        assert not re.search(r"https?:|google|gvt1", plain)
        path = tmp_path / "report.html"
        for policy in (True, False):
            asked.clear()
            path.write_text(plain if policy else NO_POLICY.sub("", plain))
            assert "16 of 16 rows" in open_page(path, proxy)
            browsers_own = [url for url in asked if re.search(r"google|gvt1", url)]
            assert asked == browsers_own
    finally:
        server.shutdown()
        server.server_close()
