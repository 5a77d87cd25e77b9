"""Which host is to blame: sentences from what all of them left behind."""

from collections.abc import Sequence

from pdl_jax.cluster.heartbeat import SILENCE, End, Standing

JOINING = 'joining the others'
GOOD = (0, 75)
HOST = 4


def stuck(standings: Sequence[Standing], now: float) -> str:
  """Who is behind, when nobody has got any further for too long.

  A host that waits for others has begun what they have not.
  """
  least = min(one.ticks for one in standings)
  behind = [one for one in standings if one.ticks == least]
  if len(behind) == len(standings):
    one, more = standings[0], len(standings) > 1
    return (
      f'{"all hosts are" if more else f"{one.who} is"} stuck: {one.doing} for '
      f'{_quiet(one, now):.0f} s' + (', none behind the others' if more else '')
    )
  names = ', '.join(
    f'{one.who}, {one.doing} for {_quiet(one, now):.0f} s' for one in behind
  )
  ahead = max(standings, key=lambda one: one.ticks)
  return f'stuck: {names}, while {ahead.who} is {ahead.doing}'


def _quiet(one: Standing, now: float) -> float:
  return one.quiet + max(now - one.time, 0)


def primary(ends: Sequence[End]) -> End | None:
  """The first end that is a reason and no consequence."""
  reasons = [end for end in ends if end.code not in (None, *GOOD)]
  return min(reasons, key=lambda end: end.time, default=None)


def sentence(end: End) -> str:
  """What happened to a host, its own words if it had any."""
  if end.words.startswith('error: '):
    return f'{end.who} ended: {end.words.removeprefix("error: ")}'
  return f'{end.who} {end.words}'


def silent(standings: Sequence[Standing], now: float) -> str | None:
  """Hosts of which nothing is heard any more."""
  lost = [one for one in standings if now - one.time > SILENCE]
  if not lost:
    return None
  return ', '.join(
    f'{one.who} has not been heard of for {now - one.time:.0f} s (last '
    f'seen {one.doing})'
    for one in lost
  ) + '; the host, its network or its process is gone'


def missing(
  standings: Sequence[Standing],
  processes: int | None,
  seconds: int,
  where: str | None,
) -> str:
  """Which hosts never came, as far as that is known.

  Args:
    standings: of those that came to the run folder.
    processes: how many there should be; None: only JAX knows.
    seconds: how long they were waited for.
    where: HOST:PORT of process 0.
  """
  came = [one.process for one in standings]
  place = where or 'process 0'
  if processes is None or None in came:
    names = ', '.join(one.who for one in standings)
    return (
      f'not all hosts came within {seconds} s; those that came: {names}. Look '
      'at the others: does their command run, is this folder theirs too?'
    )
  never = [number for number in range(processes) if number not in came]
  if not never:
    return (
      f'all {processes} processes run, but did not meet within {seconds} s: '
      f'each must reach {place}, through firewalls, by the same name'
    )
  which = ', '.join(map(str, never))
  return (
    f'process{"es" * (len(never) > 1)} {which} of {processes} never came '
    f'within {seconds} s; is the command running there, with this run folder '
    f'and {place}?'
  )
