"""Dialogue: turns, what is left out, and copies."""

import collections

import pytest

from pdl_jax.data.packaged import chitchat_dialogue, texts
from pdl_jax.data.packaged.texts import Example
from pdl_jax.data.schema import SPLITS
from pdl_jax.errors import DataError


def _conversation(*turns):
  """Two people in turn; a turn is a message or a list of them."""
  return {
    'messages': [
      [{'sender': 'ab'[i % 2], 'text': text} for text in messages]
      for i, messages in enumerate(
        [turn] if isinstance(turn, str) else turn for turn in turns
      )
    ]
  }


def test_messages_of_one_speaker_in_a_row_are_one_turn():
  conversation = _conversation(['Hi', ' there\n you '], 'Hello', ['', ' '])
  assert chitchat_dialogue.turns_of(conversation) == ['Hi there you', 'Hello']
  # The answer was empty, so that the first speaker goes on.
  conversation = _conversation('One', ' ', ['two', 'three'], 'Four')
  assert chitchat_dialogue.turns_of(conversation) == ['One two three', 'Four']


@pytest.mark.parametrize(('turn', 'reason'), [
  ('I passed the class with glasses on.', None),
  ('Going for summa cum laude, or Moby Dick.', None),
  ('Oh SHIT I am late', 'profanity'),
  ('it is bullshit', 'profanity'),
  ('word ' * 90, None),
  ('word ' * 91, 'turn_too_long'),
  ('write to some.one@example.org', 'personal_data'),
  ('I am @someone there', 'personal_data'),
  ('meet you @ 5', None),
  ('it is Some_One99', 'personal_data'),
  ('I am someone1234', 'personal_data'),
  ('the cs224 exam in 2018', None),
  ('see HTTPS://a.b/c', 'personal_data'),
  ('see example.com', 'personal_data'),
  ('one.two three...', None),
  ('call (555) 555-0123 now', 'personal_data'),
  ('call 5555550123', 'personal_data'),
  ('call 555-0123', 'personal_data'),
  ('from 2013-2015, 1000000 times', None),
  ('Add me on that site', 'personal_data'),
  ('My last name is Doe', 'personal_data'),
])  # fmt: skip
def test_why_unfit(turn, reason):
  assert chitchat_dialogue.why_unfit(turn) == reason


def _replies(*turns):
  dropped = collections.Counter()
  records = list(chitchat_dialogue.replies('c', turns, dropped))
  return records, dict(dropped)


def test_a_source_is_the_last_four_turns():
  turns = [f'this is turn {number}' for number in range(6)]
  records, dropped = _replies(*turns)
  assert dropped == {}
  assert [record.id for record in records] == [f'c/{i}' for i in range(1, 6)]
  assert records[0] == Example('c/1', 'c', turns[0], turns[1])
  assert records[-1] == Example('c/5', 'c', '\n'.join(turns[1:5]), turns[5])


def test_turns_are_dropped_with_all_they_stand_in():
  turns = [f'this is turn {number}' for number in range(8)]
  turns[1] = 'see example.com for it'
  turns[7] = 'yes it is'
  records, dropped = _replies(*turns)
  assert [record.id for record in records] == ['c/6']
  assert dropped == {'personal_data': 5, 'target_too_short': 1}


def _record(name, turn, source, target):
  return Example(f'{name}/{turn}', name, source, target)


def _without_copies(*records):
  dropped = collections.Counter()
  return chitchat_dialogue.without_copies(records, dropped), dict(dropped)


def test_equal_pairs_are_dropped_and_equal_replies_are_not():
  first = _record('c', 1, 'How are you?', 'Very well, thank you')
  again = _record('d', 1, 'how are you', 'very well thank you!')
  other = _record('e', 1, 'How was it?', 'Very well, thank you')
  turns = _record('f', 1, 'How are\nyou?', 'Very well, thank you')
  assert _without_copies(first, again, other) == (
    [first, other], {'duplicate': 1},
  )  # fmt: skip
  assert _without_copies(first, turns) == ([first, turns], {})
  copy = turns._replace(id='g/1', group='g')
  assert _without_copies(turns, copy) == ([turns], {'duplicate': 1})


def test_a_reply_of_many_conversations_is_generic():
  records = [_record(f'c{i}', 1, f'Turn {i}', 'I do not') for i in range(4)]
  assert _without_copies(*records) == ([], {'generic_target': 4})
  assert len(_without_copies(*records[:3])[0]) == 3
  same = [_record('c', i, f'Turn {i}', 'I do not') for i in range(4)]
  assert len(_without_copies(*same)[0]) == 4


def test_near_copies_of_other_conversations_are_dropped():
  words = [f'w{i}' for i in range(40)]
  new = [f'n{i}' for i in range(40)]
  text = ' '.join(words)
  first = _record('c', 1, 'Go on', text)
  # Neighbours in a conversation share turns, and are kept.
  second = _record('c', 2, f'Go on\n{text}', 'that is a lot')
  # Of 32 shingles the first conversation has 16, and 17.
  half, more = (
    _record('d', 1, 'And you?', ' '.join(words[:n] + new[n:39]))
    for n in (23, 24)
  )
  assert _without_copies(first, second, half) == ([first, second, half], {})
  assert _without_copies(first, second, more) == (
    [first, second], {'near_copy': 1},
  )  # fmt: skip


def _read(conversations):
  dropped = collections.Counter()
  return chitchat_dialogue.read_replies(conversations, dropped), dropped


def test_conversations_are_read_in_an_order_of_their_own():
  turns = [f'we are at number {number}' for number in range(4)]
  conversations = {
    f'name{i}': _conversation(*(f'{turn} {i}' for turn in turns))
    for i in range(30)
  }
  conversations['short'] = _conversation(*turns[:3])
  records, dropped = _read(conversations)
  assert dropped == {'conversation_too_short': 1}
  assert len(records) == 30 * 3
  splits = [chitchat_dialogue.split_of(record.group) for record in records]
  assert splits == sorted(splits, key=SPLITS.index)
  assert set(splits) == set(SPLITS)
  backwards = dict(reversed(conversations.items()))
  assert _read(backwards) == (records, dropped)


def test_a_damaged_file_is_named(tmp_path, monkeypatch):
  monkeypatch.setattr(texts, 'package_folder', lambda *_: tmp_path)
  (tmp_path / 'dataset.json').write_text('{}', 'utf-8')
  with pytest.raises(DataError, match=r'dataset.json is damaged \(its 2 bytes'):
    chitchat_dialogue.make(collections.Counter())
