"""Columns that the experiments share."""

from pdl_jax.report.declare import Metric

PERPLEXITY = Metric('perplexity', 'Perplexity', 'lower', 2)
ROUGE_L = Metric('rougeL', 'ROUGE-L', 'higher', 2, 100)
CHRF = Metric('chrf', 'chrF', 'higher', 2)
RARE_F1 = Metric('rare_f1_10', 'Rare-token F1 (%)', 'higher', 1, 100)
RARE_RECALL = Metric('rare_recall_10', 'Rare recall (%)', 'higher', 1, 100)
RARE_MASS = Metric('rare_mass_10', 'Rare mass (%)', 'reference', 1, 100)
DISTINCT_2 = Metric('distinct_2', 'Distinct-2', 'reference', 3)
SELF_BLEU = Metric('self_bleu_4', 'Self-BLEU-4', 'reference', 3)
REPEATED = Metric('seq_rep_4', 'Repeated 4-grams (%)', 'reference', 1, 100)
LENGTH = Metric('length_ratio', 'Length ratio', 'none', 2)
STYLE = Metric('style_accuracy', 'Right style (%)', 'higher', 1, 100)
RESPONSES = Metric(
  'distinct_responses', 'Distinct responses (%)', 'reference', 1, 100
)

QUALITY = (PERPLEXITY, ROUGE_L, RARE_F1, RARE_RECALL, RARE_MASS)
DIVERSITY = (DISTINCT_2, SELF_BLEU, LENGTH)
