"""Columns that the experiments share."""

QUALITY = (
  'perplexity', 'rougeL', 'rare_f1_10', 'rare_recall_10', 'rare_mass_10'
)  # fmt: skip
DIVERSITY = ('distinct_2', 'self_bleu_4', 'length_ratio')
