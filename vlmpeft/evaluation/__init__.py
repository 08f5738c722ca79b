"""What a model's answers are worth.

In: a model and encoded items. Out: answers, likelihoods, scores; two models compared. `metrics/` has the scores.
May import: data, strategies, base, runtime.
"""
