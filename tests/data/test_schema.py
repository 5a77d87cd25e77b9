"""Canonical fields: which stored field gives which, and what is refused."""

import numpy as np
import pytest

from pdl_jax.data import schema
from pdl_jax.errors import ConfigError


@pytest.mark.parametrize(('fields', 'stored', 'wanted'), [
  (None, 'source target', 'source target'),
  (None, 'style target id source group more', 'id group source target style'),
  ({'source': '', 'group': ''}, 'source target', 'source target'),
  (None, 'text', 'target'),
  ({'target': 'text'}, 'text source group id', 'id group target=text'),
  (
    {'source': 'a', 'target': 'b'}, 'a b id group style',
    'id group source=a target=b style',
  ),
  ({'source': 'a'}, 'a source target', 'source=a target'),
  ({'id': 'key', 'target': 't'}, 'id key t', 'id=key target=t'),
  ({'target': 'id'}, 'id', 'id target=id'),
])  # fmt: skip
def test_which_stored_field_gives_which(fields, stored, wanted):
  parts = [part.partition('=') for part in wanted.split()]
  pairs = [(field, other or field) for field, _, other in parts]
  assert list(schema.resolve(fields, stored.split()).items()) == pairs


def test_names_that_are_not_known():
  with pytest.raises(ConfigError, match="no field .* 'sorce'; did .* 'source'"):
    schema.resolve({'sorce': 'article'}, ['article'])
  with pytest.raises(ConfigError, match="no split 'valid'; .* 'validation'"):
    schema.renamed_splits({'valid': 'dev'})


def test_splits_that_are_called_as_here_are_left_out():
  splits = {'train': 'train', 'validation': 'dev', 'test': ''}
  assert schema.renamed_splits(splits) == {'validation': 'dev'}
  assert schema.renamed_splits(None) == {}


def test_only_ids_and_groups_may_be_integers():
  stored = ['t'], ['n']
  for field in ('id', 'group'):
    fields = {field: 'n', 'target': 't'}
    assert schema.resolve_stored('x', fields, *stored) == fields
    assert schema.as_text(np.int64(7), field) == '7'
    assert schema.as_text(True, field) is None
    assert schema.as_text(7.0, field) is None
  for field in ('source', 'target', 'style'):
    fields = {'target': 't', field: 'n'}
    with pytest.raises(ConfigError, match=f"x stores no text 'n', .*{field};"):
      schema.resolve_stored('x', fields, *stored)
    assert schema.as_text(7, field) is None
  with pytest.raises(ConfigError, match='its text fields are: none; set'):
    schema.resolve_stored('x', {'target': 'n'}, [], [])


def test_text_is_decoded():
  assert schema.as_text('é', 'source') == 'é'
  assert schema.as_text('é'.encode(), 'source') == 'é'
  assert schema.as_text(None, 'source') is None
  with pytest.raises(UnicodeDecodeError):
    schema.as_text(b'\xe9', 'source')


def test_where_relative_paths_start(monkeypatch, tmp_path):
  monkeypatch.setenv('HOME', '/home/me')
  monkeypatch.chdir(tmp_path)
  assert schema.local_path('x', None) == f'{tmp_path}/x'
  assert schema.local_path('x', '~/data') == '/home/me/data/x'
  assert schema.local_path('~/x', '/data') == '/home/me/x'
  assert schema.local_path('/x', '/data') == '/x'
