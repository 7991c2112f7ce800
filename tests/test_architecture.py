"""The house: which way imports flow, what an import costs, and what every module owes its readers."""

import ast
import inspect
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from quatrain import errors

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "quatrain"
FILES = sorted(SOURCE.rglob("*.py"))
LONGEST = 450  # lines of a file

per_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


# -- imports


def test_import_contracts_hold():
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from importlinter.cli import lint_imports_command; lint_imports_command()",
            "--no-cache",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_room_has_a_place_in_the_import_order():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (layers,) = [contract["layers"] for contract in settings["contracts"] if contract["type"] == "layers"]
    placed = {name.strip() for layer in layers for name in layer.split("|")}
    rooms = {f"quatrain.{path.stem}" for path in SOURCE.glob("*.py") if not path.stem.startswith("__")}
    rooms |= {f"quatrain.{path.name}" for path in SOURCE.iterdir() if (path / "__init__.py").exists()}
    assert rooms == placed


HEAVY = ("torch", "numpy", "safetensors", "rich", "altair")


@pytest.mark.parametrize(
    "code",
    [
        "import quatrain",
        "from quatrain.cli import main; main(['--help'])",
        "from quatrain.cli import main; main(['--version'])",
        "from quatrain.cli import main; main([])",
    ],
)
def test_import_and_help_are_light(code):
    loaded = run_python(f"{code}\nimport sys\nprint('LOADED', *sys.modules)").split("LOADED")[1].split()
    assert not set(HEAVY) & set(loaded)


@pytest.mark.parametrize("module", ["config.schema", "config.toml", "records", "report", "_files", "errors"])
def test_rooms_that_need_no_torch_load_none(module):
    loaded = run_python(f"import quatrain.{module}\nimport sys\nprint(*sys.modules)").split()
    assert "torch" not in loaded


def test_public_names_are_there_and_nothing_else_is():
    import quatrain

    assert set(dir(quatrain)) == set(quatrain.__all__)
    for name in quatrain.__all__:
        assert getattr(quatrain, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Mamba'"):
        _ = quatrain.Mamba


# -- what a module owes its readers


def test_the_exception_tree_is_drawn_as_it_is():
    real = {
        name: [base.__name__ for base in cls.__bases__]
        for name, cls in vars(errors).items()
        if inspect.isclass(cls) and issubclass(cls, Exception)
    }
    drawn = re.findall(r"^(?:\|--|`--) (\w+)\s+\((\w+)\)", errors.__doc__, re.MULTILINE)
    assert {name: ["QuatrainError", builtin] for name, builtin in drawn} | {
        "QuatrainError": ["Exception"]
    } == real
    assert errors.__doc__.count("`--") == 1


def public_definitions(path: Path):
    """Public functions and classes of a module, public methods and properties of public classes.

    Without ``forward``: what a module computes is said by its class.
    """
    for node in tree_of(path).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            yield node.name, node
            if isinstance(node, ast.ClassDef):
                for inner in node.body:
                    if isinstance(inner, ast.FunctionDef) and not inner.name.startswith(("_", "forward")):
                        yield f"{node.name}.{inner.name}", inner


def inherits_its_docstring(path: Path, name: str) -> bool:
    """Whether it is a method of a class whose base in this package says what the method does."""
    owner, _, method = name.partition(".")
    if not method:
        return False
    module = ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")
    bases = getattr(import_module(module), owner).__mro__[1:]
    ours = [
        vars(base)[method]
        for base in bases
        if base.__module__.startswith("quatrain") and method in vars(base)
    ]
    return any(map(inspect.getdoc, ours))


def is_public(path: Path) -> bool:
    """The command line is documented by its ``--help``; underscored modules are nobody's interface."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return parts[0] != "cli" and not any(part.startswith("_") and part != "__init__" for part in parts)


PUBLIC = list(filter(is_public, FILES))


@pytest.mark.parametrize("path", PUBLIC, ids=lambda path: str(path.relative_to(SOURCE)))
def test_public_definitions_have_docstrings(path):
    silent = [
        name
        for name, node in public_definitions(path)
        if not ast.get_docstring(node) and not inherits_its_docstring(path, name)
    ]
    assert not silent


@per_file
def test_modules_say_what_they_are_and_are_short(path):
    text = path.read_text(encoding="utf-8")
    assert not text.strip() or ast.get_docstring(tree_of(path)), "has no docstring"
    assert len(text.splitlines()) < LONGEST


@per_file
def test_no_print_no_environment_no_pickle(path):
    """Output goes through the command line, settings through configs, tensors through safetensors."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Name):
            assert node.id != "print", f"line {node.lineno}: print"
        if isinstance(node, ast.Attribute):
            dotted = ast.unparse(node)
            assert dotted not in ("os.environ", "os.getenv", "torch.load", "torch.save"), (
                f"line {node.lineno}: {dotted}"
            )
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            assert not {"pickle", "dill", "cloudpickle"} & set(names), f"line {node.lineno}: pickle"


@pytest.mark.parametrize(
    "name", ["README.md", "README.zh-CN.md", "LICENSE", "CONTRIBUTING.md", "CHANGELOG.md", "LOG.md"]
)
def test_the_project_says_what_it_is(name):
    assert (ROOT / name).stat().st_size > 500


def test_the_version_is_in_the_changelog_or_unreleased():
    import quatrain

    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"[{quatrain.__version__}]" in changelog or "[Unreleased]" in changelog
