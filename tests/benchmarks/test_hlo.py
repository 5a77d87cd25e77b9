"""The reader of compiled programs, on programs with known answers."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from benchmarks import hlo
from pdl_jax.mesh import make_mesh

MESH = (2, 4, 1)
SIZE = 4 * 64 * 32  # Bytes of an array on a device.
SHAPE = jax.ShapeDtypeStruct((128, 128), jnp.float32)


def program(f, turns=()):
  """Of a function of each device's [64, 32] share."""
  mesh = make_mesh(MESH)
  mapped = jax.shard_map(
    f, mesh=mesh, in_specs=P('data', 'fsdp'), out_specs=P(), check_vma=False
  )
  return hlo.parse(jax.jit(mapped).lower(SHAPE).compile().as_text(), turns)


@pytest.mark.parametrize(
  ('f', 'kind', 'size', 'group', 'sent'),
  [
    (lambda x: lax.psum(x, 'fsdp'), 'all-reduce', SIZE, 4, 2 * 3 / 4 * SIZE),
    (lambda x: lax.psum(x, ('data', 'fsdp')), 'all-reduce', SIZE, 8,
     2 * 7 / 8 * SIZE),
    (lambda x: lax.all_gather(x, 'fsdp', tiled=True), 'all-gather', 4 * SIZE, 4,
     3 * SIZE),
    (lambda x: lax.psum_scatter(x, 'fsdp', tiled=True), 'reduce-scatter', SIZE,
     4, 3 / 4 * SIZE),
    (lambda x: lax.all_to_all(x, 'data', 0, 0, tiled=True), 'all-to-all', SIZE,
     2, SIZE / 2),
    (lambda x: lax.ppermute(x, 'data', [(0, 1), (1, 0)]), 'collective-permute',
     SIZE, 8, SIZE),
  ],
)  # fmt: skip
def test_each_collective(f, kind, size, group, sent):
  (found,) = hlo.collectives(program(f), devices=8)
  assert found[0] == kind
  assert found[2:] == (size, group, 1)
  assert found.sent == sent


def test_loops_count():
  def f(x):
    def outer(_, y):
      return lax.fori_loop(0, 3, lambda _, z: lax.psum(z, 'data'), y * 2)

    return lax.fori_loop(0, 5, outer, x)

  (found,) = hlo.collectives(program(f), devices=8)
  assert found.times == 15
  assert found.sent == 15 * SIZE


def test_turns_that_depend_on_data_are_given():
  def f(x):
    count = (x[0, 0] > 0).astype(int)
    return lax.fori_loop(0, count, lambda _, y: lax.psum(y, 'fsdp'), x)

  (found,) = hlo.collectives(program(f, [7]), devices=8)
  assert found.times == 7
  assert hlo.collectives(program(f, [0]), devices=8) == []
  with pytest.raises(ValueError, match='not known'):
    program(f)
  with pytest.raises(ValueError, match='belong to no loop'):
    program(f, [7, 7])
  (found,) = hlo.collectives(program(f, None), devices=8)
  assert math.isnan(found.times)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_matmuls(dtype):
  m, k, n, layers = 8, 16, 24, 6
  shape = partial(jax.ShapeDtypeStruct, dtype=dtype)

  def f(x, up, down):
    def layer(y, w):
      return jnp.einsum('mn,nk->mk', jnp.einsum('mk,kn->mn', y, w[0]), w[1]), 0

    return lax.scan(layer, x, (up, down))[0]

  args = shape((m, k)), shape((layers, k, n)), shape((layers, n, k))
  lowered = jax.jit(f).lower(*args)
  found = hlo.parse(lowered.compile().as_text())
  assert hlo.dot_flops(found) == 2 * layers * 2 * m * k * n


def test_batched_matmuls_with_several_contracted_axes():
  text = """ENTRY %main (a: f32[2,3,4,5], b: f32[2,3,4,5]) -> f32[2,4,4] {
  %a = f32[2,3,4,5]{3,2,1,0} parameter(0)
  %b = f32[2,3,4,5]{3,2,1,0} parameter(1)
  ROOT %c = f32[2,4,4]{2,1,0} dot(%a, %b), lhs_contracting_dims={1,3}
}
"""
  assert hlo.dot_flops(hlo.parse(text)) == 2 * (2 * 4 * 4) * (3 * 5)


# As the TPU's compiler writes it: layouts with tiles, turns in the condition.
TPU = """HloModule step, is_scheduled=true

%add (a: bf16[], b: bf16[]) -> bf16[] {
  %a = bf16[] parameter(0)
  %b = bf16[] parameter(1)
  ROOT %c = bf16[] add(%a, %b)
}

%cond (p.1: (s32[], bf16[8,128])) -> pred[] {
  %bound = s32[]{:T(128)} constant(32)
  %p.1 = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %bound), direction=LT
}

%body (p.2: (s32[], bf16[8,128])) -> (s32[], bf16[8,128]) {
  %p.2 = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %x = bf16[8,128]{1,0:T(8,128)(2,1)} get-tuple-element(%p.2), index=1
  %sum = (bf16[8,128]{1,0:T(8,128)(2,1)}, bf16[8,128]{1,0:T(8,128)}) all-reduce(%x, %x), replica_groups=mesh['a'=4,'b'=32], device_ids=([32,4]T(1,0)) {'b'}, to_apply=%add
  ROOT %t = (s32[], bf16[8,128]) tuple(%x)
}

%fused (q: bf16[64,128]) -> bf16[8,128] {
  %q = bf16[64,128]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %whole = bf16[64,128]{1,0} all-reduce(%q), replica_groups=[16,8]<=[128], to_apply=%add
  ROOT %mine = bf16[8,128]{1,0} dynamic-slice(%whole, %zero, %zero), dynamic_slice_sizes={8,128}
}

ENTRY %main (p: (s32[], bf16[8,128])) -> (s32[], bf16[8,128]) {
  %p = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %y = bf16[8,128]{1,0:T(8,128)(2,1)} get-tuple-element(%p), index=1
  %start = (bf16[8,128], bf16[32,128]) all-gather-start(%y), replica_groups=[32,4]<=[128], dimensions={0}
  %done = bf16[32,128] all-gather-done(%start)
  %q.1 = bf16[64,128] broadcast(%y), dimensions={0,1}
  %fusion = bf16[8,128] fusion(%q.1), kind=kCustom, calls=%fused
  %alone = bf16[8,128] all-reduce(%y), replica_groups={{0},{1}}, to_apply=%add
  ROOT %w = (s32[], bf16[8,128]) while(%p), condition=%cond, body=%body
}
"""  # noqa: E501


def test_programs_of_the_other_compiler():
  found = hlo.collectives(hlo.parse(TPU), devices=128)
  array = 2 * 8 * 128
  assert [(x[0], *x[2:]) for x in found] == [
    ('all-reduce', 2 * array, 32, 32),
    ('reduce-scatter', 8 * array, 8, 1),
    ('all-gather', 4 * array, 4, 1),
  ]
  assert found[1].sent == 7 * array
  assert found[2].sent == 3 * array


def test_what_is_not_understood_is_refused():
  odd = TPU.replace('replica_groups=[32,4]<=[128]', 'replica_groups=other')
  with pytest.raises(ValueError, match='devices of this collective'):
    hlo.collectives(hlo.parse(odd), devices=128)
  with pytest.raises(ValueError, match='size of f4e2m1'):
    hlo.type_bytes('f4e2m1[8]')
