"""The configurator: order of precedence, types, error messages, --help, and that files keep to themselves."""
import dataclasses
import importlib
import sys
from dataclasses import dataclass

import pytest

from config import configurator
from config.configurator import configure, read_file
from runtime.basics import UserError, exit_cleanly


@dataclass
class Config:
    # model
    n_layer: int = 4               # transformer blocks
    n_embd: int = 64               # width
    # training
    learning_rate: float = 1e-3    # peak, per step
    target_tokens: float = -1      # training tokens
    bias: bool = False             # biases in the linear layers
    compile: bool = True           # torch.compile
    out_dir: str = "out/run"       # where the run goes


@pytest.fixture
def write(tmp_path, monkeypatch):
    """write(text, name) makes a config file in the current directory and returns its name."""
    monkeypatch.chdir(tmp_path)

    def write(text, name="small.py"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return name

    return write


def get(*args):
    return configure(Config, list(args))


def error(*args):
    """The message of the UserError that these arguments raise; it must be one line."""
    with pytest.raises(UserError) as e:
        configure(Config, list(args))
    assert "\n" not in str(e.value)
    return str(e.value)


# ---------------------------------------------------------------- order


def test_without_arguments_the_defaults_hold():
    assert configure(Config, []) == Config()


@pytest.mark.parametrize("order", ["file first", "file last"])
def test_the_command_line_wins_wherever_it_stands(write, order):
    args = [write("n_layer = 8\nn_embd = 128\n"), "--n_layer=2"]
    c = configure(Config, args if order == "file first" else args[::-1])
    assert (c.n_layer, c.n_embd, c.learning_rate) == (2, 128, 1e-3)


def test_a_later_file_or_argument_wins_over_an_earlier_one(write):
    a, b = write("n_layer = 8\nn_embd = 128\n", "a.py"), write("n_layer = 16\n", "b.py")
    assert (get(a, b).n_layer, get(b, a).n_layer, get(a, b).n_embd) == (16, 8, 128)
    assert get("--n_layer=1", "--n_layer=2").n_layer == 2


# ---------------------------------------------------------------- types


@pytest.mark.parametrize("text, value", [
    ("n_layer=12", 12), ("n_layer=1e6", 1_000_000), ("n_layer=1_000", 1000), ("n_layer=-1", -1),
    ("learning_rate=1", 1.0), ("learning_rate=6e-4", 6e-4), ("target_tokens=1e9", 1e9),
    ("bias=True", True), ("bias=true", True), ("bias=1", True), ("bias", True),
    ("compile=False", False), ("compile=false", False), ("compile=0", False),
    ("out_dir=out/a=b", "out/a=b"), ("out_dir=12", "12"), ("out_dir=", ""), ("out_dir=True", "True")])
def test_command_line_values_take_the_type_of_the_field(text, value):
    got = getattr(get(f"--{text}"), text.partition("=")[0])
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize("text, value", [
    ("n_layer = 1e6", 1_000_000), ("n_embd = 2 ** 7", 128), ("learning_rate = 1", 1.0), ("bias = True", True),
    ("bias = 1", True), ("out_dir = 'out/' + 'x'", "out/x")])
def test_file_values_take_the_type_of_the_field(write, text, value):
    got = getattr(get(write(text)), text.split()[0])
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize("text, kind", [
    ("n_layer=four", "int"), ("n_layer=1.5", "int"), ("n_layer=True", "int"), ("n_layer=", "int"),
    ("n_layer=1e999", "int"), ("n_layer=[4]", "int"), ("n_layer=1+1", "int"), ("n_layer", "int"),
    ("learning_rate=fast", "float"), ("learning_rate=True", "float"), ("learning_rate=1j", "float"),
    ("bias=maybe", "bool"), ("bias=2", "bool"), ("bias=1.0", "bool"), ("out_dir", "str")])
def test_a_wrong_type_on_the_command_line_is_named(text, kind):
    key = text.partition("=")[0]
    assert error(f"--{text}").startswith(f"--{key}: {key} must be {kind}, not ")


@pytest.mark.parametrize("text, kind", [
    ("n_layer = '4'", "int"), ("n_layer = 4.5", "int"), ("n_layer = float('nan')", "int"),
    ("n_layer = None", "int"), ("n_layer = True", "int"), ("n_layer = max", "int"),
    ("learning_rate = '1e-3'", "float"), ("learning_rate = [1e-3]", "float"),
    ("bias = 'yes'", "bool"), ("bias = 2", "bool"), ("out_dir = 3", "str")])
def test_a_wrong_type_in_a_file_is_named_with_its_line(write, text, kind):
    key = text.split()[0]
    assert error(write(f"# a comment\n\n{text}\n")).startswith(f"small.py:3: {key} must be {kind}, not ")


# ---------------------------------------------------------------- mistakes


def test_an_unknown_key_on_the_command_line_gets_the_nearest_one(write):
    assert error("--n_layr=3") == ("--n_layr: unknown key 'n_layr' (did you mean 'n_layer'?); "
                                   "--help lists them all")
    assert "did you mean 'learning_rate'?" in error("--learning-rate=1")
    assert error("--zzz=3") == "--zzz: unknown key 'zzz'; --help lists them all"
    assert error(write("yyy = 1\nn_layer = 2\nzzz = 3\n")) == (
        "small.py:1: unknown keys 'yyy', 'zzz'; --help lists them all")


def test_a_misspelt_key_in_a_file_names_its_last_line_and_the_nearest_key(write):
    text = "n_layer = 4\nlearning_rat = 1\nlearning_rat = 2\n\ndef helper():\n    learning_rat = 3\n"
    assert error(write(text)) == ("small.py:3: unknown key 'learning_rat' (did you mean 'learning_rate'?); "
                                  "--help lists them all")


def test_values_overruled_on_the_command_line_hide_no_misspelt_key(write):
    assert "small.py:1: unknown key 'n_layers'" in error(write("n_layers = 4\n"), "--n_layer=4")


def test_a_missing_file_a_folder_and_a_file_that_is_not_python(write, tmp_path):
    (tmp_path / "folder.py").mkdir()
    assert error("nope.py") == "no such config file: nope.py"
    assert error("config/scale_d23.py") == (
        "no such config file: config/scale_d23.py; did you mean config/scale_d32.py?")
    assert error("scale_d64").endswith("an override is --key=value; did you mean config/scale_d64.py?")
    assert error("folder.py") == "no such config file: folder.py"
    assert "small.txt: a config file ends in .py, an override is --key=value" == error(write("", "small.txt"))
    assert "n_layer=3: a config file ends in .py" in error("n_layer=3")


def test_a_file_of_the_repository_that_is_asked_for_elsewhere(write, tmp_path, monkeypatch):
    monkeypatch.setattr(configurator.basics, "ROOT", tmp_path / "my lab")
    (tmp_path / "my lab" / "config").mkdir(parents=True)
    write("n_layer = 8\n", "my lab/config/a.py")
    assert error("config/a.py") == ("no such config file: config/a.py; run from the repository's root: "
                                    f"cd '{tmp_path}/my lab'")


def test_home_is_found_in_a_run_directory(write, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert get("--out_dir=~/a").out_dir == get(write("out_dir = '~/a'\n")).out_dir == "/home/me/a"


def test_a_byte_order_mark_is_no_part_of_a_file(write):
    assert get(write("\ufeffn_layer = 8\n")).n_layer == 8


def test_a_syntax_error_is_named_with_its_line(write):
    assert error(write("n_layer = 4\nn_embd = = 2\n")) == "small.py:2: invalid syntax"
    assert error(write("n_layer = 4\n  n_embd = 2\n")) == "small.py:2: unexpected indent"


def test_an_exception_in_the_file_is_named_with_its_line(write):
    assert error(write("n_layer = 4\nn_embd = 1 / 0\n")) == "small.py:2: ZeroDivisionError: division by zero"
    assert error(write("_a = 1\n\nopen('none.txt')\n")).startswith("small.py:3: FileNotFoundError: ")
    assert error(write("raise ValueError('two\\nlines')\n")) == "small.py:1: ValueError: two lines"
    assert error(write("def _f():\n    return 1 / 0\n\n_f()\n")).startswith("small.py:2: ZeroDivisionError")


def test_a_file_that_is_not_utf8_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "latin.py").write_bytes(b"# caf\xe9\nn_layer = 2\n")
    assert error("latin.py").startswith("latin.py: UnicodeDecodeError: ")


def test_exit_cleanly_prints_one_line_and_exits_with_2(capsys):
    def fails():
        raise UserError("no such thing; make one")

    with pytest.raises(SystemExit) as e:
        exit_cleanly(fails)
    assert e.value.code == 2
    assert capsys.readouterr() == ("", "error: no such thing; make one\n")


@pytest.mark.parametrize("code", [0, 3])
def test_exit_cleanly_hands_on_the_exit_code(code):
    with pytest.raises(SystemExit) as e:
        exit_cleanly(lambda: code)
    assert e.value.code == code


# ---------------------------------------------------------------- what a file may do


def test_private_names_imports_functions_and_classes_are_ignored(write):
    text = ("import math\nfrom math import sqrt\nfrom pathlib import Path\n_width = 32\n"
            "def double(x):\n    n_layer = 99\n    return 2 * x\nclass Note:\n    n_layer = 98\n"
            "n_layer = int(sqrt(16)) * 2\nn_embd = double(_width)\nlearning_rate = math.log10(10)\n")
    assert read_file(write(text)) == {"n_layer": (8, "small.py:10"), "n_embd": (64, "small.py:11"),
                                      "learning_rate": (1.0, "small.py:12")}


def test_public_leftovers_are_errors(write):
    assert "small.py:1: unknown key 'i'" in error(write("for i in range(3):\n    n_layer = i\n"))
    assert "small.py:1: unknown key 'half'" in error(write("half = lambda x: x / 2\n"))


def test_files_do_not_leak_into_each_other_or_into_this_program(write):
    a = write("_hidden = 5\nn_layer = 8\n", "a.py")
    assert error(a, write("n_embd = _hidden\n", "b.py")).startswith("b.py:1: NameError")
    assert error(a, write("n_embd = n_layer\n", "b.py")).startswith("b.py:1: NameError")
    assert error(write("n_layer = len(convert.__name__)\n", "c.py")).startswith("c.py:1: NameError")
    assert get() == Config() and not hasattr(configurator, "n_layer")


def test_a_file_knows_where_it_is(write):
    assert get(write("out_dir = __file__\n")).out_dir == "small.py"


# ---------------------------------------------------------------- help


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_every_field_with_default_and_comment(flag, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["some/where/script.py", flag])
    with pytest.raises(SystemExit) as e:
        configure(Config, [flag, "--n_layer=2"])
    out = capsys.readouterr().out
    assert e.value.code == 0
    assert out.startswith("usage: python script.py [config/FILE.py ...] [--key=value ...]\n")
    lines = [line.split(None, 1) for line in out.splitlines()]
    for words in (["--n_layer=4", "transformer blocks"], ["--learning_rate=1e-3", "peak, per step"],
                  ['--out_dir="out/run"', "where the run goes"], ["model"], ["training"]):
        assert words in lines


@pytest.mark.parametrize("script", ["train", "sample"])
def test_the_scripts_comment_every_field(script):
    config = importlib.import_module(script).Config
    lines = configurator.help_text(config).splitlines()
    rows = [line.split(None, 1) for line in lines if line.startswith("  --")]
    assert [key.partition("=")[0] for key, _ in rows] == [f"--{f.name}" for f in dataclasses.fields(config)]
