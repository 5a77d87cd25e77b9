"""Stand-ins for packages, of which only the files are read, and for texts."""

import pytest

from pdl_jax.data import schema
from pdl_jax.data.packaged import texts
from pdl_jax.data.packaged.texts import Example


@pytest.fixture
def install(tmp_path, monkeypatch):
  """Installs files as a package that cannot be imported; gives its folder."""
  site = tmp_path / 'site'
  site.mkdir()
  monkeypatch.syspath_prepend(site)

  def make(name, version, files=()):
    info = site / f'{name}-{version}.dist-info'
    info.mkdir()
    metadata = f'Name: {name.replace("_", "-")}\nVersion: {version}\n'
    (info / 'METADATA').write_text(metadata, 'utf-8')
    files = {'__init__.py': b'raise AssertionError\n', **dict(files)}
    for path, data in files.items():
      file = site / name / path
      file.parent.mkdir(parents=True, exist_ok=True)
      file.write_bytes(data)
    return site / name

  return make


@pytest.fixture(scope='module')
def register():
  """Registers a text of a few records a split, and forgets it afterwards."""

  def register(count=2, **facts):
    words = ('package', 'description', 'citation', 'license')
    facts = {
      **dict.fromkeys(words, 'words'), 'dataset': 'made_up', 'version': '1.2.3',
      'package_version': '7', **facts,
    }  # fmt: skip

    @texts.register_text('mine', **facts)
    def make(dropped):
      dropped.update(b=0, c=4, a=1)
      return {
        split: [
          Example(f'{split}{n}', split, 's', 't u', 'x') for n in range(count)
        ]
        for split in schema.SPLITS
      }

  yield register
  texts.TEXTS.pop('mine', None)
