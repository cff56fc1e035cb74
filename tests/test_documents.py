"""The documents held against the files: links lead somewhere, tables name what is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("protocols", "tapestryd", "tests", "deploy")
DOCUMENTS = [ROOT / "README.md", *sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md"))]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text())
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_a_decisions_number_is_its_own() -> None:
    pages = sorted((ROOT / "protocols" / "decisions").glob("*.md"))
    assert [page.name[:4] for page in pages] == [f"{number:04}" for number in range(1, len(pages) + 1)]
    for page in pages:
        assert page.read_text().startswith(f"# {page.name[:4]}: ")


def test_the_architecture_names_every_module() -> None:
    text = (ROOT / "tapestryd" / "ARCHITECTURE.md").read_text()
    table = text[text.index("## Modules") : text.index("## Flows")]
    named = set[str]()
    for cell in re.findall(r"^\| (`.*?) \|", table, re.M):
        room = ""
        for name in re.findall(r"`([\w/]+)`", cell):
            room = name.partition("/")[0] if "/" in name else room
            named |= {name, f"{room}/{name}"}  # in a row, the room is said once
    here = ROOT / "tapestryd"
    modules = {str(path.relative_to(here).with_suffix("")) for path in here.rglob("*.py") if path.name != "__init__.py"}
    whole = ("cli/", "demo/", "host/sensors/", "host/dashboard/")  # a row each
    assert {name for name in modules if not name.startswith(whole)} - named == set()


@pytest.mark.parametrize("folder", ["tests/simulation", "tests/fuzz"])
def test_a_readme_names_every_file_of_its_folder(folder: str) -> None:
    text = (ROOT / folder / "README.md").read_text()
    files = {path.name for path in (ROOT / folder).glob("*.py") if not path.name.startswith(("__init__", "conftest", "test_"))}
    assert {name for name in files if name not in text} == set()
