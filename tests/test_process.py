"""Environment that a process sets before JAX starts."""

import os
from pathlib import Path

import pytest

from pdl_jax import process

FOLDER = 'JAX_COMPILATION_CACHE_DIR'


@pytest.fixture
def home(monkeypatch, tmp_path):
  monkeypatch.delenv(FOLDER)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'home'))
  yield tmp_path / 'home'
  os.environ.pop(FOLDER, None)


def test_compiled_programs_are_kept_by_the_instructions_of_the_cpu(
  home, monkeypatch
):
  folders = []
  for flags in ('flags : avx2', 'flags : avx2 avx512f', 'flags : avx2'):
    monkeypatch.setattr(process, '_instructions', lambda flags=flags: flags)
    os.environ.pop(FOLDER, None)
    process.keep_compiled()
    folders.append(Path(os.environ[FOLDER]))
  assert folders[0] == folders[2] != folders[1]
  assert all(x.is_dir() and x.is_relative_to(home) for x in folders)


@pytest.mark.parametrize('given', ['/of/the/user', ''])
def test_a_folder_of_the_user_stays(home, monkeypatch, given):
  monkeypatch.setenv(FOLDER, given)
  process.keep_compiled()
  assert os.environ[FOLDER] == given and not home.exists()


def test_where_nothing_can_be_written_nothing_is_kept(home):
  home.write_text('a file', encoding='utf-8')
  process.keep_compiled()
  assert FOLDER not in os.environ
