"""Counts how many of twenty broken lines the fast tests catch.

  python -m tests.twenty_breaks [--count=20]

The fast tests run once under coverage.py, which says which test executes which
line. Among the executed lines of the core, of claims and of statistics twenty
are drawn, by the commit's hash. Each break is made in a copy of the tree, where
the tests that execute the line run until one fails.
"""

import argparse
import ast
import copy
import dataclasses
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pdl_jax.run_folder import environment
from tests.test_layering import CORE, ROOT

BROKEN = [
  f'pdl_jax/{name}.py' for name in (*CORE, 'sweep/claims', 'report/statistics')
]
PYTEST = (sys.executable, '-m', 'pytest', '-q', '-m', 'not slow')
# Path -> line -> tests that execute it.
Lines = dict[str, dict[int, list[str]]]
FLIPPED = {
  ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
}  # fmt: skip
COMPARED = {
  ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
  ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
  ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Break:
  """A change of one expression in one file."""

  path: str
  line: int
  kind: str
  before: str
  after: str
  start: int  # offsets in the file's characters
  end: int


def variants(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
  """Yields (kind, broken copy) for each operator that applies to a node."""
  new = copy.deepcopy(node)
  match new:
    case ast.BinOp(op=op) if type(op) in FLIPPED:
      yield 'a dropped term', new.left
      new.op = FLIPPED[type(op)]()
      yield 'a sign', new
    case ast.Compare(ops=[op]) if type(op) in COMPARED:
      new.ops = [COMPARED[type(op)]()]
      yield 'a comparison', new
    case ast.Constant(value=int(value)) if not isinstance(value, bool):
      yield 'an off-by-one', ast.Constant(value + 1)
    case ast.Call(args=[first, second, *_]) if not any(
      isinstance(each, ast.Starred) for each in (first, second)
    ):
      new.args[:2] = second, first
      yield 'swapped arguments', new


def sites(path: Path, lines: set[int]) -> list[Break]:
  """Returns every break of a file on one of the lines."""
  text = path.read_text('utf-8')
  rows = text.splitlines(keepends=True)

  def offset(line: int, column: int) -> int:
    before = rows[line - 1].encode()[:column].decode()
    return sum(map(len, rows[: line - 1])) + len(before)

  found = []
  for node in ast.walk(ast.parse(text)):
    if getattr(node, 'lineno', 0) not in lines:
      continue
    for kind, new in variants(node):
      start = offset(node.lineno, node.col_offset)
      end = offset(node.end_lineno, node.end_col_offset)
      before, after = text[start:end], f'({ast.unparse(new)})'
      if ast.unparse(node) != after[1:-1]:
        name = path.relative_to(ROOT).as_posix()
        found.append(Break(name, node.lineno, kind, before, after, start, end))
  return found


def executed(data_file: Path) -> Lines:
  """Runs the fast tests, and says which of them execute each line."""
  import coverage

  subprocess.run(
    [*PYTEST, '-n', '2', '--dist', 'loadfile', '--cov=pdl_jax',
     '--cov-context=test', '--cov-report='],
    cwd=ROOT, check=True, env={**os.environ, 'COVERAGE_FILE': str(data_file)},
  )  # fmt: skip
  data = coverage.CoverageData(str(data_file))
  data.read()
  return {
    Path(name).relative_to(ROOT).as_posix(): {
      line: sorted({each.split('|')[0] for each in tests if each})
      for line, tests in data.contexts_by_lineno(name).items()
    }
    for name in data.measured_files()
  }


def draw(lines: Lines, count: int, seed: str) -> list[Break]:
  """Draws executed lines that can be broken, and then a break of each."""
  chance = random.Random(seed)
  by_line: dict[tuple[str, int], list[Break]] = {}
  for name in BROKEN:
    ran = {line for line, tests in lines.get(name, {}).items() if tests}
    for each in sites(ROOT / name, ran):
      by_line.setdefault((each.path, each.line), []).append(each)
  chosen = chance.sample(sorted(by_line), count)
  return [chance.choice(by_line[line]) for line in chosen]


def caught_by(one: Break, tests: list[str], tree: Path) -> str:
  """Returns the first test that fails with the break, or ''."""
  file = tree / one.path
  whole = file.read_text('utf-8')
  file.write_text(whole[: one.start] + one.after + whole[one.end :], 'utf-8')
  try:
    done = subprocess.run(
      [*PYTEST, '-x', *tests],
      cwd=tree, capture_output=True, text=True, encoding='utf-8',
    )  # fmt: skip
  finally:
    file.write_text(whole, 'utf-8')
  if done.returncode == 0:
    return ''
  failed = [
    line.split(' ')[1]
    for line in done.stdout.splitlines()
    if line.startswith(('FAILED', 'ERROR'))
  ]
  return failed[0] if failed else 'pytest does not start'


def main() -> None:
  """Draws breaks, tries each, and prints what caught it."""
  parser = argparse.ArgumentParser(prog='python -m tests.twenty_breaks')
  parser.add_argument('--count', type=int, default=20)
  count, seed = parser.parse_args().count, environment({})['commit']
  caught = 0
  with tempfile.TemporaryDirectory() as folder:
    lines = executed(Path(folder) / 'coverage')
    tree = Path(folder) / 'tree'
    shutil.copytree(
      ROOT, tree, ignore=shutil.ignore_patterns('.venv*', '.git', 'runs')
    )
    for one in draw(lines, count, seed):
      end = caught_by(one, lines[one.path][one.line], tree)
      caught += bool(end)
      print(
        f'{one.path}:{one.line} {one.kind}: {one.before} -> {one.after}: '
        f'{end or "MISSED"}',
        flush=True,
      )
  print(f'commit {seed}: {caught} of {count} breaks were caught')


if __name__ == '__main__':
  main()
