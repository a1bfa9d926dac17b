"""Every warning of a fit is in the glossary, and nothing else is."""
import ast
from pathlib import Path

from scaling import fit
from scaling.laws.glossary import GLOSSARY

LAWS = Path(fit.__file__).parent / "laws"


def words_of(node: ast.AST) -> str:
    """The text of a string in the source; what is filled in is a gap."""
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "_" for part in node.values)
    return node.value


def sentences(path: Path, functions: str) -> list[str]:
    """The strings of more than three words in the functions whose names begin so, without docstrings."""
    found = []
    for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not (isinstance(function, ast.FunctionDef) and function.name.startswith(functions)):
            continue
        inner = {id(part) for node in ast.walk(function) if isinstance(node, ast.JoinedStr)
                 for part in node.values}
        strings = [node for line in function.body[1:] for node in ast.walk(line) if id(node) not in inner
                   and (isinstance(node, ast.JoinedStr)
                        or isinstance(node, ast.Constant) and isinstance(node.value, str))]
        found += [words for words in map(words_of, strings) if words.count(" ") > 3 or "refused: " in words]
    return found


def test_each_warning_has_its_line_and_each_line_its_warning():
    said = sentences(LAWS / "health.py", "of_") + sentences(LAWS / "arms.py", "health")
    said += sentences(LAWS.parent / "report.py", "stray")
    said = [words for words in said if not words.startswith(("_: ", "_, "))]     # these go on from another
    unknown = [words for words in said if not any(key in words for key in GLOSSARY)]
    assert len(said) > 35 and unknown == []
    assert [key for key in GLOSSARY if not any(key in words for words in said)] == []


def test_it_is_printed(capsys):
    fit.main(["--explain"])
    out = capsys.readouterr().out
    assert all(f"... {words} ...\n    {meaning}\n" in out for words, (meaning, _) in GLOSSARY.items())
