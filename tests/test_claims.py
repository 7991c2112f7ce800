"""``quatrain claims``: the page asks nobody, a killed run goes on, bad input gets a line."""

import re
import shutil
import subprocess

import pytest
from tests.stopping import Killed, stopped_often

from quatrain import records
from quatrain.cli import main
from quatrain.errors import ConfigError, DataError
from quatrain.lab.claims import CLAIMS, costs, reach, recorded, run, training
from quatrain.lab.claims.claim import Row
from quatrain.lab.claims.config import MIXERS, ClaimsConfig
from quatrain.records import Writer
from quatrain.report import claims

TINY = ClaimsConfig(
    params=20_000, lengths=(16, 32, 64), memory_lengths=(64, 128), contexts=(16, 32, 64), far=(16, 64),
    batches=(1, 2), repeats=2, reach=16, demo_steps=2, demo_length=12,
)  # fmt: skip
QUICK = ("states", "s4d", "rnn-gradient")


def score(task: str, mixer: str, value: float, **more) -> Row:
    about = {
        "metric": "token accuracy",
        "at": 256,
        "length": 40,
        "machine": "another machine",
        "date": "2026-01-02",
    }
    return {"task": task, "mixer": mixer, "value": value, "seed": 0, "params": 1000, **about, **more}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run at a tiny size, with some recorded scores, one of them hostile."""
    out = tmp_path_factory.mktemp("claims")
    rows = [
        score("parity", m, v, at=at)
        for m, far in zip(MIXERS, (1, 1, 0.5, 0.5), strict=True)
        for at, v in ((40, 1), (80, far), (256, far))
    ]
    rows += [score("selective_copying", m, v) for m, v in (("s6", 0.998), ("s4d", 0.18))]
    rows += [
        score("mqar", "s6", v, model=m, params=p) for m, v, p in (("s6", 0.9, 1000), ("s6-n2", 0.1, 990))
    ]
    rows += [score("adding", "lstm", 0.001, metric="loss"), score("adding", "rnn", 0.1, metric="loss")]
    rows += [score("mqar", "attention", 0.99996, machine="<script>alert(1)</script>")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reach, "SEEDS", 2)
        patch.setattr(costs, "peak", lambda config, work, lengths: {n: n << 20 for n in lengths})
        patch.setattr(recorded, "shipped", lambda: [("score", row) for row in rows])
        events: list[dict] = []
        run.run(TINY, out, events.append, command="quatrain claims")
    return out, events


@pytest.fixture(scope="module")
def page(finished):
    return claims.write(finished[0])


# -- the run


def test_a_run_tells_what_it_does_and_how_long_it_takes(finished):
    stages = [event for event in finished[1] if event["kind"] == "stage"]
    assert [event["stage"] for event in stages] == list(run.MEASUREMENTS)
    assert all(event["left"] > 0 for event in stages)
    shares = [event["share"] for event in finished[1] if event["kind"] == "share"]
    assert len(shares) > 30
    assert all(0 <= share <= 1 for share in shares)


def test_every_claim_has_a_verdict_in_the_records(finished):
    found = run.found_in(finished[0] / "records.jsonl")
    assert {row["id"] for row in found["verdict"]} == set(CLAIMS)
    judged = {row["id"]: row["verdict"] for row in found["verdict"]}
    assert judged["rnn-state"] == judged["mamba-ssm"] == judged["loses-parity"] == "agrees"
    assert judged["mamba-selection"] == "agrees"
    assert judged["loses-audio"] == "not yet measured"
    assert [row["complete"] for row in found["end"]] == [True]


def test_a_killed_run_goes_on_and_measures_nothing_twice(tmp_path, monkeypatch):
    counted: dict[str, int] = {}

    def counting(name):
        stage = run.MEASUREMENTS[name]

        def measure(config, tell):
            rows = stage.measure(config, tell)
            counted[name] = counted.get(name, 0) + 1
            return rows

        return stage._replace(measure=measure)

    monkeypatch.setattr(run, "MEASUREMENTS", {name: counting(name) for name in QUICK})
    kills = stopped_often(lambda events: run.run(TINY, tmp_path, events), 4, 9)
    assert kills >= 2
    rows = list(records.read(tmp_path / "records.jsonl"))
    stages = [row["stage"] for row in rows if row["kind"] == "done"]
    assert stages == ["start", *QUICK, "end"]
    assert len([row for row in rows if row["kind"] == "states"]) == len(MIXERS)
    assert run.run(TINY, tmp_path).again
    assert all(count <= kills + 1 for count in counted.values())


def test_other_settings_in_the_same_directory_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "MEASUREMENTS", {})
    run.run(TINY, tmp_path)
    with pytest.raises(ConfigError, match="holds a run with other settings"):
        run.run(ClaimsConfig(), tmp_path)


def test_a_signal_says_how_to_go_on(tmp_path, monkeypatch):
    def stop(config, tell):
        raise KeyboardInterrupt

    stage = run.MEASUREMENTS["states"]._replace(measure=stop)
    monkeypatch.setattr(run, "MEASUREMENTS", {"states": stage})
    with pytest.raises(KeyboardInterrupt, match=r"stopped; what was measured is saved in .*same command"):
        run.run(TINY, tmp_path)


def test_a_run_of_another_command_is_one_short_line(tmp_path):
    (tmp_path / "config.toml").write_text('task = "parity"\nseeds = 2\n')
    with pytest.raises(ConfigError, match=r"holds a run of another command; choose another directory$"):
        run.run(TINY, tmp_path)


def test_training_takes_the_place_of_shipped_records(tmp_path, monkeypatch):
    from dataclasses import replace

    asked = []

    def reproduce(recipe, out, events, **more):
        asked.append((recipe.task, bool(recipe.reduced), more["device"]))
        events({"kind": "plan", "left": 2})
        events({"kind": "done", "left": 1})
        out.mkdir(parents=True)
        about = {"task": recipe.task, "reduced": recipe.reduced, "versions": {}, "commit": "", "command": ""}
        about |= {"recipe": {"test": {"metric": "token_accuracy"}, "train": {"lengths": [1, 40]}}}
        with Writer(out / "records.jsonl") as writer:
            writer.write("paper", **about, machine={"cpu": "this machine", "device": "cpu", "cores": 2})
            writer.write("model", mixer="rnn", params=77)
            writer.write("tested", mixer="rnn", seed=0, length=256, status="ok", loss=0.1, token_accuracy=0.9)
            writer.write("tested", mixer="rnn", seed=1, length=256, status="failed")

    monkeypatch.setattr(run, "MEASUREMENTS", {})
    monkeypatch.setattr(training, "reproduce", reproduce)
    monkeypatch.setattr(training, "tasks", lambda: ("parity",))
    shipped = [("score", score("parity", "s6", 0.5)), ("score", score("mqar", "s6", 0.5))]
    monkeypatch.setattr(recorded, "shipped", lambda: shipped)
    run.run(replace(TINY, train=True), tmp_path, lambda row: None)
    assert asked == [("parity", True, "cpu")]
    found = run.found_in(tmp_path / "records.jsonl")["score"]
    assert [(row["task"], row["mixer"], row["value"]) for row in found] == [
        ("mqar", "s6", 0.5),
        ("parity", "rnn", 0.9),
    ]
    assert (found[1]["at"], found[1]["length"], found[1]["params"]) == (256, 40, 77)


def test_every_task_that_is_trained_has_a_recipe():
    assert set(training.tasks()) <= set(recorded.TASKS)
    assert len(training.tasks()) >= 6


# -- the page


def test_the_page_holds_everything_and_asks_nobody(page):
    text = page.read_text("utf-8")
    assert len(text.encode()) < 2_000_000
    for claim in CLAIMS.values():
        assert f'id="{claim.id}"' in text
    links = set(re.findall(r'href="([^"]+)"', text.partition("<script>")[0]))
    assert all(link.startswith("#") for link in links)
    assert {link[1:] for link in links} <= set(re.findall(r' id="([^"]+)"', text))
    body = text.partition("<footer>")[0]
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", body)
    assert "<script>alert" not in text
    assert "default-src 'none'" in text


def test_ids_are_given_once(page):
    text = page.read_text("utf-8").partition("<script>")[0]
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))


def test_the_table_of_beliefs_links_every_claim(page):
    text = page.read_text("utf-8")
    table = text[text.index('<table class="beliefs">') : text.index("</table>")]
    assert len(re.findall(r"<tr>", table)) == 5
    assert len(re.findall(r"<td", table)) == 20
    assert len(re.findall(r'<a class="verdict', table)) >= 20


def test_recorded_rows_name_their_machine_and_date(page):
    assert "another machine, 2026-01-02" in page.read_text("utf-8")


def test_the_markdown_table_has_a_line_for_each(finished, page):
    lines = (finished[0] / "table.md").read_text("utf-8").splitlines()
    assert len([line for line in lines if line.startswith("| ")]) == len(CLAIMS) + 1
    assert lines[0].startswith(f"Of {len(CLAIMS)} things that people say, ")


def test_unfinished_or_missing_records_are_refused(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        claims.write(tmp_path)
    with Writer(tmp_path / "records.jsonl") as writer:
        writer.write("claims", commit="")
    with pytest.raises(DataError, match="hold no verdict"):
        claims.write(tmp_path)
    assert not (tmp_path / "table.md").exists()


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(1280, 1), (390, 0)], ids=["1280-light", "390-dark"])
def test_browser_draws_every_chart_and_asks_nobody(page, tmp_path, width, scheme):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("no Chromium on this machine")
    flags = (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--virtual-time-budget=20000",
    )
    flags += ("--host-resolver-rules=MAP * ~NOTFOUND", f"--blink-settings=preferredColorScheme={scheme}")
    flags += (f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900", "--dump-dom")
    done = subprocess.run(
        [chromium, *flags, page.as_uri()], capture_output=True, text=True, timeout=180, check=True
    )
    root = re.search(r"<html[^>]*>", done.stdout)
    data = dict(re.findall(r'data-(\w+)="([^"]*)"', root.group() if root else ""))
    assert (data["failed"], data["requests"], data["overflow"]) == ("0", "0", "no")
    assert int(data["charts"]) == page.read_text("utf-8").count('class="chart"')


# -- the command


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--out", ""], "--out = '': must name a directory"),
        (["--threads", "0"], "--threads = 0: must be at least 1"),
        (["--threads", "two"], "--threads = 'two': must be an integer"),
        (["--device", "tpu"], "device = 'tpu': must be one of auto, cpu, cuda"),
        (["everything"], "'everything': is one argument too many"),
        (["--tain"], "--tain"),
    ],
)
def test_bad_input_gets_a_line(arguments, line, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["claims", *arguments]) == 2
    assert line in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_way_is_said(capsys, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert main(["claims", "--device", "cpu", "--out", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.count("\n") <= 2
    assert (tmp_path / "file").read_text() == "mine"


def test_the_command_ends_with_a_table_and_a_page(finished, capsys, tmp_path, monkeypatch):
    shutil.copytree(finished[0], tmp_path / "out")
    monkeypatch.setattr(claims, "html", lambda found: "a page")
    monkeypatch.setattr("quatrain.cli.claims.settings", lambda *given: TINY)
    assert main(["claims", "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr()
    assert "measured before; nothing was done again" in told.out
    assert f"Of {len(CLAIMS)} things" in told.out
    assert "claims.html" in told.out
    assert (tmp_path / "out" / "claims.html").read_text() == "a page"


def test_the_command_shows_what_it_measures(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("quatrain.cli.claims.settings", lambda *given: TINY)
    monkeypatch.setattr(run, "MEASUREMENTS", {"states": run.MEASUREMENTS["states"]})
    monkeypatch.setattr(claims, "html", lambda found: "a page")
    assert main(["claims", "--out", str(tmp_path)]) == 0
    told = capsys.readouterr()
    assert "hidden states, step by step (1 of 1, about" in told.err
    assert "agrees" in told.out


def test_a_run_that_ends_between_two_stages_leaves_whole_files(tmp_path, monkeypatch):
    def killed(config, tell):
        raise Killed

    stage = run.MEASUREMENTS["states"]
    monkeypatch.setattr(run, "MEASUREMENTS", {"states": stage, "s4d": stage._replace(measure=killed)})
    with pytest.raises(Killed):
        run.run(TINY, tmp_path)
    assert not (tmp_path / "claims.html").exists()
    with pytest.raises(DataError, match="hold no verdict"):
        claims.write(tmp_path)


def test_recorded_pictures_name_models_units_and_seeds(finished):
    from quatrain.report._claim_figures import FIGURES

    found = claims.gather(records.read(finished[0] / "records.jsonl"))
    recall = FIGURES["loses-recall"](found)
    assert recall.caption.startswith("One seed each. Recorded: another machine, 2026-01-02;")
    text = str(recall.panels)
    assert "'Mamba (S6), s6-n2'" in text, "two sizes that are nearly alike are told apart by name"
    assert "'99.99 %'" in text, "what is not all is not called 100"
    assert "'values': [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]" in text, "no axis to 120 %"
    assert "'title': 'mean squared error'" in str(FIGURES["lstm-long"](found).panels)


def test_bars_compare_what_all_have_read():
    """WikiText-2: attention reads windows, others the whole text as well."""
    from quatrain.report._claim_figures import FIGURES

    same = {"task": "wikitext2", "metric": "perplexity", "seed": 0, "machine": "m", "date": "d"}
    by = {("attention", 64): 344.0, ("s6", 64): 275.0, ("s6", 1 << 20): 246.0}
    rows = [{**same, "mixer": mixer, "at": at, "value": value} for (mixer, at), value in by.items()]
    figure = FIGURES["quality-twice"]({"score": rows})
    assert figure.caption.startswith("At 64 tokens. One seed each.")
    assert "275" in str(figure.panels)
    assert "246" not in str(figure.panels)


def test_the_number_of_a_bar_stands_behind_its_seeds():
    from quatrain.report.charts import bars
    from quatrain.report.styles import STYLES

    spec = str(bars([(STYLES["s6"], 48.3, (46.0, 51.8))], "token accuracy (%)"))
    assert "'e': 51.8" in spec
