"""The model store's answers that need no network."""

from __future__ import annotations

from pathlib import Path

import pytest

from workers.models import ModelError, cache_dir, content_revision, resolve


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "my-model"
    made.mkdir()
    (made / "config.json").write_text("{}")
    (made / "model.safetensors").write_bytes(b"1234")
    return made


def test_a_local_folder_is_used_as_it_is(folder: Path) -> None:
    model = resolve(str(folder))
    assert (model.path, model.name) == (folder, "my-model")
    assert model.revision == content_revision(folder)


def test_the_revision_follows_the_content_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    first = content_revision(folder)
    (folder / "README.md").write_text("words")
    assert content_revision(folder) == first
    assert content_revision(folder.rename(tmp_path / "moved")) == first
    moved = tmp_path / "moved"
    (moved / "model.safetensors").write_bytes(b"12345")
    second = content_revision(moved)
    (moved / "chat_template.jinja").write_text("{{ messages }}")
    assert len({first, second, content_revision(moved)}) == 3


def test_what_is_no_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        resolve(str(tmp_path))
    for text in ("/no/such/folder", "a b", "", "../up"):
        with pytest.raises(ModelError, match="neither a folder"):
            resolve(text)


def test_where_models_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HEADRACE_CACHE_DIR", raising=False)
    assert cache_dir() == tmp_path / ".cache" / "headrace"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "headrace"
    monkeypatch.setenv("HEADRACE_CACHE_DIR", str(tmp_path / "own"))
    assert cache_dir() == tmp_path / "own"


def test_a_model_that_is_there_already_needs_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HEADRACE_CACHE_DIR", str(tmp_path))
    ready = tmp_path / "models" / "SmolLM2-135M-Instruct"
    ready.mkdir(parents=True)
    (ready / "config.json").write_text("{}")
    told: list[str] = []
    models = {resolve(name, lambda what, _fraction: told.append(what)) for name in ("smollm2", ready.name)}
    assert [(model.path, model.name) for model in models] == [(ready, ready.name)]
    assert told == []
