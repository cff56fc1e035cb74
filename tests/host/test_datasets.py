"""Data sets on disk: whose manifest a file is under, what is recorded, what is refused before a file is opened."""

import logging
import subprocess
from pathlib import Path

import pytest

from tapestryd.host.datasets import MANIFEST, RECORD, Dataset, admitted, datasets, declare, differences
from tapestryd.host.manifest import Manifest
from tapestryd.training.sources import DataEmpty, DataForbidden, NoTier

OPEN = Manifest("fully-open", artifact_id="open")


def laid(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"text of {name}\n")
    return root


def admit(*paths: Path, require_manifest: bool = False, volunteer: bool = True, budget: bool = False) -> list[Dataset]:
    return admitted(paths, require_manifest=require_manifest, volunteer=volunteer, budget=budget)


def test_a_file_is_under_the_nearest_manifest(tmp_path: Path) -> None:
    root = laid(tmp_path / "data", "loose.txt", "a/x.txt", "a/deep/y.md", "a/own/z.txt", "b/c/w.txt", "a/.hidden/v.txt")
    for folder in ("a", "a/own", "b"):
        declare(root / folder, Manifest("fully-open", artifact_id=folder))
    found = {dataset.root: dataset for dataset in admit(root, root / "a" / "deep" / "..")}
    assert {place: dataset.manifest and dataset.manifest.artifact_id for place, dataset in found.items()} == {
        root: None, root / "a": "a", root / "a/own": "a/own", root / "b": "b",
    }  # fmt: skip
    assert [file.name for file in found[root / "a"].files] == ["y.md", "x.txt"]
    assert all(len(digest) == 64 for digest in found[root / "a"].files.values())
    assert found[root].files == {root / "loose.txt": ""}


def test_a_part_of_a_data_set_is_not_taken_for_undeclared(tmp_path: Path) -> None:
    root = laid(tmp_path / "data", "a/b/x.txt")
    declare(root, Manifest("private", artifact_id="p"))
    for part in (root / "a", root / "a/b/x.txt"):
        with pytest.raises(DataForbidden, match=f"is a part of the data set {root}; name the whole"):
            datasets([part])


def test_the_record_is_sha256sum_s(tmp_path: Path) -> None:
    root = laid(tmp_path / "data", "a.txt", "sub/ü b.md", "not-read.py", "\u2028.md")
    assert declare(root, OPEN) == (3, 49)
    done = subprocess.run(["sha256sum", "-c", "--strict", RECORD], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "a.txt: OK\nsub/ü b.md: OK\n\u2028.md: OK\n"
    assert differences(root) == []


def test_what_is_not_as_recorded_is_told(tmp_path: Path) -> None:
    root = laid(tmp_path / "data", "a.txt", "b.txt", "c.txt")
    declare(root, OPEN)
    laid(root, "d.txt")
    (root / "b.txt").write_text("other")
    (root / "c.txt").unlink()
    assert differences(root) == [
        f"{root}/c.txt: recorded, and not there", f"{root}/d.txt: not recorded", f"{root}/b.txt: changed since it was recorded",
    ]  # fmt: skip
    with pytest.raises(DataForbidden, match=r"d\.txt is not in .*tapestry-data\.sha256"):
        admit(root)
    declare(root, OPEN)
    assert differences(root) == []
    admit(root)


def test_undeclared_data_is_taken_loudly_or_not_at_all(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = laid(tmp_path / "data", "a.txt")
    with caplog.at_level(logging.WARNING):
        admit(root)
    assert f"{root}: no manifest: TAKEN AS FULLY-OPEN DATA" in caplog.text
    with pytest.raises(DataForbidden, match="require_manifest is on"):
        admit(root, require_manifest=True)
    declare(root, OPEN)
    admit(root, require_manifest=True)


def test_one_data_set_that_is_refused_refuses_all_unopened(tmp_path: Path) -> None:
    root = laid(tmp_path / "data", "a/x.txt", "b/y.txt")
    declare(root / "a", OPEN)
    declare(root / "b", Manifest("sovereign", artifact_id="s", tier=2, rights="own"))
    for file in root.rglob("*.txt"):
        file.chmod(0)
        file.rename(file.with_suffix(".md"))  # neither recorded nor readable: the gates come first
    with pytest.raises(DataForbidden, match="this run is open"):
        admit(root / "b")
    with pytest.raises(NoTier, match="no budget"):
        admit(root / "b", volunteer=False)
    with pytest.raises(DataForbidden):
        admit(root)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        (MANIFEST, b"class = 'private'", "must begin with schema_version"),
        (MANIFEST, b"x" * (1 << 17), "larger than"),
        (RECORD, b"garbage\n", "line 1 is none of sha256sum"),
        (RECORD, None, "makes it"),
    ],
)
def test_what_is_damaged_fails_closed(name: str, content: bytes | None, says: str, tmp_path: Path) -> None:
    root = laid(tmp_path / "data", "a.txt")
    declare(root, OPEN)
    (root / name).unlink()
    if content is not None:
        (root / name).write_bytes(content)
    with pytest.raises(DataForbidden, match=says):
        admit(root)


def test_the_largest_manifest_is_read(tmp_path: Path) -> None:
    most = "\U00020000" * 300
    texts = ("artifact_type", "owner", "source", "provenance", "rights", "residency", "visibility", "quality", "version")
    said = Manifest(
        "sovereign", artifact_id=most, lineage=(most,) * 16, use_constraints=("attribution",) * 16, **dict.fromkeys(texts, most)
    )
    declare(laid(tmp_path, "a.txt"), said)
    assert [dataset.manifest for dataset in admit(tmp_path, volunteer=False)] == [said]


def test_names_that_cannot_be_recorded_and_folders_without_text(tmp_path: Path) -> None:
    with pytest.raises(DataForbidden, match="line break"):
        declare(laid(tmp_path / "a", "x\ry.txt"), OPEN)
    with pytest.raises(DataEmpty):
        declare(laid(tmp_path / "b", "x.py"), OPEN)
    assert not (tmp_path / "a" / MANIFEST).exists()


def test_a_link_out_of_the_folder_is_not_of_it(tmp_path: Path) -> None:
    elsewhere = laid(tmp_path / "elsewhere", "secret.txt")
    root = laid(tmp_path / "data", "a.txt")
    (root / "link.txt").symlink_to(elsewhere / "secret.txt")
    declare(root, OPEN)
    assert (root / RECORD).read_text().endswith("  a.txt\n")
    assert [dataset.manifest for dataset in admit(root)] == [OPEN, None]
    declare(elsewhere, Manifest("private", artifact_id="s"))
    with pytest.raises(DataForbidden, match="it is private"):
        admit(root)
