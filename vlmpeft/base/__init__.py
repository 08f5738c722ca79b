"""The pretrained model.

In: a BaseSpec. Out: model, processor and components; a fingerprint. `tiny/` is the embedded base.
May import: runtime.
"""
