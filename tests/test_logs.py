"""scaling/logs.py: tables, our own run directories, the logs of other projects, and the command line."""
import contextlib
import gzip
import io
import json
import math
import subprocess
import sys
import time
import tracemalloc
import types
from pathlib import Path

import numpy as np
import pytest
from conftest import published_table
from hypothesis import example, given, settings
from hypothesis import strategies as st
from log_samples import BATCH, LOW, SAMPLES

from config.schema import RECIPE
from runtime.basics import UserError, exit_cleanly
from scaling import logs
from scaling.logs import read_log
from scaling.tables import foreign
from scaling.tables.csv import read_table, write_table
from scaling.tables.runs import select

ROOT = Path(__file__).resolve().parents[1]

RESULT = dict(seed=1, dataset="toy", tokenizer="gpt2", n_layer=2, n_head=4, n_embd=32, block_size=64,
              batch_tokens=4096, learning_rate=1e-3, schedule="cosine", params_total=100, params_embedding=40,
              params_non_embedding=60, params_head=0, tokens=1_000_000, unique_tokens=500_000, epochs=2.0,
              flops_6nd=3.6e8, flops_exact=4.1e8, train_loss=3.25, val_loss=3.5, val_bits_per_byte=1.1,
              val_tokens=10_000, wall_s=12.5, tok_per_s=80_000.0, device="cpu", dtype="float32",
              commit="5e10843")


def record(step, **more):
    """One line of log.jsonl, as train.py writes it."""
    return json.dumps(dict(step=step, tokens=step * 4096, flops=step * 1e9, train_loss=10 / (step + 1),
                           lr=1e-3, grad_norm=1.0, tok_per_s=8e4, elapsed_s=step / 10) | more)


def make_run(study, name, lines=(), **changes):
    """A finished run directory."""
    run = study / name
    run.mkdir(parents=True)
    (run / "config.json").write_text("{}")
    (run / "result.json").write_text(json.dumps(RESULT | changes))
    (run / "log.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return run


def write(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def command(*args):
    """`python -m scaling.logs ARGS` in this process -> (exit code, stdout, stderr)."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as stop:
        exit_cleanly(lambda: logs.main([str(arg) for arg in args]))
    code = stop.value.code or 0
    return types.SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())


def read_error(path):
    with pytest.raises(UserError) as error:
        read_table(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    return str(error.value)


# -------------------------------------------------------------------------------- tables
def test_columns_are_those_of_the_design():
    assert logs.RUN_COLUMNS[:30] == (
        "study,run,seed,dataset,tokenizer,n_layer,n_head,n_embd,block_size,batch_tokens,"
        "learning_rate,schedule,params_total,params_embedding,params_non_embedding,params_head,tokens,"
        "unique_tokens,epochs,flops_6nd,flops_exact,train_loss,val_loss,val_bits_per_byte,val_tokens,wall_s,"
        "tok_per_s,device,dtype,commit").split(",")


def test_numbers_text_and_gaps(tmp_path):
    text = "\ufeffloss, name ,run,gap\r\n1e0,x,01,\r\n,,1_0,\r\n\r\n 2.5 ,3,1,\r\n"
    table = read_table(write(tmp_path / "a.csv", text))
    assert table["loss"].dtype == float and table["gap"].dtype == float
    np.testing.assert_array_equal(table["loss"], [1, np.nan, 2.5])
    assert np.isnan(table["gap"]).all()
    assert table["name"].dtype == object and list(table["name"]) == ["x", "", "3"]
    assert list(table["run"]) == ["01", "1_0", "1"]           # names stay names


def test_names_that_look_like_numbers_are_not_numbers(tmp_path):
    table = read_table(write(tmp_path / "a.csv", "run,commit,id\n01,5e10843,1_000\n1,1234567,1000\n"))
    assert list(table["run"]) == ["01", "1"] and list(table["commit"]) == ["5e10843", "1234567"]
    assert list(table["id"]) == ["1_000", "1000"]


def test_text_after_many_numbers_keeps_the_spelling_of_all(tmp_path):
    table = read_table(write(tmp_path / "a.csv", "id,x\n" + "1e0,2\n" * 25_000 + "last,3\n"))
    assert table["id"].dtype == object and table["id"][0] == "1e0" and table["id"][-1] == "last"
    assert table["x"].dtype == float and len(table["x"]) == 25_001


def test_header_alone_is_an_empty_table(tmp_path):
    table = read_table(write(tmp_path / "a.csv", "tokens,run\n"))
    assert table["tokens"].shape == (0,) and table["tokens"].dtype == float and table["run"].dtype == object


@pytest.mark.parametrize("text, says", [
    ("1e6,2e7,3.5\n2e6,2e7,3.4\n", ": line 1 holds numbers; it must name the columns"),
    ("", "line 1 is empty"), ("\n1,2\n", "line 1 is empty"),
    ("N,1e6,2e6\nD,1,2\n", "for one run a line"), ("Of March 3\nN,D\n", "names with #"),
    ("N|D|loss\n1|2|3\n", "part the columns with commas"), ("a,b,a\n1,2,3\n", "'a' appears twice"),
    ("a,b\n1,2\n1,2,3\n", ":3: 3 cells where the header has 2"), ("a,b\n1\n", ":2: 1 cells"),
    ("# x\nsep=;\na;b;\n1;2\n1;2;3;\n", ":5: 4 cells where the header has 2"), (",,\n1,2\n", "line 1 is"),
    (b"a,b\n1,\xe9\n", "byte 0xe9 is not UTF-8 (Latin-1, perhaps); save it in UTF-8"),
    (b"PK\x03\x04\x14\0\x06", "it is an Excel book or a zip, no text; save the table as CSV"),
    (b"PAR1\x15\x04", "it is in Parquet, no text; save the table as CSV"),
    ('a,b\n1,"2\n', ":2: unexpected end"),
    ("a\n" + "x" * 200_000 + "\n", "field limit")])
def test_bad_tables_name_the_cause(tmp_path, text, says):
    assert says in read_error(write(tmp_path / "bad.csv", text))


@pytest.mark.parametrize("text", [
    "name;loss\na;3,5\nb;1e1\n", "sep=;\nname; loss ;;\na;+3,5;;\nb;1e1;;\n",
    "name\tloss\t\na\t3.5\nb\t10\t\n", "\ufeffname,loss\r\na,3.5,\r\n\r\nb, 10 \r\n",
    "# by numpy\n# name,loss\n1,3.5\n2,10\n", "#name;loss\n1;3.5\n2;10\n",
    "# two runs, by hand\nname,loss,,\na,3.5,,\n# half a line\nb,10\n",
    "name,loss\na,3.5\nname,loss\nb,10\nname,loss\n"])      # as `cat a.csv b.csv` joins them
def test_tables_as_spreadsheets_write_them(tmp_path, text):
    for name, data in (("a.csv", text.encode()), ("b.csv", text.lstrip("\ufeff").encode("utf-16")),
                       ("a.csv.gz", gzip.compress(text.encode()))):
        table = read_table(write(tmp_path / name, data))
        assert list(table) == ["name", "loss"]
        assert list(table["name"]) in (["a", "b"], [1, 2]) and list(table["loss"]) == [3.5, 10]


def test_columns_without_a_name(tmp_path):
    table = read_table(write(tmp_path / "a.csv", ",loss,,x\n0,3.5,,1\n1,3.4,,2\n"))    # pandas' index
    assert list(table) == ["index", "loss", "column_3", "x"] and list(table["index"]) == [0, 1]
    for text, cells in (("a,b\n#1,2\n#2,3\n", ["#1", "#2"]),      # names, not comments
                        ('a,b\n"1,5",2\n', ["1,5"])):          # where commas part the cells it is no 1.5
        assert list(read_table(write(tmp_path / "b.csv", text))["a"]) == cells


def test_a_comma_parts_thousands_where_one_cell_of_the_column_says_so(tmp_path):
    text = "params;tokens;loss\n331,776;5,000;3,741\n10,881,692;1,500,000,000;3,5\n"
    dots = text.replace(",", ".").replace("3.741", "3,741").replace("3.5\n", "3,5\n")
    for written in (text, text.replace(";", "\t"), dots):
        table = read_table(write(tmp_path / "a.csv", written))
        assert list(table["params"]) == [331776, 10881692] and list(table["tokens"]) == [5000, 1.5e9]
        assert list(table["loss"]) == [3.741, 3.5]


def test_missing_files_and_directories(tmp_path):
    assert read_error(tmp_path / "none.csv").endswith("none.csv: no such file")
    assert "directory" in read_error(tmp_path)


def test_write_is_deterministic_and_leaves_gaps_empty(tmp_path):
    rows = [{"x": 0.1, "n": 3, "t": "a,b"}, {"x": math.nan, "n": None},
            {"x": np.float64(1e-30), "n": np.int64(4)}]
    for _ in range(2):
        write_table(tmp_path / "a.csv", rows, ["n", "x", "t"])
        assert (tmp_path / "a.csv").read_bytes() == b'n,x,t\n3,0.1,"a,b"\n,,\n4,1e-30,\n'
    assert [p.name for p in tmp_path.iterdir()] == ["a.csv"]   # no temporary file stays


def test_a_failed_write_leaves_the_old_file(tmp_path):
    write_table(tmp_path / "a.csv", [{"x": 1}], ["x"])

    def rows():
        yield {"x": 2}
        raise UserError("the run went away")
    with pytest.raises(UserError, match="went away"):
        write_table(tmp_path / "a.csv", rows(), ["x"])
    with pytest.raises(ValueError, match="surplus"):
        write_table(tmp_path / "a.csv", [{"x": 3, "surplus": 1}], ["x"])
    assert (tmp_path / "a.csv").read_text() == "x\n1\n" and len(list(tmp_path.iterdir())) == 1


def test_the_file_is_replaced_in_one_step(tmp_path, monkeypatch):
    write_table(tmp_path / "a.csv", [{"x": 1}], ["x"])

    def refuse(source, target):
        assert Path(source).parent == tmp_path and Path(source).read_text() == "x\n2\n"     # whole, same disk
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(logs.os, "replace", refuse)
    with pytest.raises(UserError, match="No space left"):
        write_table(tmp_path / "a.csv", [{"x": 2}], ["x"])
    assert (tmp_path / "a.csv").read_text() == "x\n1\n" and len(list(tmp_path.iterdir())) == 1


def test_a_disk_that_refuses_is_one_line(tmp_path):
    for path in (tmp_path / "no" / "a.csv", write(tmp_path / "file", "") / "a.csv", tmp_path):
        with pytest.raises(UserError, match="cannot write"):
            write_table(path, [{"x": 1}], ["x"])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.floats(allow_nan=True), st.none() | st.integers(-2**53, 2**53),
                          st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), max_size=8))))
def test_round_trip(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "round.csv"
    write_table(path, [dict(zip("xnt", row)) for row in rows] + [{"t": "text"}], list("xnt"))
    table = read_table(path)
    np.testing.assert_array_equal(table["x"][:-1], np.array([x for x, _, _ in rows], float))
    np.testing.assert_array_equal(table["n"][:-1], np.array([n for _, n, _ in rows], float))
    assert list(table["t"][:-1]) == [t for _, _, t in rows]


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200) | st.text("a,1.\n\"é ", max_size=60).map(str.encode))
def test_any_bytes_are_a_table_or_a_user_error(tmp_path_factory, data):
    path = write(tmp_path_factory.getbasetemp() / "fuzz.csv", data)
    try:
        table = read_table(path)
    except UserError:
        return
    assert len({len(values) for values in table.values()}) == 1


def test_rate_and_memory_of_a_large_table(tmp_path):
    """2.5 MB here: 50 MB must load in seconds and take less than a gigabyte."""
    rows = "".join(f"r{i % 99},124000000.5,1234567890.25,3.14159265,\n" for i in range(55_000))
    path = write(tmp_path / "big.csv", "run,params,tokens,loss,flops\n" + rows)
    size = path.stat().st_size
    assert size > 2.2e6
    start = time.process_time()
    table = read_table(path)
    assert (time.process_time() - start) * 50e6 / size < 100    # 2 to 16 s on one core
    assert len(table["loss"]) == 55_000
    tracemalloc.start()
    read_table(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak * 50e6 / size < 1e9


# -------------------------------------------------------------------------------- our own runs
def test_parse_run_and_study(tmp_path):
    study = tmp_path / "kaplan"
    for name in ("d64", "d32", "d128"):
        make_run(study, name, seed=len(name))
    (study / "figures").mkdir()
    write(study / "runs.csv", "x\n")
    rows, problems = logs.parse_study(study)
    assert problems == [] and [row["run"] for row in rows] == ["d128", "d32", "d64"]
    assert rows[1] == {"study": "kaplan", "run": "d32"} | RESULT | {"seed": 3}
    write_table(study / "runs.csv", rows, logs.RUN_COLUMNS)
    table = read_table(study / "runs.csv")
    assert list(table) == logs.RUN_COLUMNS and list(table["commit"]) == ["5e10843"] * 3
    assert list(table["learning_rate"]) == [1e-3] * 3


def test_missing_numbers_stay_missing(tmp_path):
    run = make_run(tmp_path / "s", "a", val_loss=None, train_loss=math.nan)
    result = json.loads((run / "result.json").read_text())
    del result["wall_s"]
    write(run / "result.json", json.dumps(result))
    write_table(tmp_path / "runs.csv", [logs.parse_run(run)], logs.RUN_COLUMNS)
    table = read_table(tmp_path / "runs.csv")
    assert all(np.isnan(table[key][0]) for key in ("val_loss", "train_loss", "wall_s"))


def test_a_newer_run_brings_its_columns_and_an_older_one_leaves_them_empty(tmp_path):
    newer = {"attention": "sparse", "gated": False, "beta3": 0.99, "mood": None, "run": "not its name"}
    make_run(tmp_path / "s", "newer", **newer)
    older = make_run(tmp_path / "s", "older")
    result = {key: value for key, value in RESULT.items() if key not in ("wall_s", "dtype")}
    write(older / "result.json", json.dumps(result))
    rows, problems = logs.parse_study(tmp_path / "s")
    logs.write_runs(tmp_path / "runs.csv", rows)
    table = read_table(tmp_path / "runs.csv")
    assert problems == []
    assert list(table) == [*logs.RUN_COLUMNS, "attention", "gated", "beta3", "mood"]
    assert list(table["run"]) == ["newer", "older"]
    assert list(table["attention"]) == ["sparse", ""] and list(table["gated"]) == ["False", ""]
    np.testing.assert_array_equal(table["beta3"], [0.99, np.nan])
    np.testing.assert_array_equal(table["wall_s"], [12.5, np.nan])
    assert list(table["dtype"]) == ["float32", ""] and np.isnan(table["mood"]).all()


@pytest.mark.parametrize("result, says", [
    ("", "not JSON"), ('{"tokens": 1, "val_lo', "not JSON"), ("[1]", "a JSON object"),
    ("[" * 100_000, "not JSON"), (b"\xff\xfe\x00", "not JSON"),
    ("{}", "tokens is not in it"), ('{"tokens": 1}', "val_loss is not in it"),
    ('{"tokens": 1, "val_loss": "3.1"}', "val_loss cannot be '3.1'"),
    ('{"tokens": true, "val_loss": 3}', "tokens cannot be True"),
    ('{"tokens": 1, "val_loss": 3, "device": 1}', "device cannot be 1"),
    ('{"tokens": 1, "val_loss": 3, "mood": [1]}', "mood cannot be [1]"),
    ('{"tokens": 1, "val_loss": 3, "mood": "\\ud800"}', "mood cannot be '\\ud800'"),
    ('{"tokens": 1, "val_loss": 3, " wall_s": 1}', "' wall_s' cannot be a column")])
def test_unusable_results_are_reported_with_their_reason(tmp_path, result, says):
    make_run(tmp_path / "s", "good")
    write(make_run(tmp_path / "s", "bad") / "result.json", result)
    rows, problems = logs.parse_study(tmp_path / "s")
    assert [row["run"] for row in rows] == ["good"]
    assert len(problems) == 1 and says in problems[0] and "bad" in problems[0] and "\n" not in problems[0]


@pytest.mark.parametrize("asked", [dict(warmup_iters=12), dict(warmup_frac=0.1), dict(lr_decay_iters=50)])
def test_an_older_result_takes_its_recipe_from_config_json(lab, asked):
    """Of warmup and decay what was asked for, and of settings that config.json lacks nothing."""
    new = lab.train("s/a", max_iters=60, parametrization="mup", **asked)
    path = lab.out("s/a") / "result.json"
    path.write_text(json.dumps({k: v for k, v in new.items() if k not in RECIPE}))
    assert logs.parse_run(path.parent) == dict(study="s", run="a") | new
    config = json.loads((path.parent / "config.json").read_text())
    del config["base_width"]
    (path.parent / "config.json").write_text(json.dumps(config))
    row = logs.parse_run(path.parent)
    assert row["parametrization"] == "mup" and "base_width" not in row
    for text in ("{", json.dumps(config | {"warmup_frac": "x"})):
        (path.parent / "config.json").write_text(text)
        assert "parametrization" not in logs.parse_run(path.parent)


def test_an_unfinished_run_is_reported(tmp_path):
    (make_run(tmp_path / "s", "a") / "result.json").unlink()
    rows, problems = logs.parse_study(tmp_path / "s")
    assert rows == [] and len(problems) == 1 and "not finished" in problems[0]
    with pytest.raises(UserError, match="result.json: No such file"):
        logs.parse_run(tmp_path / "s" / "a")
    with pytest.raises(UserError, match="a study directory is needed"):
        logs.parse_study(tmp_path / "typo")


def read(path):
    said = []
    return list(read_log(path, said.append)), said


def test_read_log_leaves_gaps_as_nan(tmp_path):
    text = f'{record(0, val_loss=9.5)}\n{record(10, lr=None)}\n{{"step": 20}}\n'
    records, said = read(write(tmp_path / "log.jsonl", text))
    assert said == [] and [r["step"] for r in records] == [0, 10, 20]
    assert records[0]["val_loss"] == 9.5
    assert math.isnan(records[1]["val_loss"]) and math.isnan(records[1]["lr"])
    assert set(records[2]) == set(logs.LOG_COLUMNS) and math.isnan(records[2]["train_loss"])


@pytest.mark.parametrize("line", [
    '{"step": 20, "tok', '{"step": 20, "tokens": "many"}', "[20]", "20", "", '{"tokens": 5}',
    '{"step": null}', '{"step": -1}', '{"step": Infinity}', "[" * 9**5, '{"step": 1, "lr": true}',
    '{"step": 1' + "0" * 400 + "}"])
def test_a_malformed_line_is_reported_with_its_number(tmp_path, line):
    text = f"{record(0)}\n{record(10)}\n{line}\n{record(30)}\n{record(40)[:50]}"
    path = write(tmp_path / "log.jsonl", text)
    records, said = read(path)
    assert [r["step"] for r in records] == [0, 10, 30]
    assert len(said) == 2 and f"{path}:3: malformed" in said[0] and f"{path}:5: malformed" in said[1]


def test_undecodable_bytes_and_a_missing_log(tmp_path):
    records, said = read(write(tmp_path / "log.jsonl", b'{"step": 1}\n\xff\xfe\x00\n'))
    assert len(records) == 1 and len(said) == 1
    with pytest.raises(UserError, match="No such file"):
        read(tmp_path / "none.jsonl")


def test_resumed_runs_keep_the_last_record_of_each_step(tmp_path):
    # 0..50, killed; from 20 again to 40, killed; from 30 again to the end, 60.
    lines = [record(s, elapsed_s=try_) for try_, first, last in ((1, 0, 50), (2, 20, 40), (3, 30, 60))
             for s in range(first, last + 1, 10)]
    records, said = read(write(tmp_path / "log.jsonl", "\n".join(lines) + "\n"))
    assert said == [] and [(r["step"], r["elapsed_s"]) for r in records] == [
        (0, 1), (10, 1), (20, 2), (30, 3), (40, 3), (50, 3), (60, 3)]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 12), max_size=40))
def test_any_sequence_of_steps_comes_out_rising(tmp_path_factory, steps):
    path = tmp_path_factory.getbasetemp() / "steps.jsonl"
    write(path, "".join(f'{{"step": {s}, "lr": {i}}}\n' for i, s in enumerate(steps)))
    kept = [(r["step"], r["lr"]) for r in read_log(path)]
    overtaken = [any(later <= s for later in steps[i + 1:]) for i, s in enumerate(steps)]
    assert kept == [(s, i) for i, s in enumerate(steps) if not overtaken[i]]
    assert len({s for s, _ in kept}) == len(kept)


def test_memory_holds_the_kept_records_only(tmp_path):
    """A run that was resumed 10 times takes little more memory than one that was not."""
    def peak_of(tries):
        path = tmp_path / f"{tries}.jsonl"
        lines = [f'{{"step": {step}, "train_loss": 3.25}}\n' for step in range(1000)]
        write(path, "".join(lines * tries))
        tracemalloc.start()
        assert len(read_log(path)) == 1000
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak
    assert peak_of(10) < 1.2 * peak_of(1)


def test_thin_keeps_evaluated_points_and_spreads_the_rest_in_log():
    records = [{"step": float(step), "val_loss": math.nan if step % 25_000 else 3.0}
               for step in range(0, 100_001, 10)]
    thinned = np.array([record["step"] for record in logs.thin(records)])
    assert len(thinned) <= 105 and {0, 25_000, 50_000, 75_000, 100_000} <= set(thinned)
    assert np.max(np.diff(np.log(thinned[1:]))) < 1.1 and np.sum(thinned > 10_000) < 40
    assert logs.thin(records[:7]) == records[:7]
    assert len(logs.thin(records[:1])) == 1 and logs.thin([]) == []


def test_write_curves(tmp_path, capsys):
    study = tmp_path / "s"
    make_run(study, "b", [record(s, **({"val_loss": 4.0} if s % 500 == 0 else {})) for s in range(0, 2001)])
    make_run(study, "a", [record(1), record(2), '{"step": 3, "tok'])
    make_run(study, "empty")
    (make_run(study, "gone") / "log.jsonl").unlink()
    (make_run(study, "unfinished", [record(1)]) / "result.json").unlink()
    said = []
    logs.write_curves(study, study / "curves.csv", said.append)
    table = read_table(study / "curves.csv")
    assert list(table) == ["run", "step", "tokens", "flops", "train_loss", "val_loss", "lr"]
    assert list(table["run"][:2]) == ["a", "a"] and set(table["run"]) == {"a", "b"}
    of_b = table["run"] == "b"
    evaluated = ~np.isnan(table["val_loss"])
    assert of_b.sum() <= 105 and list(table["step"][of_b & evaluated]) == [0, 500, 1000, 1500, 2000]
    assert table["tokens"][of_b][-1] == 2000 * 4096 and table["train_loss"][of_b][-1] == 10 / 2001
    assert len(said) == 2 and "a/log.jsonl:3" in said[0] and "gone" in said[1]
    before = (study / "curves.csv").read_bytes()
    logs.write_curves(study, study / "curves.csv", said.append)
    assert (study / "curves.csv").read_bytes() == before


# -------------------------------------------------------------------------------- other projects
NANOGPT = """tokens per iteration will be: 491,520
found vocab_size = 65 (inside data/meta.pkl)
number of parameters: 123.59M
step 0: train loss 10.9, val loss 10.8
iter 0: loss 10.8765, time 12345.67ms, mfu -100.00%
iter 100: loss 3.1, time 12.3ms, mfu 4.2%
iter 200: loss 2
step 500: train loss 2.1000, val loss 2.3000
saving checkpoint to out
step 1000: train loss 2.0000, val loss 2.2000
step 1500: train loss 1.9000, val loss 2.1"""


def points(path, out, *args):
    done = command(path, f"--out={out}", *args)
    assert done.returncode == 0, done.stderr
    return read_table(out), done


def test_nanogpt_console_log(tmp_path):
    path = write(tmp_path / "train.log", NANOGPT)
    table, done = points(path, tmp_path / "o.csv")
    assert list(table) == ["run", "params", "tokens", "loss", "step"]
    assert list(table["loss"]) == [2.3, 2.2] and list(table["tokens"]) == [500 * 491520, 1000 * 491520]
    assert set(table["params"]) == {123.59e6} and "all but the position embeddings" in done.stderr
    assert f"{path}:7: malformed: 'iter 200: loss 2' (1 more like it); skipped" in done.stderr
    assert "step 0" not in done.stderr and "2 rows" in done.stdout         # an untrained model is no point
    assert done.stdout.startswith(f"{path}: nanoGPT console log, 1 run; loss is val_loss\n")
    table, done = points(path, tmp_path / "o.csv", "--params=100", "--batch_tokens=10")
    assert set(table["params"]) == {100} and list(table["tokens"]) == [5000, 10000]
    assert "position" not in done.stderr


def test_nanogpt_log_without_evaluations_uses_the_train_loss_and_says_so(tmp_path):
    lines = [f"iter {step}: loss {loss}, time 12.3ms, mfu 4.2%\n"
             for step, loss in ((100, 3.1), (200, math.nan), (300, 2.9), (300, 2.8))]
    path = write(tmp_path / "train.log", "".join(lines))
    table, done = points(path, tmp_path / "o.csv", "--params=1e6", "--batch_tokens=1000")
    assert list(table["tokens"]) == [1e5, 3e5] and list(table["loss"]) == [3.1, 2.8]
    assert "loss is the train loss" in done.stderr and "1 point without loss" in done.stderr


def test_what_a_log_does_not_tell_must_be_given(tmp_path):
    path = write(tmp_path / "train.log", "step 100: train loss 3.1, val loss 3.2\n")
    for given_, lacks in ((["--params=1e6"], "--batch_tokens="), (["--batch_tokens=10"], "--params=")):
        done = command(path, f"--out={tmp_path / 'o.csv'}", *given_)
        assert done.returncode == 2 and f"give {lacks}" in done.stderr and not (tmp_path / "o.csv").exists()


def test_hugging_face_trainer_state(tmp_path):
    history = [{"epoch": .1, "loss": 4.0, "learning_rate": 1e-4, "step": 10}, {"eval_loss": 3.9, "step": 10},
               {"loss": 3.5, "step": 20}, {"eval_loss": 3.4, "step": 20},
               17, {"eval_loss": 1.0}, {"eval_loss": "x", "step": 5},
               {"train_loss": 3.7, "total_flos": 1e15, "step": 20}, {"eval_loss": None, "step": 30}]
    path = write(tmp_path / "trainer_state.json", json.dumps({"log_history": history, "global_step": 20}))
    table, done = points(path, tmp_path / "o.csv", "--params=1e6", "--batch_tokens=1000")
    assert list(table["tokens"]) == [10_000, 20_000] and list(table["loss"]) == [3.9, 3.4]
    assert "log_history[4]: malformed (TypeError: 'int' object is not subscriptable) (2 more" in done.stderr
    assert len(done.stderr.splitlines()) == 2          # null is no loss, and the last step has none
    assert "went on to step 30 after its last eval_loss, at step 20: is it in progress, or" in done.stderr


def test_hugging_face_tokens_seen(tmp_path):
    history = [{"loss": 4.0, "step": 10, "num_input_tokens_seen": 777}, {"loss": 3.0, "step": 20}]
    path = write(tmp_path / "trainer_state.json", json.dumps({"log_history": history}))
    table, done = points(path, tmp_path / "o.csv", "--params=1e6")
    assert list(table["tokens"]) == [777] and "1 point without tokens, the first at step 20" in done.stderr
    history = [{"loss": 4.0, "step": 10, "num_input_tokens_seen": 0}]       # it was not counted
    write(path, json.dumps({"log_history": history, "num_input_tokens_seen": 0}))
    table, done = points(path, tmp_path / "o.csv", "--params=1e6", "--batch_tokens=100")
    assert list(table["tokens"]) == [1000]


def test_json_curves(tmp_path):
    config = {"model_name": "gpt2_32", "n_layers": 12, "d_model": 32, "n_heads": 8, "batch_size": 32}
    data = {"config": config, "train_loss": [[100, 9.1], [200, 7.6]],
            "eval_loss": [[100, 7.8], [200, 7.4], [300], 4]}
    path = write(tmp_path / "d32.json", json.dumps(data))
    table, done = points(path, tmp_path / "o.csv", "--batch_tokens=32768")
    assert set(table["params"]) == {152512}           # as in the published width sweep
    assert list(table["tokens"]) == [3276800, 6553600] and list(table["loss"]) == [7.8, 7.4]
    assert "eval_loss[2]: malformed" in done.stderr and "(1 more like it); skipped" in done.stderr
    assert "non-embedding" in done.stderr
    for odd in ({"d_model": 10**400}, {"d_model": -1}, {"d_model": "x"}, {"d_model": None}):
        write(path, json.dumps(data | {"config": config | odd}))
        done = command(path, "--batch_tokens=1", f"--out={tmp_path / 'o.csv'}")
        assert "how many parameters the model has; give --params=N or FILE=N" in done.stderr
    write(path, json.dumps(data | {"config": config | {"n_positions": 1024}, "eval_loss": 3.0}))
    table, done = points(path, tmp_path / "o.csv", "--params=5")
    assert set(table["params"]) == {5} and list(table["tokens"]) == [3276800, 6553600]
    assert list(table["loss"]) == [9.1, 7.6] and "loss is the train loss" in done.stderr


def test_the_published_width_sweep_counts_as_we_count(tmp_path):
    table = read_table(published_table("width_sweep"))
    for run in sorted(set(table["run"])):
        of_run = table["run"] == run
        width = int(table["n_embd"][of_run][0])
        shape = {"n_layers": 12, "d_model": width, "batch_size": 32, "n_positions": 1024}
        pairs = [[int(s), loss] for s, loss in zip(table["step"][of_run], table["loss"][of_run])]
        path = write(tmp_path / f"{run}.json", json.dumps({"config": shape, "eval_loss": pairs}))
        rows, _ = foreign.read_points(path, foreign.Asked(), lambda text: None)
        assert [r["tokens"] for r in rows] == list(table["tokens"][of_run])
        assert {r["params"] for r in rows} == set(table["params_non_embedding"][of_run])


def test_published_points_pass_through_unchanged(tmp_path):
    oracle = published_table("chinchilla")
    theirs, (ours, done) = read_table(oracle), points(oracle, tmp_path / "o.csv")
    assert done.stderr == "" and len(ours["loss"]) == 245
    for name in ("params", "tokens", "loss", "flops"):
        np.testing.assert_array_equal(ours[name], theirs[name])


def test_csv_with_other_names(tmp_path):
    path = write(tmp_path / "wandb.csv", "Run,Tokens,val/loss,N,note\na,100,3.5,1e6,x\nb,200,,1e6,x\n"
                                         "b,1x,3,1e6,x\nb,300,3.1\nb,400,3.0,1e6,x\n")
    names = ["--map", "tokens=Tokens", "loss=val/loss", "params=N", "run=Run", "budget=N", "note=note"]
    table, done = points(path, tmp_path / "o.csv", *names)
    assert list(table) == ["run", "params", "tokens", "loss", "budget", "note"]
    assert list(table["run"]) == ["a", "b"]
    assert list(table["tokens"]) == [100, 400] and list(table["note"]) == ["x", "x"]
    assert f"{path}:4: malformed" in done.stderr
    assert f"{path}:5: 3 cells where the header has 5" in done.stderr
    assert "1 point without loss, the first at line 3" in done.stderr


def test_a_csv_with_steps_is_a_run_until_they_start_over(tmp_path):
    path = write(tmp_path / "a.csv", "step,loss\n0,9\n10,3\n20,2.5\n")
    table, done = points(path, tmp_path / "o.csv", "--params=1e6", "--batch_tokens=100")
    assert list(table["tokens"]) == [1000, 2000] and set(table["params"]) == {1e6}
    assert list(table["run"]) == [f"{tmp_path}/a"] * 2 and list(table["step"]) == [10, 20]
    write(path, "step,loss\n10,3\n20,2.5\n15,2.7\n20,2.6\n10,2.9\n20,2.4\n")    # resumed, then over again
    table, done = points(path, tmp_path / "o.csv", "--params=1e6", "--batch_tokens=100")
    assert list(table["run"]) == [f"{tmp_path}/a"] * 3 + [f"{tmp_path}/a:2"] * 2
    assert list(table["loss"]) == [3, 2.7, 2.6, 2.9, 2.4] and "table, 2 runs" in done.stdout


def test_any_column_can_be_the_loss(tmp_path):
    path = write(tmp_path / "a.csv", "step,score,time\n10,3,1\n20,2.5,2\n30,nan,3\n")
    done = command(path, f"--out={tmp_path / 'o.csv'}", "--map", "loss=score", *LOW)
    assert done.returncode == 2 and "a diverged at step 30" in done.stderr
    write(path, "step,score,time\n10,3,1\n20,2.5,2\n")
    assert list(points(path, tmp_path / "o.csv", "--map", "loss=score", "--params=1e6",
                       "--batch_tokens=10")[0]["loss"]) == [3, 2.5]
    write(path, "params,tokens,score\n10,3,1\n20,2.5,2\n")
    assert list(points(path, tmp_path / "o.csv", "--loss=score")[0]["loss"]) == [1, 2]


@pytest.mark.parametrize("args, says", [
    ([], "it does not say how many parameters the model has; give --params=N or FILE=N, or --map "
         "params=COLUMN with one of Loss, Seen"),
    (["--params=1", "--map", "loss=Los", "tokens=Seen"], "no loss 'Los' (did you mean 'Loss'?)"),
    (["--params=1", "--map", "tokens=seen"], "no column 'seen' (did you mean 'Seen'?) for tokens"),
    (["--params=1", "--map", "loss=Loss"], "give --batch_tokens=N, or --map tokens=COLUMN"),
    (["--params=1", "--batch_tokens=2"], "at which step a row stands; leave --batch_tokens out, or --map s")])
def test_csv_without_the_columns(tmp_path, args, says):
    done = command(write(tmp_path / "a.csv", "Loss,Seen\n1,2\n"), f"--out={tmp_path / 'o.csv'}", *args)
    assert done.returncode == 2 and says in done.stderr


@pytest.mark.parametrize("text, args, says", [
    ("params,ppl\n1,9\n", [], "column 'ppl' holds perplexities: take its logarithm, which is the loss"),
    ("params,tokens,ppl,loss\n1,2,9,3\n", ["--loss=ppl"], "column 'ppl' holds perplexities: take its log"),
    ("size,tokens,loss\nbig,2e7,3.5\n", ["--map", "params=size"], "a.csv: not one of its rows can be read")])
def test_what_cannot_be_a_loss_or_a_number_is_named(tmp_path, text, args, says):
    done = command(write(tmp_path / "a.csv", text), f"--out={tmp_path / 'o.csv'}", *args)
    assert done.returncode == 2 and says in done.stderr and "accepted" not in done.stderr


@pytest.mark.parametrize("name, text", [
    ("a.log", "hello\nworld\n"), ("a.log", ""), ("a.bin", b"\x00\xff" * 99), ("a.json", "{}"),
    ("a.json", "[1, 2]"), ("a.json", '{"log_history": ['), ("a.json", '{"log_history": [], "train_loss": 3}'),
    ("a.csv", ""), ("a.csv", "a,a\n"), ("a.csv", b"\xff\xfe"), ("a.csv", "params,tokens,loss\n"),
    ("a.csv", "params,tokens,loss\n0,0,x\n")])
def test_unrecognised_input_names_the_accepted_formats(tmp_path, name, text):
    done = command(write(tmp_path / name, text), f"--out={tmp_path / 'o.csv'}")
    *said, last = done.stderr.splitlines()
    assert done.returncode == 2 and last == f"error: nothing usable in {tmp_path / name}: see above"
    assert 1 <= len(said) <= 2 and ("accepted: " not in done.stderr or "nanoGPT" in done.stderr)
    assert not (tmp_path / "o.csv").exists() and done.stdout == ""


def test_a_log_that_is_not_understood_costs_three_lines(tmp_path):
    path = write(tmp_path / "a.log", "".join(f"step {i} of the loss\n" for i in range(1500)))
    said = command(path, f"--out={tmp_path / 'o.csv'}").stderr.splitlines()
    assert len(said) == 3 and "a.log:1: malformed" in said[0] and "(1499 more like it)" in said[0]
    assert "no loss recognised in it; accepted: a study or run directory; console logs of nanoGPT" in said[1]


@settings(max_examples=200, deadline=None)
@example(".json", b'[{"val loss": 0.0, "": null, "step": 0.0}]')
@given(st.sampled_from([".json", ".log", ".csv"]), st.binary(max_size=80) | st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from("log_history train_loss eval_loss config step loss d_model n_layers".split()),
        inner, max_size=4)).map(lambda data: json.dumps(data).encode()))
def test_no_foreign_log_is_a_traceback(tmp_path_factory, suffix, data):
    path, said = tmp_path_factory.getbasetemp() / f"fuzz{suffix}", []
    write(path, data)
    try:
        asked = foreign.Asked(1e6, None if suffix == ".csv" else 100)
        rows, _ = foreign.read_points(path, asked, said.append)
    except UserError as e:
        rows = said.append(str(e)) or []
    assert all(row["tokens"] > 0 and math.isfinite(row["loss"]) for row in rows)
    assert rows or said                               # never silent


@pytest.mark.parametrize("name", SAMPLES)
def test_logs_of_each_kind(tmp_path, name):
    data, flags, expected = SAMPLES[name]
    path = write(tmp_path / name, data)
    table, done = points(path, tmp_path / "o.csv", *flags)
    base = path.with_suffix("").as_posix()
    assert list(table["run"]) == [base + run if run[:1] in ("", ":") else run for run, *_ in expected]
    for i, column in enumerate(("params", "tokens", "loss"), 1):
        np.testing.assert_allclose(table[column], [point[i] for point in expected], rtol=1e-9)
    assert ("malformed" in done.stderr) == (name == "fork.log")
    unit = {"nanochat.log": "bits per byte", "fairseq.log": "bits", "fairseq.json": "bits"}.get(name)
    assert set(table.get("loss_unit", [None])) == {unit} and (unit is None or f", in {unit}, " in done.stdout)


def test_a_run_table_keeps_its_settings_and_which_runs_crashed(tmp_path):
    table, done = points(write(tmp_path / "runs.csv", SAMPLES["runs_table.csv"][0]), tmp_path / "o.csv")
    assert list(table) == ["run", "params", "tokens", "loss", "State", "lr"]
    assert list(table["lr"]) == [1e-3, 2e-3]           # a fit says which rows crashed
    assert list(table["State"]) == ["finished", "crashed"]
    table, _ = points(write(tmp_path / "p.db", SAMPLES["project.db"][0]), tmp_path / "o.csv", *LOW)
    assert list(table["lr"]) == [0.1, 0.1]             # of the config; what varies along a run is left out


def test_what_says_which_loss_and_what_its_unit_is(tmp_path):
    path = write(tmp_path / "a.csv", "params,tokens,loss,val_loss,val_bpb,z_loss\n1,2,3.5,3.25,1.5,9\n")
    table, done = points(path, tmp_path / "o.csv")
    assert list(table["loss"]) == [3.25] and f"{path}: table, 1 row; loss is val_loss\n" in done.stdout
    table, done = points(path, tmp_path / "o.csv", "--loss=val_bpb")
    assert list(table["loss"]) == [1.5] and list(table["loss_unit"]) == ["bits per byte"]
    assert "loss is val_bpb, in bits per byte, not nats\n" in done.stdout
    assert list(points(path, tmp_path / "o.csv", "--loss=loss")[0]["loss"]) == [3.5]
    other = write(tmp_path / "b.csv", "params,tokens,val_bpb\n1,2,1.5\n")
    done = command(path, other, f"--out={tmp_path / 'p.csv'}")
    assert done.returncode == 2 and "losses do not compare: " in done.stderr
    assert "it has no" not in command(path, other, "--loss=val_bpb", f"--out={tmp_path / 'p.csv'}").stderr
    write(path, "params,tokens,eval_a_loss,eval/b_loss\n1,2,3.5,3.25\n")
    done = command(path, f"--out={tmp_path / 'p.csv'}")
    assert "2 validation losses; choose with --loss= one of eval/b_loss, eval_a_loss" in done.stderr


def test_a_run_that_diverged_is_no_result_and_one_that_ended_early_says_so(tmp_path):
    rows = ["step 0: train loss 4.1000, val loss 4.2000", "step 100: train loss 2.1000, val loss 2.2000"]
    good = "".join(f"step:{s}/1000 val_loss:{4 - s / 1000:.4f}\n" for s in (0, 500, 900))
    rows += ["iter 130: loss nan, time 9ms", "iter 160: loss inf, time 9ms\n"]
    log = write(tmp_path / "a.log", "\n".join(rows))
    done = command(f"{log}=1e6,10", f"--out={tmp_path / 'o.csv'}")
    assert done.returncode == 2 and "a diverged at step 130: what came before is no result" in done.stderr
    write(log, "\n".join([*rows[:2], "step 200: train loss nan, val loss nan\n"]))
    assert "a diverged at step 200" in command(f"{log}=1e6,10", f"--out={tmp_path / 'o.csv'}").stderr
    table, done = points(write(tmp_path / "b.log", good), tmp_path / "o.csv", *LOW)
    assert list(table["loss"]) == [3.5, 3.1]
    assert "b ended at step 900 of 1000, before its horizon" in done.stderr
    sparse = write(tmp_path / "c.csv", "step,loss,val_loss\n10,3,nan\n20,nan,2.5\n30,2.4,nan\n30,nan,2.3\n")
    table, done = points(sparse, tmp_path / "o.csv", *LOW)
    assert list(table["loss"]) == [2.5, 2.3] and done.stderr == ""         # nan for a cell that is missing
    recovered = "".join(f"iter {s}: loss {loss}, t\n" for s, loss in ((10, 3.5), (20, "nan"), (30, 3.25)))
    table, done = points(write(tmp_path / "d.log", recovered), tmp_path / "o.csv", *LOW)
    assert list(table["loss"]) == [3.5, 3.25] and "diverged at" not in done.stderr


def test_a_run_whose_loss_rises_to_the_end_is_no_result_though_it_is_finite(tmp_path):
    def log(*losses):
        rows = [f"step {100 * i}: train loss 2.0000, val loss {x:.4f}\n" for i, x in enumerate(losses, 1)]
        return write(tmp_path / "a.log", "".join(rows))
    done = command(f"{log(4, 3.2, 8)}=1e6,10", f"--out={tmp_path / 'o.csv'}")
    assert done.returncode == 2
    assert "a ends at a loss of 8 after 3.2 at step 200: diverged, or overfitted; skipped" in done.stderr
    text = "".join(f"s:{s} trl:{loss} lr:0.1\ns:{s} tel:{loss}\n" for s, loss in ((9, 4.1), (20, "-nan")))
    assert "diverged at step 20" in told(tmp_path, "a.log", text)[0]         # as C prints it
    for losses in ((4, 3.2, 3.3), (1.0, 0.9, 1.2), (3, 5, 2.9)):      # overfitting, small losses, a spike
        table, _ = points(log(*losses), tmp_path / "o.csv", *LOW)
        assert list(table["loss"]) == list(losses)


def told(tmp_path, name, text, *args):
    """What `scaling.logs` says of a log in one line, and the losses of its points."""
    done = command(write(tmp_path / name, text), f"--out={tmp_path / 'told.csv'}", *LOW, *args)
    return done.stderr, list(read_table(tmp_path / "told.csv")["loss"]) if done.returncode == 0 else []


def test_a_loss_of_zero_is_what_fp16_makes_of_a_nan(tmp_path):
    history = [{"eval_loss": 4.1, "step": 20}, {"loss": 0.0, "grad_norm": math.nan, "step": 30}]
    said, losses = told(tmp_path, "a.json", json.dumps({"log_history": history}))
    assert "diverged at step 30: what came before is no result" in said and losses == []


def test_a_loss_that_rises_a_little_is_told_where_it_is_no_noise(tmp_path):
    rows = "step,val_loss\n100,4\n200,3.2\n300,{}\n"
    said, losses = told(tmp_path, "a.csv", rows.format(3.5))
    assert "ends at a loss of 3.5 after 3.2 at step 200: diverged, or overfitted; the last" in said
    assert losses == [4, 3.2, 3.5]
    assert told(tmp_path, "a.csv", rows.format(3.25))[0] == ""
    assert "after 3.2" not in told(tmp_path, "a.csv", rows.format(3.5).replace("val_", "train_"))[0]


def test_an_evaluation_that_is_logged_again_at_each_step_is_one(tmp_path):
    rows = [{"step": s, "val_loss": 5.123 - s // 100 / 10} for s in range(100, 301, 20)]
    said, losses = told(tmp_path, "a.jsonl", "\n".join(map(json.dumps, rows)))
    assert "has the val_loss of the step before at 8 steps" in said and len(losses) == 3
    flat_ = "step,val_loss\n" + "".join(f"{s},3.2{s // 300}\n" for s in range(100, 1000, 100))
    assert told(tmp_path, "a.csv", flat_)[0] == ""             # of two digits: they may be equal


def test_each_step_with_two_losses_is_no_resume_and_nested_ones_are_a_question(tmp_path):
    rows = [{"step": s, "set": text, "loss": 5 - s / 100} for s in (50, 100) for text in ("wiki", "c4")]
    rows[1]["loss"] = rows[3]["loss"] = 4.75
    said, _ = told(tmp_path, "a.jsonl", "\n".join(map(json.dumps, rows)))
    assert "several values of loss at 2 steps" in said and "of several texts keep the lines of one" in said
    nested = [{"step": 50, "eval": {"wiki": {"loss": 4.5}, "c4": {"loss": 4.75}}}]
    said, _ = told(tmp_path, "a.json", json.dumps(nested))
    assert "choose with --loss= one of eval/c4/loss, eval/wiki" in said
    assert told(tmp_path, "a.json", json.dumps(nested), "--loss=eval/c4/loss")[1] == [4.75]


def test_a_curve_inside_a_record_makes_no_cell(tmp_path):
    """It would be longer than a table can be read with."""
    runs = {size: {"n_params": 1e6, "tokens": 2e7, "final_val_loss": 3.5, "betas": [0.9, 0.95],
                   "log": [{"step": i, "x": "y" * 90} for i in range(2000)]} for size in ("3M", "6M")}
    table, _ = points(write(tmp_path / "a.json", json.dumps(runs)), tmp_path / "o.csv")
    assert list(table) == ["run", "params", "tokens", "loss", "betas"] and list(table["run"]) == ["3M", "6M"]


def test_steps_that_are_counted_twice_ask_for_the_tokens_of_one(tmp_path):
    text = "".join(f"iter {4 * s}: loss {5 - s / 10:.4f}, step: {s}, iter time: 9.0 ms\n" for s in (10, 20))
    said, losses = told(tmp_path, "a.log", text)
    assert "a.log: 'iter 40' is also 'step: 10': give --batch_tokens= of one iter" in said
    assert losses == [4, 3]


def test_a_size_that_is_told_after_the_first_step_begins_no_run(tmp_path):
    text = SAMPLES["megatron_new.log"][0].decode().partition("\n")[2]
    table, done = points(write(tmp_path / "a.log", text), tmp_path / "o.csv")
    assert set(table["params"]) == {1e6} and len(set(table["run"])) == 1 and "1 run" in done.stdout
    second = "step 0: loss 5.5\nstep 50: loss 5.0\n" + SAMPLES["second.out"][0].decode()
    lines = second.replace("number of parameters: 0.10M\n", "").replace("per iteration will be: 1,000", "")
    done = command(write(tmp_path / "b.log", lines), "--batch_tokens=9", f"--out={tmp_path / 'o.csv'}")
    table = read_table(tmp_path / "o.csv")
    assert set(table["params"]) == {3e5} and "without params" in done.stderr      # no size for the first


def test_bits_of_fairseq_are_nats_where_the_perplexity_says_so(tmp_path):
    line = "INFO | valid | epoch 001 | valid on 'wiki' subset | loss 5.1 | ppl {} | num_updates 100\n"
    for ppl, name in ((164.02, "valid_wiki_loss"), (34.3, "valid_wiki_loss_bits")):
        done = points(write(tmp_path / "a.log", line.format(ppl)), tmp_path / "o.csv", *LOW)[1]
        bits = ", in bits, not nats" if "bits" in name else ""
        assert f"fairseq log, 1 run; loss is {name}{bits}\n" in done.stdout


def test_a_run_that_went_on_after_its_last_evaluation_or_ended_before_its_horizon(tmp_path):
    text = NANOGPT + "\n" + "".join(f"iter {step}: loss 1.9, time 12.3ms\n" for step in (1600, 1900))
    _, done = points(write(tmp_path / "a.log", text), tmp_path / "o.csv")
    assert "a went on to step 1900 after its last val_loss, at step 1500: is it in progress" in done.stderr
    path = write(tmp_path / "a.log", "max_iters = 5000\nOverriding: max_iters = 2000\n" + NANOGPT)
    _, done = points(path, tmp_path / "o.csv")
    assert "a ended at step 1000 of 2000, before its horizon" in done.stderr
    assert "params is 1.2359e+08 (rounded, all but the position" in done.stderr


@pytest.mark.parametrize("step, seen", [("1,200", 1200), ("1.2k", 1200), ("1200", 1200), ("2M", 2_000_000)])
def test_steps_as_people_print_them(tmp_path, step, seen):
    line = f"step {step}/3,000,000 | val loss 3.5, lr 1e-3"
    path = write(tmp_path / "a.log", f"step 900 | val loss 4.0\n{line}\n")
    table, done = points(path, tmp_path / "o.csv", *LOW)
    assert list(table["step"]) == [900, seen] and list(table["loss"]) == [4, 3.5]
    assert list(table["horizon"])[1] == 3_000_000 and f"ended at step {seen} of 3000000" in done.stderr
    write(path, "step 1,2 | val loss 4.0\n")             # no number of steps
    assert command(path, *LOW, f"--out={tmp_path / 'p.csv'}").returncode == 2


@pytest.mark.parametrize("line", [
    "eval metrics after step: 10, loss=4.1, total_weights=131072.0", "[eval] step 10: loss 4.1",
    "Validation | step 10 | time 1.5s | loss 4.1", "step 10 | eval: loss 4.1, accuracy 0.3"])
def test_a_line_of_an_evaluation_holds_no_train_loss(tmp_path, line):
    """Though both say 'loss': else the curve would be of one text here, and of another there."""
    text = f"completed step: 10, eval_every: 10, seconds: 1.1, loss: 3.9\n{line}\nstep 20 | loss: 3.5\n"
    table, done = points(write(tmp_path / "a.log", text), tmp_path / "o.csv", *LOW)
    assert list(table["step"]) == [10] and list(table["loss"]) == [4.1] and "loss is val_loss" in done.stdout


@pytest.mark.parametrize("suffix, line", [
    (".jsonl", '{{"step": {step}, "type": "{text}", "loss": {loss}}}'), (".csv", "{step},{text},{loss}")])
@pytest.mark.parametrize("texts", [("val", "train"), ("Train", "Eval")])
def test_rows_that_say_of_which_text_their_loss_is(tmp_path, suffix, line, texts):
    rows = [line.format(step=step, text=text, loss=4.5 if text[0] in "vE" else 4)
            for step in (10, 20) for text in texts]
    path = write(tmp_path / f"a{suffix}", "\n".join([*["step,split,loss"] * (suffix == ".csv"), *rows]))
    table, done = points(path, tmp_path / "o.csv", *LOW)
    assert list(table["loss"]) == [4.5, 4.5] and done.stderr == ""
    said = points(path, tmp_path / "o.csv", *LOW, "--loss=loss")[1].stderr
    assert "several values of loss at 2 steps" in said             # of two: no run resumes at each step
    path = write(tmp_path / "b.csv", "run,step,loss\ntest,10,4.5\n")              # a name is none
    assert "loss is the train loss" in points(path, tmp_path / "o.csv", *LOW)[1].stderr


def test_a_step_with_several_losses_is_told(tmp_path):
    text = "".join(f"[rank{rank}] step {step} | loss: {4 + rank}.5\n" for step in (10, 20, 30)
                   for rank in (0, 1))
    done = points(write(tmp_path / "a.log", text), tmp_path / "o.csv", *LOW)[1]
    assert "run " in done.stderr and "has several values of loss at 3 steps, the first at step 10; the last "\
        "of each counts" in done.stderr


def test_rows_of_several_sizes_sorted_by_step(tmp_path):
    text = "".join(f"{step},{size},{9 - step / 10}\n" for step in (10, 20, 30) for size in (2e6, 4e6))
    path = write(tmp_path / "a.csv", "step,params,val_loss\n" + text)
    table, done = points(path, tmp_path / "o.csv", BATCH)
    assert len(set(table["run"])) == 2 and list(table["step"]) == [10, 20, 30] * 2
    assert list(table["params"]) == [2e6] * 3 + [4e6] * 3


@pytest.mark.parametrize("line", ["Total params: 124,439,808", "number of trainable parameters: 124.44M",
                                  "Number of parameters: 124.44 million"])
def test_sizes_as_people_print_them(tmp_path, line):
    path = write(tmp_path / "a.log", f"{line}\nstep 10 | val loss 4.1\n")
    assert list(points(path, tmp_path / "o.csv", BATCH)[0]["params"]) == [pytest.approx(124.44e6, rel=1e-4)]


@pytest.mark.parametrize("line", [
    "2023-01-01 | epoch 001: {}00 / 1000 loss=3.5, ppl=11.3, wps=1000",
    "{{'loss': 3.{}5, 'lr': 1e-05, 'epoch': 0.1}}",
    "Epoch 0: 9%| {}00/1000 [01:00<00:00, 1.5it/s, v=0, train_loss=3.55]"])
def test_a_console_log_with_commas_is_no_table(tmp_path, line):
    text = "".join(line.format(i) + "\n" for i in range(3))
    said = command(write(tmp_path / "a.log", text), f"--out={tmp_path / 'o.csv'}", *LOW).stderr
    assert "a.log:1: a loss and no step in " in said and "log the step of each, as CSV or JSON" in said
    assert "a.log: no loss recognised in it; accepted: " in said and len(said.splitlines()) == 3


def test_a_json_table_written_by_columns(tmp_path):
    table = {"params": [1e6, 2e6], "tokens": [1e8, 2e8], "val_loss": [3.5, 3.25]}
    by_index = {name: dict(zip("01", values)) for name, values in table.items()}         # as pandas does
    for data in (table, by_index, {"model": {"seed": 1}, "results": by_index}):
        found, _ = points(write(tmp_path / "a.json", json.dumps(data)), tmp_path / "o.csv")
        assert [list(found[name]) for name in ("params", "tokens", "loss")] == list(table.values())
    history = {"step": [0, 10, 20], "loss": [9.0, 4.5, 4], "val_loss": [9.5, 4.75, 4.25]}
    found, _ = points(write(tmp_path / "a.json", json.dumps(history)), tmp_path / "o.csv", *LOW)
    assert list(found["loss"]) == [4.75, 4.25] and len(set(found["run"])) == 1


def test_several_counts_of_parameters_in_a_log_are_a_question(tmp_path):
    path = write(tmp_path / "a.csv", "total_params,active_params,tokens,loss\n8e8,1e8,2e9,3.5\n")
    done = command(path, f"--out={tmp_path / 'o.csv'}")
    assert "which parameters are N? Choose with --map params= one of total_params, active_" in done.stderr
    assert list(points(path, tmp_path / "o.csv", "--map", "params=active_params")[0]["params"]) == [1e8]


def test_a_line_with_the_losses_of_two_texts_and_the_best_so_far(tmp_path):
    for line in ("c4 val loss 4.1 | best val loss 3.5 | wiki val loss 4.4", "val/a loss 4.1, val/b loss 4.4"):
        path = write(tmp_path / "a.log", f"step 10 | {line}\n")
        done = command(path, *LOW, f"--out={tmp_path / 'o.csv'}")
        assert "2 validation losses; choose with --loss= one of val_loss, val_loss_2" in done.stderr
        for name, loss in (("val_loss", 4.1), ("val_loss_2", 4.4)):
            assert list(points(path, tmp_path / "o.csv", f"--loss={name}", *LOW)[0]["loss"]) == [loss]


def trainer(folder, *steps, horizon=200):
    """What Hugging Face's Trainer leaves after the last of `steps`; its default is a linear schedule."""
    history = [{"eval_loss": 5 - step / 100, "learning_rate": 1e-3 * (1 - step / horizon), "step": step}
               for step in steps]
    state = dict(max_steps=horizon, log_history=history, global_step=steps[-1],
                 num_input_tokens_seen=5000 * steps[-1])
    folder.mkdir(parents=True)
    write(folder / "config.json", "{}")                # which our run directories have, too
    return write(folder / "trainer_state.json", json.dumps(state))


def test_of_the_checkpoints_of_a_hugging_face_trainer_the_last_counts(tmp_path):
    """A folder of runs, a run, or checkpoints by a pattern are the same."""
    runs, out = tmp_path / "runs", tmp_path / "o.csv"
    for name, ends in (("s", (50, 100, 200)), ("m", (50, 100))):
        for end in ends:
            trainer(runs / name / f"checkpoint-{end}", *range(50, end + 1, 50))
    for path in (runs, f"{runs}/*/checkpoint-*/trainer_state.json"):
        table, done = points(path, out, "--params=1e6")
        assert len(set(table["run"])) == 2 and list(table["step"]) == [50, 100, 50, 100, 150, 200]
        assert list(table["tokens"]) == [5000 * step for step in table["step"]]
        assert done.stderr.startswith("3 checkpoints of runs that went on; skipped\n")
        assert "m/checkpoint-100/trainer_state ended at step 100 of 200" in done.stderr
        assert select(table)["rows"].tolist() == [1, 5]            # its rate falls: rows halfway are no runs
    assert command(f"{runs}/s=5e6", f"{runs}/m=124M", f"--out={out}").returncode == 0
    assert list(read_table(out)["params"]) == [5e6] * 4 + [124e6] * 2
    trainer(runs / "s" / "end", 50, 200)               # as it is saved when all is done
    (runs / "s" / "end" / "trainer_state.json").rename(runs / "s" / "trainer_state.json")
    assert list(points(runs / "s", out, "--params=1e6")[0]["step"]) == [50, 200]
    done = command(runs, f"--out={tmp_path / 'p.csv'}")
    assert done.returncode == 2 and "it does not say how many parameters" in done.stderr


def test_a_chart_without_its_extremes_and_one_size_for_several_runs(tmp_path):
    text = "Step,small - val/loss,big - val/loss\n100,3.5,3.25\n200,3.25,3\n"
    table, done = points(write(tmp_path / "a.csv", text), tmp_path / "o.csv", *LOW)
    assert list(table["run"]) == ["small"] * 2 + ["big"] * 2 and list(table["loss"]) == [3.5, 3.25, 3.25, 3]
    assert "a.csv: params is 1e+06 in all 2 runs, as given" in done.stderr


def test_each_file_has_its_own_size(tmp_path):
    for size in "sm":
        for horizon in (20, 60):
            text = f"_step,seen/total_tokens,eval/loss\n{horizon},100,3.5\n"
            write(tmp_path / f"{size}_{horizon}.csv", text)
    args = [f"{tmp_path}/s_*.csv=5e7", f"{tmp_path}/m_*.csv=1e8,7", f"--out={tmp_path / 'o.csv'}"]
    done = command(*args)
    table = read_table(tmp_path / "o.csv")
    assert list(table["params"]) == [5e7, 5e7, 1e8, 1e8] and list(table["tokens"]) == [100, 100, 140, 420]
    assert [Path(run).name for run in table["run"]] == ["s_20", "s_60", "m_20", "m_60"]
    assert done.stdout.count("table, 1 run; loss is eval/loss") == 4
    for i in range(9):
        write(tmp_path / f"s_{i}.csv", "step,tokens,loss\n1,100,3.5\n")
    done = command(*args)
    assert done.stdout.startswith("9 logs: table, 1 run; loss is loss\n"
                                  "4 logs: table, 1 run; loss is eval/loss\n")


def test_runs_of_one_name_in_two_logs_are_two(tmp_path):
    for name in "ab":
        write(tmp_path / f"{name}.csv", "run,params,tokens,loss\nx,1,2,3\n" + f"{name},1,3,2\n")
    assert command(tmp_path / "a.csv", tmp_path / "b.csv", f"--out={tmp_path / 'o.csv'}").returncode == 0
    runs = list(read_table(tmp_path / "o.csv")["run"])
    assert runs == [f"{tmp_path}/a.csv:x", "a", f"{tmp_path}/b.csv:x", "b"]


def test_tokens_between_two_steps_that_tell_them(tmp_path):
    path = write(tmp_path / "a.csv", "step,tokens,val_loss\n10,1000,\n15,,3.5\n20,2000,\n25,,3.25\n")
    table, done = points(path, tmp_path / "o.csv", "--params=1")
    assert list(table["tokens"]) == [1500] and "1 point without tokens, the first at step 25" in done.stderr


# -------------------------------------------------------------------------------- command line
def test_command_on_a_study_and_on_single_runs(tmp_path):
    study, out = tmp_path / "out" / "s", tmp_path / "runs.csv"
    make_run(study, "a"), make_run(study, "b")
    (make_run(study, "c") / "result.json").unlink()
    done = command(study, f"--out={out}")
    assert done.returncode == 0 and "2 rows" in done.stdout and "c: no result.json" in done.stderr
    whole = out.read_bytes()
    done = command(study / "a", study / "b", study / "b", f"--out={out}")
    assert done.returncode == 0 and out.read_bytes() == whole and done.stderr == ""


def test_command_refuses(tmp_path):
    study, out = tmp_path / "s", tmp_path / "o.csv"
    make_run(study, "a")
    (tmp_path / "empty").mkdir()
    log = write(tmp_path / "a.csv", "params,tokens,loss\n1,2,3\n")
    for args, says in (([study, log], "two files"), ([study, study / "a"], "s/a comes from two"),
                       ([log, "--params=-1"], "above 0"), ([log, "--params=nan"], "above 0"),
                       ([log, "--batch_tokens=0"], "above 0"), ([log, "--map", "x", "y"], "--map takes"),
                       ([tmp_path / "empty"], "no runs in it"), ([tmp_path / "typo"], "typo: no such file"),
                       ([f"{log}=-1"], "above 0"), ([f"{log}=many"], "PATH=N,T takes plain numbers, not"),
                       ([f"{log}=124,000,000"], "plain numbers"), ([f"{log}=1e"], "above 0, not nan"),
                       ([log, "--parms=3"], "--parms"), ([log, f"--out={log}"], "overwrite an input")):
        done = command(f"--out={out}", *args)
        assert done.returncode == 2 and says in done.stderr, (args, done.stderr)
        assert not out.exists()
    assert "--out" in command(log).stderr and log.read_text() == "params,tokens,loss\n1,2,3\n"


def test_a_study_without_its_run_directories_is_its_table(tmp_path):
    """So the join that `plan --next` prints works with scaling/results, where only runs.csv is kept."""
    old, new, out = tmp_path / "old", tmp_path / "new", tmp_path / "joined.csv"
    make_run(old, "a"), make_run(new, "b")
    assert command(old, f"--out={tmp_path / 'old.csv'}").returncode == 0
    (tmp_path / "kept").mkdir()
    (tmp_path / "old.csv").rename(tmp_path / "kept" / "runs.csv")
    done = command(tmp_path / "kept", new, f"--out={out}")
    assert done.returncode == 0 and "2 rows from 2 folders" in done.stdout
    table = read_table(out)
    assert list(table["run"]) == ["a", "b"] and list(table["val_loss"]) == [RESULT["val_loss"]] * 2
    write(tmp_path / "kept" / "runs.csv", "params,tokens,loss\n1,2,3\n")
    assert "so not runs of ours; give the file" in command(tmp_path / "kept", f"--out={out}").stderr


def test_a_run_that_was_forecast_stays_out_of_the_table(tmp_path):
    study, out = tmp_path / "s", tmp_path / "runs.csv"
    make_run(study, "a"), make_run(study, "held")
    (study / "forecasts").mkdir()
    write(study / "forecasts" / "held.json", "{}")
    done = command(study, f"--out={out}")
    assert list(read_table(out)["run"]) == ["a"] and "held: it was held out" in done.stderr
    assert command(study / "held", f"--out={out}").returncode == 0          # who names it, means it


def test_command_goes_on_after_a_bad_path(tmp_path):
    good = write(tmp_path / "a.csv", "params,tokens,loss\n1,2,3\n")
    bad = write(tmp_path / "b.csv", "x,x\n")
    out = tmp_path / "o.csv"
    done = command(tmp_path / "none.csv", good, bad, f"--out={out}")
    assert done.returncode == 0
    assert f"{out}: 1 row from 1 log; 2 remarks on what was skipped (see above)\n" in done.stdout
    assert "none.csv: no such file; skipped" in done.stderr and "'x' appears twice" in done.stderr


def test_the_last_line_is_a_sentence(tmp_path):
    study, out = tmp_path / "s", tmp_path / "runs.csv"
    make_run(study, "a"), make_run(study, "b")
    following = f"\nnext: python -m scaling.fit {out}\n"
    assert command(study, f"--out={out}").stdout == f"{out}: 2 rows from 1 folder{following}"
    (make_run(study, "c") / "result.json").unlink()
    done = command(study, f"--out={out}")
    assert done.stdout == f"{out}: 2 rows from 1 folder; 1 remark on what was skipped (see above){following}"
    csv = write(tmp_path / "a.csv", "params,tokens,loss\n1,2,3\n1,4,2\n")
    log = write(tmp_path / "b.log", "step 10: train loss 3.1, val loss 3.2\n")
    done = command(csv, f"{log}=10,5", f"--out={out}")
    assert done.stdout == (f"{csv}: table, 2 rows; loss is loss\n{log}: nanoGPT console log, 1 run; loss is "
                           f"val_loss\n{out}: 3 rows from 2 logs{following}") and done.stderr == ""


def test_it_runs_as_a_module(tmp_path):
    log = write(tmp_path / "a.log", "nothing\n")
    done = subprocess.run([sys.executable, "-m", "scaling.logs", str(log), f"--out={tmp_path / 'o.csv'}"],
                          cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 2
    done = subprocess.run([sys.executable, "-m", "scaling.logs", "--help"], cwd=ROOT, capture_output=True,
                          text=True)
    assert done.returncode == 0 and all(name in done.stdout for name in ("nanoGPT", ".wandb", "TensorBoard"))


def test_what_train_writes_is_what_this_reads(lab, tmp_path):
    lab.train("s/a", log_interval=1, eval_interval=10)
    row = logs.parse_run(lab.out("s/a"))
    assert list(row) == logs.RUN_COLUMNS and (row["study"], row["run"]) == ("s", "a")
    logs.write_curves(lab.out("s"), tmp_path / "curves.csv")
    table = read_table(tmp_path / "curves.csv")
    assert table["tokens"][-1] == row["tokens"] and table["val_loss"][-1] == row["val_loss"]
    assert len(table["step"]) > 10 and np.isfinite(table["train_loss"][1:]).all()
